"""The doctor names each of eighteen planted failures within five iterations, and leaves what learns alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, tiny_agent, tiny_task
from agents.test_masks import batch_env
from textgym_agents.lm.maths import Targets
from textgym_agents.lm.metrics import warning_signs
from textgym_agents.training.conditions import CONDITIONS, constant_reward, entropy_collapse
from textgym_agents.training.doctor import Doctor

NAMES = [condition.name for condition in CONDITIONS]
HEALTHY = 12  # iterations before a planted failure


def healthy(at):
    """The metrics of an iteration of a run that learns, evaluated every iteration; all eighteen can be judged."""
    score = 0.2 + 0.02 * at
    return {
        "iteration": at,
        "episode": 64 * at,
        "objective/scores": score,
        "objective/scores_std": 0.1,
        "objective/rlhf_reward": score - 0.05 * 0.1 * at,
        "objective/kl": 0.1 * at,
        "objective/beta": 0.05,
        "val/num_eos_tokens": 60.0,
        "completion_length": 12.0 + 0.1 * at,
        "policy/clipfrac_avg": 0.1,
        "policy/entropy_avg": 2.0 - 0.02 * at,
        "policy/grad_scale": 0.9,
        "val/first_kl": 1e-12,
        "val/cut_rate": 0.05,
        "val/equal_groups": 0.3,
        "val/repeated": 0.05,
        "val/explained_variance": 0.2,
        "prompt/openings": 1.0,
        "lr": 1e-3,
        "sampler/mismatch_mean": 0.01,
        "eval/reward": score - 0.01,
        "eval/gold": score - 0.02,
        "learning/tokens": 768 * at,
    }


def flat(name):
    """The value of a metric at the last healthy iteration."""
    return healthy(HEALTHY)[name]


# condition -> what an iteration shows from the onset on, k = 1, 2, ... iterations later, and the number that is told.
# Scores fall by 0.1 below the 0.44 of iteration 12 where the failure costs something.
WORSE = {"objective/scores": 0.1, "objective/rlhf_reward": 0.1}
STILL = {name: flat(name) for name in ("objective/scores", "objective/rlhf_reward")}
PLANTED = {
    "completions cut off by the budget": (lambda k: {"val/cut_rate": 0.9}, (0.05 + 0.9 + 0.9) / 3),
    "all rewards of a group equal": (lambda k: {"val/equal_groups": 1.0}, 1.0),
    "reward constant or NaN": (lambda k: {"objective/scores": 0.0, "objective/scores_std": 0.0}, 0.0),
    "stop token never sampled": (lambda k: {"val/num_eos_tokens": 0.0}, 0.0),
    "chat template or BOS missing or doubled": (lambda k: {"prompt/openings": 2.0}, 2.0),
    "entropy collapse": (lambda k: {"policy/entropy_avg": 0.01, **WORSE}, 0.01),
    "KL explosion or negative KL": (lambda k: {"objective/kl": 30.0 * k, "objective/rlhf_reward": -1.0}, None),
    "ratio not 1 at the first mini-batch": (lambda k: {"val/first_kl": 0.02}, 0.2),  # sqrt(2 * 0.02)
    "clip fraction saturated": (lambda k: {"policy/clipfrac_avg": 0.9}, None),
    "value loss useless": (lambda k: {"val/explained_variance": -1.0, **WORSE}, None),
    "gradient norm always clipped": (lambda k: {"policy/grad_scale": 0.01, **WORSE}, 0.01),
    "learning rate 0": (lambda k: {"lr": 0.0}, 0.0),
    "reward hacking": (lambda k: {"eval/gold": flat("eval/gold") - 0.1 * k}, None),
    "length drift": (lambda k: {"completion_length": 13.0 * 1.5**k, **STILL}, None),
    "repetition": (lambda k: {"val/repeated": 0.9}, (0.05 + 0.9 + 0.9) / 3),
    "held-out gap": (lambda k: {"eval/reward": 0.2, "eval/gold": 0.2}, None),
    "reward failures": (lambda k: {"reward/failures/error": 8.0 * k}, 8 / 192),  # of three batches of 64
    "sampler and trainer disagree": (lambda k: {"sampler/mismatch_mean": 0.3}, (0.01 + 0.01 + 0.3) / 3),
}


def alarms(doctor):
    return {finding.condition.name: finding.alarms for finding in doctor.findings() if finding.alarms}


def test_there_are_eighteen_and_a_healthy_run_has_none():
    assert list(PLANTED) == NAMES
    assert len(set(NAMES)) == 18
    doctor = Doctor()
    assert [line for at in range(1, 200) for line in doctor.see(healthy(at))] == []
    assert [finding.verdict for finding in doctor.findings()] == ["ok"] * 18


def test_the_page_has_all_eighteen_in_their_order():
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    text = text.partition("\n## ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_failure_is_named_within_five_iterations_and_once(name):
    failing, number = PLANTED[name]
    doctor = Doctor()
    lines = [line for at in range(1, HEALTHY + 1) for line in doctor.see(healthy(at))]
    assert lines == []
    for k in range(1, 31):
        lines += doctor.see(healthy(HEALTHY + k) | failing(k))
    (alarm,) = alarms(doctor)[name]  # one onset, though it lasts
    assert alarm.since <= HEALTHY + 5
    assert alarm.last == HEALTHY + 30 or name in ("KL explosion or negative KL", "held-out gap", "length drift")
    if number is not None:
        assert alarm.number == pytest.approx(number)
    condition = CONDITIONS[NAMES.index(name)]
    (line,) = [line for line in lines if f", {name} (" in line]
    assert line == (f"iteration {alarm.since}, {name} ({alarm.number:.3g}): {condition.meaning}; {condition.advice}")


@pytest.mark.parametrize("name", NAMES)
def test_without_its_metrics_a_condition_is_not_judged(name):
    condition = CONDITIONS[NAMES.index(name)]
    for missing in condition.needs:
        gone = {"reward/failures": "learning/tokens"}.get(missing, missing)
        doctor = Doctor()
        for at in range(1, 6):
            doctor.see(
                {
                    key: value
                    for key, value in (healthy(at) | {"reward/failures": 0.0}).items()
                    if key != gone and key != missing
                }
            )
        (finding,) = [each for each in doctor.findings() if each.condition is condition]
        assert finding.verdict.startswith("not judged: needs ")
        assert missing in finding.verdict


def test_an_alarm_that_is_over_is_said_again_when_it_comes_back():
    doctor, lines = Doctor(), []
    for at in range(1, 60):
        lines += doctor.see(healthy(at) | ({"lr": 0.0} if at in (5, 6, 30, 31) else {}))
    assert [line.split(",")[0] for line in lines] == ["iteration 6", "iteration 31"]
    (finding,) = [each for each in doctor.findings() if each.alarms]
    assert finding.verdict == "ok; ALARM in iterations 31 to 31: 0"


def test_what_pays_is_no_alarm():
    """An entropy that is lost, a critic that cannot explain and longer answers, while J rises by 0.02 an iteration."""
    doctor = Doctor()
    for at in range(1, 40):
        row = {
            "policy/entropy_avg": 2.0 * 0.8**at,
            "val/explained_variance": -0.5 if at > 8 else 0.0,
            "completion_length": 10.0 * 1.08**at,
            "policy/grad_scale": 0.1 if at > 8 else 1.0,
        }
        assert doctor.see(healthy(at) | row) == []


def played(entropies=None, scores=None, spread=0.1, lengths=None, batch=256):
    """Rows of a run without KL, from lists of what each iteration shows."""
    count = len(scores)
    spreads = spread if isinstance(spread, list) else [spread] * count
    columns = {
        "policy/entropy_avg": entropies or [2.0] * count,
        "objective/scores": scores,
        "objective/scores_std": spreads,
        "completion_length": lengths or [12.0] * count,
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row | {"iteration": at, "episode": batch * at} for at, row in enumerate(rows, 1)]


CERTAIN = [2.0, 1.6, 1.0, 0.5, 0.1, *[0.05] * 5]


@pytest.mark.parametrize(
    ("entropies", "scores", "spread", "since"),
    [
        # J has gained 0.7, and rewards differ by 0.3 still: what is left is the smaller part.
        (CERTAIN, [0.2, 0.4, 0.6, 0.8, *[0.9] * 6], 0.3, None),
        # It has gained 0.3 and is at its best, but rewards differ by 0.45: prompts are lost on which nothing is tried.
        (CERTAIN, [0.2, 0.3, 0.4, 0.5, *[0.5] * 6], 0.45, 6),
        # It has gained 0.3, more than the spread of 0.1, but it had gained 0.6 before it became certain.
        (CERTAIN, [0.2, 0.7, 0.8, 0.8, *[0.5] * 6], 0.1, 6),
        # Entropy comes back for two batches, which cost something; then J is where it was.
        ([*CERTAIN, 0.3, 0.25, 0.05], [0.2, 0.4, 0.6, 0.8, *[1.0] * 6, 0.7, 0.7, 1.0], [0.3] * 4 + [0.0] * 9, None),
        # Certain from the second batch on: whatever that pays, nothing else was tried.
        ([2.0, 0.01, 0.01], [0.2, 0.9, 0.9], 0.0, 3),
    ],
)
def test_an_entropy_that_is_lost_before_the_reward_is_won(entropies, scores, spread, since):
    doctor = Doctor()
    for row in played(entropies, scores, spread):
        doctor.see(row)
    found = alarms(doctor).get("entropy collapse")
    assert (found and found[0].since) == since


LONGER = [10.0, 10.0, 10.0, 12.0, 14.0, 16.0, 16.0, 16.0, 16.0, 16.0]


@pytest.mark.parametrize(
    ("scores", "lengths", "drifts"),
    [
        ([0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8], LONGER, False),  # J rose with the length
        ([0.5] * 10, LONGER, True),
        ([0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.6, 0.6], LONGER, False),  # and fell while the length stayed
        ([0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6], [10.0] * 6 + LONGER[3:7], True),  # it fell with the length
        # As A2C on Stop: half as long again, by 0.107 better, which is three standard errors.
        (
            [0.54, 0.46, 0.5, 0.58, 0.55, 0.58, 0.63, 0.63, 0.56, 0.63],
            [1.67] * 3 + [1.9, 2.0, 2.1, 2.2] + [2.56] * 3,
            False,
        ),
    ],
)
def test_a_length_that_drifts_with_the_reward_and_without(scores, lengths, drifts):
    doctor = Doctor()
    for row in played(None, scores, 0.32, lengths, batch=64):
        doctor.see(row)
    assert ("length drift" in alarms(doctor)) is drifts


def test_a_reward_that_is_rare_is_not_constant():
    silent = {"objective/scores": 0.0, "objective/scores_std": 0.0, "objective/rlhf_reward": 0.0}
    for found, said in ((0.001, 0), (0.0, 1)):
        doctor = Doctor()
        lines = doctor.see({"iteration": 0, "episode": 0, "eval/reward": found, "learning/tokens": 0})
        for at in range(1, 6):
            row = {name: value for name, value in healthy(at).items() if not name.startswith("eval/")}
            lines += doctor.see(row | silent)
        assert len(lines) == said
        assert all("reward constant or NaN (0): " in line for line in lines)


def test_a_rare_reward_may_fall_silent_and_a_usual_one_may_not():
    silent = {"objective/scores": 0.0, "objective/scores_std": 0.0, "objective/rlhf_reward": 0.0, "eval/reward": 0.001}
    rare, usual = Doctor(), Doctor()
    for at in range(1, 30):
        said = rare.see(healthy(at) | ({} if at % 10 == 5 else silent))
        assert [line for line in said if "NaN" in line] == []
        said = usual.see(healthy(at) | (silent if at > 20 else {}))
        assert [line[:38] for line in said if "NaN" in line] == ["iteration 23, reward constant or NaN ("] * (at == 23)


@pytest.mark.parametrize(("silent", "named"), [(39, False), (40, True)])
def test_a_streak_is_no_alarm_where_few_finds_say_how_rare_the_reward_is(silent, named):
    # After three finds in 12 batches, m silent ones have a chance of 10 * 11 * 12 / ((10 + m) (11 + m) (12 + m)).
    found = {"objective/scores": 0.1, "objective/scores_std": 0.3, "objective/rlhf_reward": 0.1}
    lost = dict.fromkeys(found, 0.0)
    rows = [found if at in (3, 6, 12) else lost for at in range(1, 13)] + [lost] * silent
    value = constant_reward([{"iteration": at, **row} for at, row in enumerate(rows, 1)])
    assert (value is not None) is named


@pytest.mark.parametrize(("spread", "named"), [(0.2, False), (0.6, True)])
def test_what_rewards_still_differ_by_is_the_mean_of_the_last_rows(spread, named):
    rows = [(1.0, 0.0, 0.1)] * 4 + [
        (0.01, 0.5, 0.8),
        (0.01, 0.5, spread),
        (0.01, 0.5, spread),
    ]  # entropy, score, spread
    names = ("policy/entropy_avg", "objective/scores", "objective/scores_std")  # of each row
    rows = [{"episode": 1e4 * at, **dict(zip(names, row, strict=True))} for at, row in enumerate(rows, 1)]
    assert (entropy_collapse(rows) is not None) is named  # a gain of 0.5 against a mean of 0.4 or 0.67, of 0.8 at most


def test_the_best_reward_may_be_constant_and_nan_may_not():
    doctor = Doctor()
    lines = [line for at in range(1, 9) for line in doctor.see(healthy(at))]
    done = {"objective/scores": 1.0, "objective/scores_std": 0.0, "objective/rlhf_reward": 0.9, "eval/reward": 1.0}
    lines += [line for at in range(9, 20) for line in doctor.see(healthy(at) | done | {"val/equal_groups": 1.0})]
    assert lines == []
    (line,) = doctor.see(healthy(20) | {"objective/scores": None})  # as a log has it
    assert line.startswith("iteration 20, reward constant or NaN (objective/scores is nan): no finite number")


def test_a_gap_has_to_last_and_a_batch_of_equal_rewards_says_nothing_of_a_critic():
    gap = PLANTED["held-out gap"][0]
    useless = {"val/explained_variance": -50.0, **WORSE}
    for name, rows, named in (
        ("held-out gap", [gap(1), {}, gap(1), {}], False),  # every other evaluation
        ("held-out gap", [gap(1), gap(1)], True),
        ("value loss useless", [useless | {"objective/scores_std": 0.0}] * 6, False),
        ("value loss useless", [useless] * 6, True),
        ("value loss useless", [useless, useless, WORSE, useless, WORSE | {"val/explained_variance": 0.0}] * 2, False),
        ("value loss useless", [useless, useless, WORSE | {"val/explained_variance": 0.0}, useless, useless], True),
    ):
        doctor = Doctor()
        for at, row in enumerate([{}] * HEALTHY + rows, 1):
            doctor.see(healthy(at) | row)
        assert (name in alarms(doctor)) is named


def test_a_negative_kl_is_named():
    doctor = Doctor()
    lines = [line for at in range(1, 9) for line in doctor.see(healthy(at) | {"objective/kl": -0.2})]
    assert lines[0].startswith("iteration 3, KL explosion or negative KL (-0.2): ")
    assert len(lines) == 1


def test_signs_of_a_rollout_by_hand():
    agent = tiny_agent(task := tiny_task())
    env = batch_env(task, 4)
    rollout = agent._collect(env, agent.policy, 0, task.vocabulary.stop_ids)
    tokens = torch.tensor([0, 1, 2, 0, STOP, 0, 0, 0, 0, 1])  # a b c | a <end> | a a a | a b, which a limit stopped
    lengths = np.array([3, 2, 3, 2])
    rollout = dataclasses.replace(
        rollout,
        actions=tokens,
        lengths=lengths,
        rows=np.repeat(np.arange(4), lengths),
        steps=np.array([0, 1, 2, 0, 1, 0, 1, 2, 0, 1]),
        rewards=np.array([0, 0, 1.0, 0, 1.0, 0, 0, 0.5, 0, 0.25]),
        stopped=np.array([False, True, False, False]),
        truncated=np.array([False, False, False, True]),
    )
    returns, values = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0, 3.0, 4.0])
    targets = Targets(returns, returns, values, 0.0, np.zeros(4))
    signs = warning_signs(rollout, targets, task, 2)
    # Groups pay 1, 1 and 0.5, 0.25. Errors 1, 0, 0, 0 have the variance 3/16, returns 5/4.
    assert signs["val/cut_rate"] == 0.5
    assert signs["val/equal_groups"] == 0.5
    assert signs["val/explained_variance"] == pytest.approx(1 - 3 / 20)
    assert signs["val/repeated"] == 0.0
    looped = dataclasses.replace(
        rollout, actions=torch.tensor([0] * 5 + [1] * 5), rows=np.repeat([0, 1], 5), lengths=np.array([5, 5])
    )
    critic_free = dataclasses.replace(targets, returns=None, old_values=None)
    signs = warning_signs(looped, critic_free, task, 1)
    assert signs["val/repeated"] == pytest.approx(4 / 6)  # of three equal trigrams in each row two have stood before
    assert signs.keys() == {"val/cut_rate", "val/repeated"}


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 50, 100])
def test_noise_is_no_gap_however_far_apart_evaluations_are(every):
    rng = np.random.default_rng(every)
    for _ in range(10):
        doctor = Doctor()
        for at in range(1, 401):
            scores = rng.normal(0.0, 1.0, 64)
            row = {"iteration": at, "episode": 64 * at, "objective/scores": float(scores.mean())}
            row["objective/scores_std"] = float(scores.std())
            doctor.see(row | ({} if at % every else {"eval/reward": 0.0}))
        assert "held-out gap" not in alarms(doctor)


def trl(step):
    return type("State", (), {"is_world_process_zero": True, "global_step": step})()


@pytest.mark.parametrize(("every", "held", "found"), [(30, 1.0, False), (30, 0.0, True), (100, 0.0, True)])
def test_a_gap_counts_from_the_first_evaluation_however_late_it_is(every, held, found):
    doctor, total = Doctor(), 4 * every
    for step in range(1, total + 1):
        reward = min(1.0, step / (25 if held else total))
        doctor.on_log(None, trl(step), None, {"reward": reward, "reward_std": 0.1})
        if step % every == 0:
            doctor.on_log(None, trl(step), None, {"eval_reward": held * reward})
    assert ("held-out gap" in alarms(doctor)) == found


def test_the_best_j_is_remembered_however_long_ago_it_was():
    doctor = Doctor()
    for at in range(1, 401):
        reward = min(1.0, at / 40) if at <= 60 else 1.0 - 0.002 * (at - 60)
        row = {"iteration": at, "episode": 64 * at, "objective/scores": reward, "objective/scores_std": 0.3}
        doctor.see(row | {"objective/rlhf_reward": reward, "objective/kl": min(2 + max(0, at - 60) * 0.3, 60)})
    (far,) = (each for each in doctor.findings() if each.condition.name.startswith("KL") and each.alarms)
    assert len(far.alarms) == 1
    assert far.verdict.startswith("ALARM since")


def test_a_rare_reward_is_none_that_is_constant_however_long_the_run():
    doctor = Doctor()
    for at in range(1, 241):
        hit = at % 40 == 4
        doctor.see({"iteration": at, "objective/scores": 0.01 * hit, "objective/scores_std": 0.1 * hit})
    constant = next(each for each in doctor.findings() if each.condition.check is constant_reward)
    assert [each.since for each in constant.alarms] == [3]


def test_rounding_of_large_scores_is_no_batch_that_varied():
    doctor = Doctor()
    for at in range(1, 82):
        hit = at == 51  # one batch in 81 earns
        row = {"objective/scores": 1000.1 + hit, "objective/scores_std": 8.0 if hit else 6.2e-5, "episode": 64 * at}
        doctor.see(row | ({"eval/reward": 1001.0} if at == 1 else {}))
    assert not alarms(doctor)
