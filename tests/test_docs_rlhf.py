"""The page of RLHF: its Python blocks run and show what they print, and its pictures are there."""

import re
from pathlib import Path

from test_docs import printed, trimmed

PAGE = Path(__file__).parents[1] / "docs" / "rlhf.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_its_python_blocks_print_what_it_shows():
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", TEXT, re.DOTALL)
    assert blocks
    assert len(blocks) == TEXT.count("```python")
    for source, shown in blocks:
        assert trimmed(printed("python", source, {"__name__": "page"})) == trimmed(shown)


def test_its_pictures_and_commands_are_there():
    from textgym.registry import COMMANDS

    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
        assert (PAGE.parent / path).is_file()
    named = set(re.findall(r"textgym ([a-z-]+)[ `\n]", TEXT))
    assert {"rlhf", "sft", "preferences", "reward-model", "overoptimise"} <= named <= set(COMMANDS)
    assert not re.search(r"\b[A-Z]{2,}-[A-Z]{2,}-[A-Z]{2,}\b", TEXT)  # a figure that was never filled in
