"""`ProgressBar`: the line that a callback of `learn` writes, and metrics as text."""

from __future__ import annotations

import io
import re
import sys

import pytest
from textgym_agents import ProgressBar, make_agent, make_env
from textgym_agents.progress import figure, metrics_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("objective/kl", -6.5e-08, "0"),
        ("eval/kl", 6.5e-08, "0"),
        ("objective/kl", -0.0123, "-0.0123"),  # an estimate may be negative
        ("policy/approxkl_avg", 2e-05, "2e-05"),
        ("lr", 1e-07, "1e-07"),
        ("eval/optimality", -1.335e-16, "0"),
        ("eval/optimality", -0.1234, "-0.1234"),
    ],
)
def test_what_is_0_but_for_rounding_is_0(name, value, shown):
    assert figure(name, value) == shown


def test_metrics_without_a_label_are_left_out():
    assert metrics_line({"objective/scores": 0.5, "objective/kl": -1e-9, "lr": 1.0}) == "reward 0.5  kl 0"


def test_a_file_gets_a_line_for_each_tenth_of_the_budget(capsys):
    bar = ProgressBar(1000)
    for episode in range(10, 1001, 10):
        bar({"episode": float(episode), "objective/scores": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.search(r"(\d+)/1000 episodes", line)[1]) for line in lines] == [10, *range(110, 1000, 100), 1000]
    assert lines[-1].startswith("[####################] 1000/1000 episodes  0 s, 0 s left")
    assert lines[-1].endswith("  reward 0.25")


def test_an_agent_that_has_learned_before_starts_at_0(capsys):
    bar = ProgressBar(40)
    for episode in (5010.0, 5020.0, 5030.0, 5040.0):
        bar({"episode": episode})
    assert re.findall(r"(\d+)/40", capsys.readouterr().out) == ["20", "30", "40"]


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_terminal_and_a_notebook_get_one_line_written_over(monkeypatch, where):
    stream = Terminal() if where == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    if where == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.setenv("COLUMNS", "60")
    bar = ProgressBar(2)
    bar({"episode": 1.0, "objective/scores": 0.123456})
    bar({"episode": 2.0})
    first, second = stream.getvalue().removesuffix("\n").split("\r")[1:]
    assert "1/2 episodes" in first
    assert "2/2 episodes" in second
    assert len(second) == len(first) <= 59  # what stood there before is covered
    assert stream.getvalue().count("\n") == 1


def test_the_callback_behind_it_is_called_and_can_stop(capsys):
    rows = []
    env = make_env("textgym/Copy-v0", num_envs=8)
    agent = make_agent("q-learning", env)
    agent.learn(env, 64, ProgressBar(64, lambda row: rows.append(row) or len(rows) == 2))
    assert len(rows) == 2
    assert f"{rows[-1]['episode']:.0f}/64" in capsys.readouterr().out.splitlines()[-1]


def test_an_agent_that_does_not_count_episodes_has_a_line_without_a_bar(capsys):
    ProgressBar(64)({"objective/scores": 0.5})
    assert capsys.readouterr().out == "0 s  reward 0.5\n"


@pytest.mark.parametrize("episodes", [0, -3])
def test_a_budget_of_nothing_is_refused(episodes):
    with pytest.raises(ValueError, match=rf"episodes={episodes}: allowed is an integer >= 1"):
        ProgressBar(episodes)
