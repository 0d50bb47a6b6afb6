"""The page of datasets: its blocks run, and what it shows is what they print."""

from __future__ import annotations

import pytest
from test_docs import check_page


@pytest.mark.long
def test_the_page_shows_what_its_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    check_page("datasets.md", 5)
