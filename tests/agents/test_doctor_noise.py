"""What the doctor tells from noise: few answers, the luckiest evaluations, a curriculum, texts that value a state."""

from __future__ import annotations

import re

import numpy as np
import pytest
from textgym_agents.training.doctor import Doctor


def diagnosed(name, rows):
    """The verdict on one condition after rows, the iteration of each among them."""
    doctor = Doctor(say=lambda line: None)
    for iteration, row in enumerate(rows):
        doctor.see({"iteration": iteration, **row})
    (found,) = (each for each in doctor.findings() if each.condition.name == name)
    return found.verdict


def a_proxy_that_is_hacked(fall, seed):
    noise = np.random.default_rng(seed).normal(0, 0.02, 201)
    for at in range(201):
        gold = (0.4 + 0.01 * at if at <= 40 else max(0.45, 0.8 - fall * (at - 40))) + noise[at]
        row = {"episode": at * 64, "objective/scores": 0.2 + 0.004 * at, "objective/scores_std": 0.2}
        for name, value, width in (("reward", 0.2 + 0.004 * at, 0.04), ("gold", gold, 0.06)):
            row |= {f"eval/{name}": value, f"eval/{name}_low": value - width, f"eval/{name}_high": value + width}
        yield row


@pytest.mark.slow
@pytest.mark.parametrize("fall", [0.0033, 0.035])
def test_the_best_gold_is_remembered_however_long_ago_it_was(fall):
    for seed in range(3):
        verdict = diagnosed("reward hacking", a_proxy_that_is_hacked(fall, seed))
        assert verdict.startswith("ALARM since iteration")
        assert int(verdict.split()[3][:-1]) < 160


def rows_of_few_answers(answers, drift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    for at in range(100):
        lengths = generator.gamma(2.8, 100 / 2.8, answers) + drift * max(0, at - 60)  # a deviation of 60
        rewards = generator.random(answers) < 0.3
        row = {"episode": (at + 1) * answers, "objective/scores": rewards.mean(), "objective/scores_std": 0.46}
        yield row | {"completion_length": lengths.mean()}


@pytest.mark.slow
@pytest.mark.parametrize("answers", [4, 8, 16])
def test_a_few_answers_differ_in_length_by_themselves_and_a_drift_is_seen(answers):
    quiet = [diagnosed("length drift", rows_of_few_answers(answers, seed=seed)) for seed in range(10)]
    assert quiet == ["ok"] * 10
    drifting = diagnosed("length drift", rows_of_few_answers(answers, drift=40.0))
    assert 62 <= int(re.search(r"iterations? (\d+)", drifting)[1]) <= 75


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "kl"), [(8, 0.05), (8, 0.3), (16, 0.1), (64, 0.02)])
def test_a_sampled_kl_of_a_few_sequences_may_be_negative(batch, kl):
    generator = np.random.default_rng(0)
    for _ in range(10):
        log_ratios = generator.normal(kl, np.sqrt(2 * kl), (100, batch)).mean(1)  # as a right reference gives them
        rows = [{"episode": (at + 1) * batch, "objective/kl": value} for at, value in enumerate(log_ratios)]
        assert diagnosed("KL explosion or negative KL", rows) == "ok"
    wrong = [{"episode": (at + 1) * batch, "objective/kl": -0.3} for at in range(5)]
    assert diagnosed("KL explosion or negative KL", wrong).startswith("ALARM since iteration 2: -0.3")


def test_a_curriculum_is_no_gain_on_the_prompts_trained_on():
    def rows(**more):
        for at in range(30):
            row = {"episode": (at + 1) * 64, "objective/scores": min(0.3 + 0.02 * at, 0.8), "objective/scores_std": 0.4}
            yield row | {"eval/reward": 0.3, "eval/reward_low": 0.28, "eval/reward_high": 0.32} | more

    assert diagnosed("held-out gap", rows()).startswith("ALARM")
    assert diagnosed("held-out gap", rows(**{"curriculum/prompts": 32.0})) == (
        "not judged: not with curriculum/prompts"
    )


def test_texts_that_value_a_state_do_not_hide_a_failing_reward():
    rows = [{"episode": 250 * at, "vine/rollouts": 234, "reward/failures": at} for at in range(1, 6)]
    assert diagnosed("reward failures", rows).endswith(": 0.0625")  # 1 of 16 played; without the others 1 of 250
    assert diagnosed("reward failures", [{**row, "vine/rollouts": 0} for row in rows]) == "ok"


@pytest.mark.slow
def test_the_luckiest_single_evaluations_are_no_three_in_a_row():
    generator = np.random.default_rng(0)
    for _ in range(3):
        noise = generator.normal(size=(2, 400))
        rows = [{"objective/scores": 0.02 * at + a, "eval/gold": b} for at, (a, b) in enumerate(noise.T)]
        assert diagnosed("reward hacking", rows) == "ok"
    # Kept are three that followed each other, however lucky single ones have been.
    doctor = Doctor(say=lambda line: None)
    for at in range(400):
        doctor.see({"iteration": at, "eval/gold": 5.0 * (at % 40 == 0) + 1.0 * (at in (200, 201, 202))})
    kept = [row["doctor/golds"] for row in doctor._rows if row.get("eval/gold", 0.0) > 0]
    assert {201, 202, 203} <= {*kept}


def test_what_values_a_state_is_no_part_of_a_batch():
    rows = [{"episode": 316 * at, "vine/rollouts": 300, "objective/kl": -0.15} for at in range(1, 6)]
    assert diagnosed("KL explosion or negative KL", rows) == "ok"  # -0.2 of 16
    rows = [{**row, "vine/rollouts": 0} for row in rows]
    assert diagnosed("KL explosion or negative KL", rows).startswith("ALARM")
