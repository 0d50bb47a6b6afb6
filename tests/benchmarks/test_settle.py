"""J* of a suite's own tasks: worked out with the policies that its cells trained, every score taken from it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from textgym_benchmarks.results.rows import rescored
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suite_folder import cell_folder

from textgym.estimates import Estimate
from textgym.files import plain, read_json
from textgym.optimum import Optimum

WORDS = ["a", *(f"w{i}q" for i in range(40))]
ENV = {"prompts": ["a"], "tokenizer": WORDS, "max_new_tokens": 5, "beta": 0.05}
REWARD = {"name": "contains_all", "words": ["w1q", "w2q", "w3q"]}
CELL = Cell("textgym/Text-v0", "rloo", episodes=1024, seed=0, reward=REWARD, env=ENV, config={"batch": 64})


def optimum(value, reference):
    best, base = (Estimate(x, x, x) for x in (value, reference))
    return Optimum(best, base, 0.1, "eval", np.tile([reference, value], (1000, 1)), 50.0)


def test_scores_by_hand():
    worth = {"mean": 0.5, "low": 0.4, "high": 0.6}
    point = {
        "episode": 0,
        "tokens": 0,
        "optimality": None,
        "objective": 0.5,
        "objective_low": 0.4,
        "objective_high": 0.6,
    }
    last = point | {"episode": 8, "tokens": 90, "objective": 0.75, "objective_low": None, "objective_high": None}
    measures = {"before": {"objective": worth}, "after": {"objective": None}, "curve": [point, last]}
    got = rescored(measures, optimum(0.9, 0.1))
    # (0.5 - 0.1) / 0.8, and 0.1 / 0.8 to each side
    assert got["before"]["optimality"] == pytest.approx({"mean": 0.5, "low": 0.375, "high": 0.625}, abs=2e-3)
    assert got["after"]["optimality"] is None
    assert got["curve"][1]["optimality"] == pytest.approx(0.65 / 0.8)
    assert got["curve"][1]["optimality_low"] is got["curve"][1]["optimality_high"] is None  # as those of its J
    assert got["to_half"] == {"episodes": 0, "tokens": 0}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("save", [False, True])
def test_a_task_that_the_reference_does_not_solve_is_settled_by_what_was_learned(tmp_path, save):
    settings = Evaluation(points=2, per_prompt=64, final_per_prompt=64, optimum_per_prompt=64)
    suite = Suite("own", (CELL,), evaluation=settings)
    (result,) = run_suite(suite, tmp_path, engine="serial", save=save)
    found = result.measures["optimum"]
    assert found["policies"] == 2
    assert (cell_folder(tmp_path, CELL) / "run" / "checkpoint").exists() == save
    if found["value"] is not None:
        assert result.measures["after"]["optimality"]["mean"] <= 1.0 + 0.1
    # A cell that ends later, as one that is tried again, is scored on the same J*.
    if save:
        shutil.rmtree(cell_folder(tmp_path, CELL))
        (late,) = run_suite(suite, tmp_path, engine="serial", save=save)
        assert late.measures["optimum"] == found
    # It is settled once.
    before = read_json(cell_folder(tmp_path, CELL) / "result.json")
    run_suite(suite, tmp_path, engine="serial", save=save)
    assert plain(read_json(cell_folder(tmp_path, CELL) / "result.json")) == plain(before)


def test_a_cell_with_a_reference_of_its_own_keeps_its_j_star(tmp_path):
    # At another temperature the reference is another policy, and J is measured from it.
    cell = replace(CELL, episodes=64, config={"batch": 64, "temperature": 0.5})
    suite = Suite("own", (cell,), evaluation=Evaluation(1, 2, 8, 16, 1))
    (result,) = run_suite(suite, tmp_path, engine="serial")
    assert (result.measures["optimum"]["own"], result.measures["optimum"]["policies"]) == (True, 1)
