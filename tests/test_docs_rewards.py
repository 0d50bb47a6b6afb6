"""The page of rewards: its blocks run, what it shows is what they print, and its table has every kind of failure.

`python tests/test_docs_rewards.py` writes what the blocks print into the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_docs import printed, trimmed

PAGE = Path(__file__).parents[1] / "docs" / "rewards.md"
# Language, code, and what it prints, where something follows; blocks for TRL are run in tests/interop.
BLOCK = re.compile(r"(<!-- needs: trl -->\n\n)?```(python|sh)\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


def blocks() -> list[tuple[str, str, str, str]]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def own(factory: Any) -> bool:
    """Whether a reward is registered by the package itself, and not by a test."""
    return (factory if isinstance(factory, str) else factory.__module__).startswith("textgym.")


@pytest.mark.slow
def test_the_page_shows_what_its_code_prints(monkeypatch: Any) -> None:
    from textgym.registry import REWARDS

    # The page registers one too, which other tests should not see.
    known = {name: REWARDS.entry(name) for name in REWARDS if own(REWARDS.entry(name).target)}
    monkeypatch.setattr(REWARDS, "_entries", known)
    found = [block for block in blocks() if not block[0]]
    assert len(found) >= 9
    names: dict[str, object] = {"__name__": "page"}
    for _, language, source, shown in found:
        assert trimmed(printed(language, source, names)) == trimmed(shown), source


def test_the_page_has_one_block_for_trl() -> None:
    assert sum(bool(block[0]) for block in blocks()) == 1


def test_every_kind_of_failure_is_in_the_table() -> None:
    from textgym.rewards import RewardError

    kinds = set(re.findall(r'"(\w+)"', RewardError.__doc__ or ""))
    listed = set(re.findall(r"\| `(\w+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == kinds == {"raises", "wrong_type", "wrong_length", "nan", "inf", "timeout", "dies"}


def write() -> None:
    names: dict[str, object] = {"__name__": "page"}

    def fill(block: re.Match[str]) -> str:
        needs, language, source, shown = block.groups()
        if needs:
            return block.group()
        output = "\n".join(line.rstrip() for line in printed(language, source, names).splitlines())
        start = f"```{language}\n{source}```\n"
        return start if shown is None and not output else f"{start}\n```text\n{output}\n```\n"

    PAGE.write_text(BLOCK.sub(fill, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
