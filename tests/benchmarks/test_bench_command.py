"""The command `textgym bench`: what it shows, and how it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import textgym_benchmarks.commands.bench as command
import textgym_benchmarks.suites as suites
from benchmarks.synthetic import make_results
from fake_cells import tiny_suite
from textgym_benchmarks.results.store import Result

from textgym.cli import main


@pytest.fixture(autouse=True)
def quick_cells(monkeypatch, tmp_path):
    """The suite `ci` is a tiny one whose cells take no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suites, "ci", tiny_suite)
    use(monkeypatch, "quick")


def use(monkeypatch, function, _run=command.run_suite):
    monkeypatch.setattr(command, "run_suite", partial(_run, function=f"fake_cells:{function}"))


def bench(*flags):
    return main(["bench", "--suite", "ci", "--engine", "serial", *flags])


def test_a_run_in_plain_lines_and_its_table(capsys, tmp_path):
    assert bench() == 0
    printed = capsys.readouterr().out
    assert "4 of 4 done" in printed
    row = next(line for line in printed.splitlines() if line.strip().startswith("Bandit-v0"))
    # lm-ppo has 6 letters and rloo 4; the second seed adds 1/8, so the means are 6 1/16 and 4 1/16.
    assert row.split() == ["Bandit-v0", "6.062", "4.062"]
    assert "busy cores in the last run:" in printed
    assert "textgym report runs/bench-ci shows more" in printed
    assert (tmp_path / "runs" / "bench-ci" / "suite.json").exists()


def test_the_table_tells_budgets_apart():
    values = make_results(("lm-ppo",), ("textgym/Bandit-v0",), 2, failed=0.0, missing=0.0)
    short = Result.from_json(values[0])
    long = replace(Result.from_json(values[1]), cell=replace(short.cell, episodes=8 * short.cell.episodes))
    (shown,) = command.summary_tables([short, long], 100)
    cells = [list(column.cells) for column in shown.columns]
    assert len(cells[0]) == 2
    assert [float(each) for each in cells[1]] == pytest.approx(
        [each.measures["after"]["optimality"]["mean"] for each in (short, long)], abs=6e-4
    )


def test_a_mean_in_the_table_says_how_many_runs_have_no_optimality():
    values = make_results(("lm-ppo", "rloo"), ("textgym/Bandit-v0",), 2, failed=0.0, missing=0.0)
    for value, mean in zip(values, (0.5, None, None, None), strict=True):
        value["measures"]["after"]["optimality"] = mean and {"mean": mean, "low": None, "high": None}
    (shown,) = command.summary_tables([Result.from_json(value) for value in values], 100)
    assert [list(column.cells) for column in shown.columns[1:]] == [["0.500, 1 unknown"], ["-"]]


def test_a_suite_says_whose_prompts_are_answered(monkeypatch, tmp_path):
    monkeypatch.setattr(
        suites, "ci", lambda: replace(tiny_suite(), evaluation=replace(tiny_suite().evaluation, split="tune"))
    )
    assert bench() == 0
    data = json.loads((tmp_path / "runs" / "bench-ci-tune" / "suite.json").read_text())
    assert data["evaluation"]["split"] == "tune"


def test_failed_cells_are_named_in_one_line_with_exit_code_1(capsys, monkeypatch):
    use(monkeypatch, "rloo_fails")
    assert bench() == 1
    captured = capsys.readouterr()
    assert "2 failed" in captured.out
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("textgym: 2 of 4 cells failed: bandit-v0.default.rloo.s0.")
    assert " and 1 more (RuntimeError: no luck (" in last
    assert last.endswith("; --retry-failed reruns them")
    assert bench() == 1  # they stay failed
    use(monkeypatch, "quick")
    assert bench("--retry-failed") == 0


def test_cells_of_different_sources_are_told(capsys, tmp_path):
    assert bench() == 0
    assert "different sources" not in capsys.readouterr().err
    result = next((tmp_path / "runs" / "bench-ci" / "cells").glob("*/result.json"))
    data = json.loads(result.read_text())
    result.write_text(json.dumps(data | {"versions": {"source": "0123456789ab"}}))
    assert bench() == 0
    assert "from different sources of textgym: 0123456789ab, unknown\n" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    use(monkeypatch, "rloo_is_interrupted")
    assert bench() == 130
    assert "interrupted: 2 of 4 cells are done; the same command" in capsys.readouterr().err


def test_agents_and_seeds(capsys):
    assert bench("--agents", "rloo", "random", "--seeds", "1", "--out", "here") == 0
    assert "2 of 2 done" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--keep-checkpoints",)])
def test_checkpoints_are_kept_where_they_are_asked_for(monkeypatch, flags):
    asked = []
    monkeypatch.setattr(command, "run_suite", lambda *_, save, **__: asked.append(save) or 1 / 0)
    bench(*flags)
    assert asked == [bool(flags)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agents"], "agents=(): allowed is at least one"),
        (["--agents", "lm-pppo"], "Did you mean 'lm-ppo'"),
        (["--agents", "no_such_module:Agent"], "neither in the current folder nor installed"),
        (["--engine", "poll"], "--engine"),
        (["--workers", "3"], "workers=3"),
        (["--seeds", "0"], "seeds=0"),
    ],
)
def test_bad_flags_are_one_line(capsys, flags, message):
    assert bench(*flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_list_of_suites(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("ci", "quick", "core", "full", "rewards", "diagnostics", "scaling"):
        assert f" {name} " in printed
    assert "…" not in printed  # no text is cut
