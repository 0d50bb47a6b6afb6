"""The page of Stable-Baselines3: its blocks run, and what it shows is what they print."""

from __future__ import annotations

import re

import pytest
from test_docs import DOCS, check_page
from textgym_agents.registry import agent_names


@pytest.mark.long
def test_the_page_shows_what_its_code_prints() -> None:
    check_page("sb3.md", 4, "python")


def test_the_page_names_every_agent() -> None:
    listed = set(re.findall(r"`(sb3-[\w-]+)`", (DOCS / "sb3.md").read_text(encoding="utf-8")))
    assert listed == {name for name in agent_names() if name.startswith("sb3-")}
