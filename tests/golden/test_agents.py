"""Every registered agent trains, acts, evaluates, saves and loads as it was recorded, to the number."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden.agent_records import CASES, agent_record, read
from record import differences
from textgym_agents import agent_names


def test_every_registered_agent_is_recorded() -> None:
    assert sorted({case.agent for case in CASES.values()}) == agent_names()
    assert list(read("agents.json")) == list(CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_agent_is_as_recorded(name: str, tmp_path: Path) -> None:
    found = agent_record(CASES[name], tmp_path)
    lines = [*differences(read("agents.json")[name], found, tolerance=1e-5)]
    assert not lines, "\n".join([*lines, "If this is meant: python tests/golden/agent_records.py"])
