"""The page of Stable-Baselines3: its blocks run, and what it shows is what they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_docs import printed, trimmed
from textgym_agents.registry import agent_names

PAGE = Path(__file__).parents[3] / "docs" / "sb3.md"
BLOCK = re.compile(r"```(python)\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)


@pytest.mark.long
def test_the_page_shows_what_its_code_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks, names = BLOCK.findall(text), {"__name__": "page"}
    assert len(blocks) == text.count("```python") >= 4
    for language, source, shown in blocks:
        assert trimmed(printed(language, source, names)) == trimmed(shown), source


def test_the_page_names_every_agent() -> None:
    listed = set(re.findall(r"`(sb3-[\w-]+)`", PAGE.read_text(encoding="utf-8")))
    assert listed == {name for name in agent_names() if name.startswith("sb3-")}
