"""Policies side by side: best-of-n's row against its exact values."""

from dataclasses import replace

import pytest
from textgym_agents.rlhf.pipeline import Contest, Pipeline
from textgym_agents.rlhf.settings import RLHFSettings
from textgym_agents.training.loop import SilentWatcher

from textgym import make_task
from textgym.best_of_n import best_of_n_edges
from textgym.optimum import optimum_of
from textgym.solver import evaluate_edges, solve
from textgym.task import make_reference


@pytest.mark.slow
def test_best_of_n_is_charged_its_own_kl():
    bare = make_task("Stop")
    task = replace(bare, gold=bare.reward)
    solution = solve(task, split="eval")
    edges = best_of_n_edges(solution.tree, solution.log_reference, 16, task.gamma)
    values = evaluate_edges(solution.tree, edges, solution.log_reference, task.beta, task.gamma)
    row = Contest(task, task, make_reference(task)).best_of(16, optimum_of(task), samples=2048)
    assert row.kl.low <= values.kl <= row.kl.high
    assert row.gold == row.proxy
    assert row.optimality is not None
    assert row.optimality.low <= solution.optimality(values.objective) <= row.optimality.high
    assert row.optimality.mean == pytest.approx(0.81, abs=0.02)  # charged the bound it would be 0.72
    # Reward and KL rise together, so that J is known better than either alone would make it.
    width = row.optimality.high - row.optimality.low
    assert width < (row.gold.high - row.gold.low) / (solution.objective - solution.reference_objective)


def test_few_samples_are_made_as_many_as_the_kl_needs():
    bare = make_task("Stop")
    task = replace(bare, gold=bare.reward)
    row = Contest(task, task, make_reference(task)).best_of(2, None, samples=2)
    assert row.kl.mean >= 0
    assert row.optimality is None


def test_gold_judges_where_the_task_pays_something_else(monkeypatch, tmp_path):
    pipeline = Pipeline("textgym/Helpful-v0", RLHFSettings(), tmp_path / "run", SilentWatcher(), {})
    for reward, noisy in (
        ("model", False),
        ({"name": "blurred", "reward": {"name": "length", "target": 8}, "deviation": 0.1}, True),
    ):
        task = make_task("Helpful", reward=reward)
        assert task.noisy is noisy
        monkeypatch.setattr(pipeline, "make_task", lambda reference, task=task: task)
        found = pipeline.gold_task()
        assert (found.reward, found.noisy, found.scorer.name) == (task.gold, False, task.gold_scorer.name)
    plain = make_task("Helpful")
    monkeypatch.setattr(pipeline, "make_task", lambda reference: plain)
    assert pipeline.gold_task() is plain
