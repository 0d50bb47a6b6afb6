"""Objectives with equal trials: what runs, what is chosen, and the table by hand."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
from textgym_benchmarks.objectives import TRIALS, choose, finals, print_missing, print_scores, scores, trials
from textgym_benchmarks.suites import ALGORITHMS


def result(label, task, seed, optimality):
    measures = None if optimality is None else {"after": {"optimality": {"mean": optimality}}}
    return SimpleNamespace(cell=SimpleNamespace(name=label, task=task, seed=seed), measures=measures)


def test_every_objective_gets_the_same_trials_on_the_same_tasks():
    suite = trials(["Bandit", "Copy"])
    assert Counter(cell.name for cell in suite.cells) == {
        f"{name} {place}": 2 for name in ALGORITHMS for place in range(len(TRIALS))
    }
    assert {(cell.task, cell.episodes) for cell in suite.cells} == {("Bandit-v0", 4096), ("Copy-v0", 16_384)}
    assert suite.evaluation.split == "tune"
    (gspo,) = (cell for cell in suite.cells if (cell.name, cell.task) == ("GSPO 2", "Copy-v0"))
    assert gspo.config["surrogate"] == "gspo"
    assert gspo.config["batch"] == 64
    fresh = finals({"GSPO": 2}, ["Copy"], 5)
    assert [cell.seed for cell in fresh.cells] == [0, 1, 2, 3, 4]
    assert {cell.seed for cell in suite.cells}.isdisjoint(cell.seed for cell in fresh.cells)
    assert (fresh.evaluation.split, fresh.cells[0].config) == ("eval", gspo.config)


def test_the_best_mean_over_all_tasks_is_chosen():
    rows = [
        *(result(f"rloo {place}", "A", 0, value) for place, value in enumerate((0.5, 0.9, 1.0))),
        *(result(f"rloo {place}", "B", 0, value) for place, value in enumerate((0.6, 0.3, None))),
        result("grpo 0", "A", 0, 0.1),  # not on B
    ]
    tasks, found = scores(rows)
    assert tasks == ["A", "B"]
    assert {label: each.tolist() for label, each in found.items()} == {"rloo 0": [[0.5, 0.6]], "rloo 1": [[0.9, 0.3]]}
    assert choose(found) == {"rloo": 1}


def test_the_table_by_hand(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    found = {
        "rloo": np.array([[0.9, 0.7], [0.9, 0.9]]),  # means 0.8, 0.9
        "grpo": np.array([[0.5, 0.5], [0.5, 0.5]]),
        "GSPO": np.array([[0.9, 0.9], [1.0, 1.0]]),
    }
    print_scores(found, {"rloo": 0, "grpo": 2, "GSPO": 1}, ["A-v0", "B"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in found}
    assert list(rows) == ["GSPO", "rloo", "grpo"]
    # Welch: the errors are 0.05 each, sqrt(0.005) in all, with two degrees of freedom: 4.303 * 0.0707.
    assert rows["GSPO"][:4] == ["0.950", "-0.100", "[-0.404,", "+0.204]"]
    assert rows["rloo"][:2] == ["0.850", "-"]
    assert rows["grpo"][:2] == ["0.500", "+0.350"]
    assert rows["GSPO"][-2:] == ["0.95", "0.95"]
    assert rows["rloo"][-2:] == ["0.90", "0.80"]
    assert next(line for line in lines if "mean" in line)[-2:] == ["A", "B"]


def test_the_table_without_those_that_lead(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    print_scores({"GSPO": np.array([[0.9], [0.8]])}, {"GSPO": 1}, ["A"])
    assert "GSPO ahead by" in capsys.readouterr().out
    print_scores({}, {}, [])
    assert capsys.readouterr().out == "no objective has been run on all tasks yet\n"


def test_seeds_that_are_left_out_are_counted(capsys):
    rows = [result("rloo", task, seed, 0.5) for task in "AB" for seed in range(3)]
    rows += [result("grpo", "A", seed, 0.9) for seed in range(3)] + [
        result("grpo", "B", seed, value) for seed, value in enumerate((0.9, None, None))
    ]
    rows += [result("GSPO", "A", 0, 0.9), result("GSPO", "B", 0, None)]
    print_missing(rows, scores(rows)[1])
    assert capsys.readouterr().out.splitlines() == [
        "grpo: 1 of 3 seeds; the others have a task without a result",
        "GSPO: 0 of 1 seeds; the others have a task without a result",
    ]
