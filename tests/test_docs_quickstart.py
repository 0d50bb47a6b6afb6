"""The quick start: its blocks run, and what it shows is what they print.

`python tests/test_docs_quickstart.py` writes what the blocks print into the page.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_docs import printed, trimmed

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", re.DOTALL)


@pytest.mark.long
def test_the_page_shows_what_its_code_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found, names = BLOCK.findall(text), {"__name__": "page"}
    assert len(found) == text.count("```python\n") >= 5
    for source, shown in found:
        assert trimmed(shown)
        assert trimmed(printed("python", source, names)) == trimmed(shown), source


def write() -> None:
    names: dict[str, object] = {"__name__": "page"}

    def fill(block: re.Match[str]) -> str:
        lines = "\n".join(trimmed(printed("python", block.group(1), names)))
        return f"```python\n{block.group(1)}```\n\n```text\n{lines}\n```\n"

    PAGE.write_text(BLOCK.sub(fill, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
