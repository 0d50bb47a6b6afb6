"""The page of suites runs; and a product is broken off by Ctrl-C, gone on with, and ends with the same bits."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
from cli_tools import COMMAND, ROOT, environment
from test_report import Page
from textgym_benchmarks.commands.bench import BenchFlags, chosen_suite
from textgym_benchmarks.results.store import load_results
from textgym_benchmarks.selection import make_suite, suite_file

from textgym.commands.flags import parse
from textgym.registry import TASKS

PAGE = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
TWO_TASKS = """
tasks = ["mine/Vowels-v0", "my_module:mine/Again-v0"]
agents = ["rloo", "q-learning"]
rewards = ["rules", "no_repeat", "my_module:brief", { name = "length", target = 2 }]
episodes = 512
seeds = 3
[evaluation]
points = 2
"""
AGAIN = """
gym.register("mine/Again-v0", entry_point="textgym.env:TokenEnv", vector_entry_point="textgym.vector:TokenVectorEnv",
             kwargs={"task": "Vowels-v0"})
"""


@pytest.fixture
def files(monkeypatch, tmp_path):
    """The page's files in the current folder; nothing that they register stays."""
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(TASKS, "_entries", {**TASKS._entries})
    before = dict(gym.registry)
    yield
    gym.registry.clear()
    gym.registry.update(before)
    sys.modules.pop("my_module", None)


@pytest.mark.long
def test_the_page_its_command_and_its_file_say_the_same_and_its_python_runs(files):
    (words,) = re.findall(r"^textgym bench (--tasks .*)$", PAGE, re.MULTILINE)
    from_flags, left_out = chosen_suite(parse(BenchFlags, words.split(), "bench"))
    assert not left_out
    assert from_flags.cells == make_suite("mine.toml").cells
    assert len(from_flags.cells) == 60
    assert f"= {len(from_flags.cells)} cells" in PAGE
    assert from_flags.evaluation == make_suite("mine.toml").evaluation
    assert suite_file("mine.toml")["name"] == "mine"
    (code,) = [
        code for code in re.findall(r"^```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL) if "run_suite" in code
    ]
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(compile(code, "suites.md", "exec"), {"__name__": "page"})
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert [line[:4] for line in lines] == [
        ["mine/Vowels-v0", reward, agent, seed]
        for reward in ("rules", "brief")
        for agent in ("rloo", "q-learning")
        for seed in "01"
    ]
    assert 'id="rewards"' in Path("runs/vowels/report/index.html").read_text()


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def numbers(folder: Path) -> list[str]:
    """Of every cell, all that must not depend on how it was run."""
    return [json.dumps([each.cell.key, each.status, each.measures]) for each in load_results(folder)]


@pytest.mark.long
def test_two_tasks_four_rewards_two_agents_three_seeds_broken_off_and_gone_on_with_bit_for_bit(tmp_path):
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text + AGAIN * (name == "my_module.py"))
    (tmp_path / "two.toml").write_text(TWO_TASKS)
    whole = start(tmp_path, "bench", "--suite", "two.toml", "--out", "whole")
    printed, _ = whole.communicate()
    assert whole.returncode == 0, printed
    assert "48 of 48 done" in printed
    words = ("bench", "--suite", "two.toml", "--out", "parts")
    for enough in (1, 12):  # the first cells are broken off while they learn, others never begin
        broken = start(tmp_path, *words)
        while len([*tmp_path.glob("parts/cells/*/result.json")]) < enough and broken.poll() is None:
            time.sleep(0.05)
        os.kill(broken.pid, signal.SIGINT)
        printed, _ = broken.communicate()
        assert broken.returncode == 130, printed
        assert re.search(r"interrupted: \d+ of 48 cells are done; the same command", printed)
    done = start(tmp_path, *words)
    printed, _ = done.communicate()
    assert done.returncode == 0, printed
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    report = start(tmp_path, "report", "parts")
    assert report.wait() == 0
    page = Page(tmp_path / "parts" / "report" / "index.html")
    assert page.source.count("every agent under every reward</h3>") == 2
    assert page.source.count("completions on which rewards disagree most</h3>") == 2
