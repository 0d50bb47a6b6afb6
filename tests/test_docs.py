"""The quick start, exact answers and turns: the blocks of their pages run, and what these show is what they print.

`python tests/test_docs.py quickstart.md` writes what the blocks print into that page.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from cli_tools import child

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "exact.md"
BLOCK = re.compile(r"```(python|sh)\n((?:(?!```).)*)```\n\n```text\n(.*?)```\n", re.DOTALL)


def trimmed(text: str) -> list[str]:
    """Its lines without trailing blanks, and without the empty ones that the terminal's tables begin and end with."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def printed(language: str, source: str, names: dict[str, object]) -> str:
    """What a block prints. Python blocks share `names`."""
    if language == "sh":
        command, *words = shlex.split(source)
        assert command == "textgym"
        done = child(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(compile(source, "<page>", "exec"), names)
    return stream.getvalue()


def check_page(page, least, languages="python|sh"):
    """That the page has blocks in these languages, and shows below each what it prints."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks, names = [each for each in BLOCK.findall(text) if each[0] in languages.split("|")], {"__name__": "page"}
    assert len(blocks) == len(re.findall(rf"^```(?:{languages})$", text, re.MULTILINE)) >= least
    for language, source, shown in blocks:
        assert trimmed(shown)
        assert trimmed(printed(language, source, names)) == trimmed(shown), source


@pytest.mark.long
@pytest.mark.parametrize(("page", "least"), [("exact.md", 10), ("quickstart.md", 5), ("turns.md", 5)])
def test_a_page_shows_what_its_code_prints(page, least):
    check_page(page, least)


def test_the_claims_of_the_prose_hold_for_the_numbers():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^(\S.{38,41}?) +bias (\S+)(?:  cosine (\S+))?  variance (\S+)$", text, re.MULTILINE)
    table = {name.strip(): (float(bias), float(variance)) for name, bias, _, variance in rows}
    unbiased = ["REINFORCE", "REINFORCE, reward to go", "REINFORCE, reward to go - V", "RLOO, groups of 2"]
    unbiased += ["k1 in the reward", "k2 in the loss", "exact in the loss"]
    assert [table[name][0] for name in unbiased] == [0.0] * len(unbiased)
    assert table["REINFORCE, reward to go - V"][1] < table["REINFORCE, reward to go"][1] < table["REINFORCE"][1]
    assert table["GAE(0), critic 0"][0] > 0.1
    assert table["GRPO without std, groups of 2"][0] > 0.1
    biased = ["k1 in the loss", "k3 in the loss", "k3 in the reward", "exact in the reward"]
    assert all(table[name][0] > 0.02 for name in biased)


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 350


def write(page):
    path, names = DOCS / page, {"__name__": "page"}

    def fill(block):
        language, source, _ = block.groups()
        lines = "\n".join(trimmed(printed(language, source, names)))
        return f"```{language}\n{source}```\n\n```text\n{lines}\n```\n"

    path.write_text(BLOCK.sub(fill, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
