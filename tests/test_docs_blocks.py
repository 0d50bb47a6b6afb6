"""Every block of code of the pages: Python runs, here or in a test of its page; commands are read by their parsers.

What else a block may hold: lines for other programs (pip, chromium), and shapes of files and classes (SHAPES).
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import tyro
from cli_tools import run
from textgym_benchmarks.run import runner

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HERE = ("README.md", "docs/benchmark.md", "docs/doctor.md", "docs/leaderboard.md")
ELSEWHERE = {
    "CONTRIBUTING.md": "test_plugins.py",
    "docs/algorithms.md": "agents/test_peft.py",
    "docs/bridges.md": "interop/test_docs_bridges.py",
    "docs/custom_algorithm.md": "test_docs_algorithms.py",
    "docs/datasets.md": "test_docs_datasets.py",
    "docs/exact.md": "test_docs.py",
    "docs/lm_ppo.md": "test_docs_lm_ppo.py",
    "docs/own_task.md": "test_own_things.py",
    "docs/quickstart.md": "test_docs.py",
    "docs/reasoning.md": "test_docs_reasoning.py",
    "docs/rewards.md": "test_docs_rewards.py",
    "docs/rlhf.md": "test_docs_rlhf.py",
    "docs/sb3.md": "agents/sb3/test_docs_sb3.py",
    "docs/suites.md": "benchmarks/test_product_run.py",
    "docs/turns.md": "test_docs.py",
}
SHAPES = {"docs/samplers.md": "class Sampler(Protocol):"}  # a page, and how its only block begins
OTHERS = {"cd", "chromium", "pip", "python", "python3", "#"}
RUN = (
    "docs/own_task.md",
    "docs/custom_algorithm.md",
)  # their tests run the commands, too, beside the files that they need


class Read(Exception):  # noqa: N818
    """The flags could be read."""


def blocks(page: str, *languages: str) -> list[str]:
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [code for language, code in found if language in languages]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> Iterator[tuple[str, str]]:
    """Page and line of each command of `textgym` in a shell's block."""
    for words in re.findall(r"^\| `textgym ([^`]+)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        yield "README.md", words
    for page in [page for page in map(named, PAGES) if page not in RUN]:
        for line in "\n".join(blocks(page, "sh", "bash")).splitlines():
            for part in re.split(r"; |&& ", line.partition("  #")[0]):
                words = re.sub(r"^(do |[A-Z_]+=\S+ )+", "", part.strip())
                if re.match(r"(\.venv/bin/)?textgym ", words):
                    yield page, words.partition(" ")[2].replace("$seed", "0")
                else:
                    assert not words or words.split()[0] in OTHERS | {"for", "done"} or "/bin/python" in words, words


def test_every_block_of_python_is_run_by_a_test() -> None:
    with_python = {page for page in map(named, PAGES) if blocks(page, "python")}
    assert with_python == {*HERE, *ELSEWHERE, *SHAPES}
    for page, test in ELSEWHERE.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert f'"{Path(page).name}"' in text, f"{test} does not read {page}"
    for page, begins in SHAPES.items():
        assert [code.partition("\n")[0] for code in blocks(page, "python")] == [begins]


@pytest.mark.parametrize("page", HERE)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        runner, "run_suite", create_autospec(runner.run_suite)
    )  # docs/benchmark.md would train for minutes
    names: dict[str, object] = {"__name__": "page"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks(page, "python"):
            exec(compile(code, page, "exec"), names)
    if page == "docs/doctor.md":
        (shown,) = re.findall(r"# prints: (.*) \.\.\.$", blocks(page, "python")[0], re.MULTILINE)
        assert printed.getvalue().startswith(shown)
    if page == "docs/benchmark.md":
        assert len(names["clips"]().cells) == 6  # type: ignore[operator]


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_of_a_page_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    parse = tyro.cli

    def read(*arguments: object, **options: object) -> None:
        parse(*arguments, **options)  # type: ignore[call-overload]
        raise Read

    monkeypatch.setattr(tyro, "cli", read)
    said = run(capsys, *shlex.split(line))[2]
    assert "Read" in said, f"{page}: {said}"
