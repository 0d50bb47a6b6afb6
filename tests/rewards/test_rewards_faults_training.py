"""Failures of a reward are counted where people look: in the rows of a training, in evaluations, on the terminal."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents.counting_agent import CountingAgent
from cli_tools import child
from faulty_rewards import Faulty
from textgym_agents.config import TrainSettings
from textgym_agents.training.loop import Training

from textgym import make_task
from textgym.evaluate import evaluate
from textgym.rewards import TextGymWarning

TASK: dict[str, Any] = {
    "tokenizer": ["<end>", "bad", "ok"],
    "stop": "<end>",
    "reference": "uniform",
    "prompts": ["ok"],
    "max_new_tokens": 2,
    "reward": Faulty("raises"),
    "on_error": "penalty",
    "beta": 1.0,
}


class Playing(CountingAgent):
    """Plays what it learns from: at random, one batch an iteration."""

    def learn(self, env: Any, episodes: int, callback: Any = None) -> None:
        generator = np.random.default_rng(0)

        def play(metrics: Any) -> Any:
            env.reset(seed=0)
            for _ in range(2):
                env.step(generator.integers(3, size=env.num_envs))
            return callback(metrics)

        super().learn(env, episodes, play)


class Quiet:
    """A watcher that keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def stage(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def iteration(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


@pytest.mark.slow
def test_a_training_logs_how_often_its_reward_failed(tmp_path: Path) -> None:
    watcher = Quiet()
    plan = TrainSettings(
        id="textgym/Text-v0",
        agent="test_rewards_faults_training:Playing",
        env={**TASK, "reward": "faulty_rewards:raising"},
        config={"batch": 32},
        episodes=96,
        eval_every=1,
        eval_per_prompt=8,
        final_per_prompt=8,
        optimum_per_prompt=8,
        samples=0,
    )
    training = Training(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextGymWarning)
        training.run(tmp_path / "run", watcher)
    counts = [row.get("reward/failures/raises", 0) for row in watcher.rows]
    # Evaluations are counted apart: nothing before the first episode, and only training's in the end.
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 0 < counts[-1] <= 96
    assert counts[-1] == training.task.scorer.failures["raises"]
    assert watcher.rows[0]["eval/failures/raises"] > 0
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("reward/failures/raises", 0) for row in logged] == counts


def test_an_evaluation_counts_its_own_failures_and_averages_the_rest() -> None:
    from textgym.task import make_reference

    task = make_task("Text", **TASK)
    with pytest.warns(TextGymWarning):
        found = evaluate(make_reference(task), task, beta=0.0, per_prompt=200)
    bad = np.array(["bad" in text for text in found.episodes.completions.ravel()])
    assert 0 < bad.sum() < 200
    assert found.failures == {"raises": bad.sum()}
    assert task.scorer.failures == {}
    lengths = np.array([len(text) for text in found.episodes.completions.ravel()])
    assert found.reward_terms["Faulty"] == pytest.approx(lengths[~bad].mean())
    # Exact: "" pays 0, "ok" then nothing 2, "ok ok" 5, and whatever holds "bad" -1, each branch with probability 1/3.
    assert found.reward.mean == pytest.approx((0 + (2 + 5 - 1) / 3 - 1) / 3)


def test_a_term_that_no_completion_has_is_nan() -> None:
    from textgym.task import make_reference

    task = make_task("Text", **{**TASK, "prompts": ["bad"], "reward": abstaining})
    found = evaluate(make_reference(task), task, beta=0.0, per_prompt=4)
    assert math.isnan(found.reward_terms["abstaining"])
    assert found.failures == {}


def abstaining(prompts: list[str], completions: list[str], **columns: Any) -> list[None]:
    """Never has anything to say."""
    return [None] * len(prompts)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_the_eval_command_shows_failures(as_json: bool) -> None:
    words = ["eval", "Text-v0", "--agent", "random", "--per-prompt", "40", "--beta", "0"]
    words += ["--json"] * as_json + ["--env", "reward=faulty_rewards:raising", "on_error=skip"]
    words += [
        'tokenizer=["bad","ok","."]',
        'prompts=["ok"]',
        "stop=.",
        "reference=uniform",
        "max_new_tokens=2",
    ]
    done = child(*words, before=f"sys.path.insert(0, {str(Path(__file__).parent)!r})")
    assert done.returncode == 0, done.stderr
    assert "raised KeyError" in done.stderr
    if as_json:
        assert 0 < json.loads(done.stdout)["failures"]["raises"] < 40
    else:
        row = next(line for line in done.stdout.splitlines() if "failures: raises" in line)
        assert 0 < int(row.split()[-1]) < 40
