"""The page of datasets: its blocks run, and what it shows is what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_docs import printed, trimmed

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
BLOCK = re.compile(r"```(python)\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)


@pytest.mark.long
def test_the_page_shows_what_its_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    text = PAGE.read_text(encoding="utf-8")
    blocks, names = BLOCK.findall(text), {"__name__": "page"}
    assert len(blocks) == text.count("```python") >= 5
    for language, source, shown in blocks:
        assert trimmed(printed(language, source, names)) == trimmed(shown), source
