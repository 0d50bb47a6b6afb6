"""`textgym regret`: what tree search loses on solvable tasks, as a table and as JSON."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from cli_tools import ROOT, run

from textgym import make_task
from textgym.solver import solve


@pytest.mark.slow
def test_the_command_prints_what_the_method_returns(capsys):
    words = ["regret", "Stop-v0", "--env", "difficulty=1", "--simulations", "1", "16", "--widening", "0", "1"]
    code, out, _ = run(capsys, *words, "--settings", "leaf=exact", "--json")
    assert code == 0
    found = json.loads(out)
    optimum = solve(make_task("Stop", difficulty=1)).objective
    assert (found["id"], found["split"]) == ("textgym/Stop-v0", "train")
    assert [(row["simulations"], row["widening"]) for row in found["rows"]] == [(1, 0), (16, 0), (1, 1), (16, 1)]
    for row in found["rows"]:
        assert row["optimum"] == pytest.approx(optimum)
        assert row["regret"] >= -1e-9
    assert [row["regret"] < 1e-9 for row in found["rows"]] == [False, True, False, True]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "V* 0.8496" in out
    assert "off" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--simulations", "0"), "simulations=0"),
        (("--widening", "-1"), "widening=-1"),
        (("--settings", "simulations=3"), "allowed is --simulations, which takes several"),
        (("--settings", "leaf=none"), "leaf='none'"),
    ],
)
def test_bad_words_are_named(capsys, words, message):
    code, _, err = run(capsys, "regret", "Stop-v0", *words)
    assert code
    assert message in err


@pytest.mark.long
def test_the_page_of_algorithms_shows_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    ((command, shown),) = re.findall(r"```sh\ntextgym (regret .*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)
    code, out, _ = run(capsys, *shlex.split(command))
    assert code == 0
    printed = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert printed == shown.splitlines()
