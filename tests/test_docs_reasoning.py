"""The page of reasoning: its blocks run, and what it shows is what they print.

`python tests/test_docs_reasoning.py` writes what the blocks print into the page, if their packages are installed.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_docs import printed, trimmed

PAGE = Path(__file__).parents[1] / "docs" / "reasoning.md"
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n\n)?```(python|sh)\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)


def missing(needs: str, source: str) -> bool:
    """Whether a block needs a package that is not installed."""
    package = needs or ("math_verify" if '"math_verify"' in source else "")
    return bool(package) and find_spec(package) is None


@pytest.mark.long
def test_the_page_shows_what_its_code_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks, names = BLOCK.findall(text), {"__name__": "page"}
    assert len(blocks) == len(re.findall(r"^```(?:python|sh)$", text, re.MULTILINE)) == 8
    left = [needs for needs, _, source, _ in blocks if missing(needs, source)]
    for needs, language, source, shown in blocks:
        if not missing(needs, source):
            assert trimmed(shown)
            assert trimmed(printed(language, source, names)) == trimmed(shown), source
    if left:
        pytest.skip(f"{len(left)} blocks need packages that are not installed; the others hold")


def test_the_example_of_reasoning_gym_is_short() -> None:
    (source,) = [source for needs, _, source, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if needs]
    assert len(source.splitlines()) <= 40


def write() -> None:
    """Write what the blocks print into the page."""
    names: dict[str, object] = {"__name__": "page"}

    def shown(block: re.Match[str]) -> str:
        needs, language, source, old = block.groups()
        if missing(needs, source):
            return block[0]
        lines = "\n".join(trimmed(printed(language, source, names)))
        return block[0].removesuffix(f"{old}```\n") + f"{lines}\n```\n"

    PAGE.write_text(BLOCK.sub(shown, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
