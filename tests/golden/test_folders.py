"""Every kind of folder that the command line writes holds the files, keys, tensors and numbers that were recorded."""

from __future__ import annotations

import pytest
from golden.agent_records import read
from golden.folder_records import KINDS, Folders
from record import differences

MARKED = [pytest.param(name, marks=[pytest.mark.long] if kind.long else []) for name, kind in KINDS.items()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"))


def test_every_difference_is_told() -> None:
    recorded = {"a": 1.0, "b": [1, 2.0], "c": "x", "d": True}
    now = {"a": 1.0 + 1e-9, "b": [1, 3.0], "c": ["x"], "e": 0}
    assert [*differences(recorded, recorded)] == []
    assert [*differences(recorded, now)] == [
        "b[1]: recorded is 2.0, now it is 3.0",
        "c: recorded is 'x', now it is ['x']",
        "d: is gone",
        "e: is new",
    ]


def test_every_kind_is_recorded() -> None:
    assert list(read("folders.json")) == list(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_a_folder_is_as_recorded(name: str, folders: Folders) -> None:
    lines = [*differences(read("folders.json")[name], folders.record(name), tolerance=1e-5)]
    assert not lines, "\n".join([*lines, "If this is meant: python tests/golden/agent_records.py folders"])
