"""The doctor names each of eighteen planted failures within five iterations, and leaves what learns alone."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, WORDS, tiny_agent, tiny_task
from agents.test_masks import batch_env
from cli_tools import run
from lm.tiny_models import tiny_llama
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.config import TrainSettings
from textgym_agents.lm.maths import Targets
from textgym_agents.lm.metrics import warning_signs
from textgym_agents.training.conditions import CONDITIONS, constant_reward, entropy_collapse
from textgym_agents.training.doctor import Doctor
from textgym_agents.training.loop import SilentWatcher, Training
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

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


def test_tasks_without_a_stop_token_are_not_asked_about_stopping():
    agent = make_agent("rloo", env := make_env("textgym/Copy-v0", 8), batch=8, device="cpu")
    agent.learn(env, 16, doctor := Doctor())
    verdicts = {finding.condition.name: finding.verdict for finding in doctor.findings()}
    assert verdicts["stop token never sampled"] == "not judged: needs val/cut_rate"
    assert verdicts["completions cut off by the budget"] == "not judged: needs val/cut_rate"


def learned(agent_type=RLOO, episodes=128, change=lambda agent: None, task=None, **settings):
    """What the doctor says of a training on the tiny task, and at which iteration."""
    task = task or tiny_task()
    config = agent_type.config_type(**{"device": "cpu", "batch": 16, "learning_rate": 0.003, **settings})
    agent = agent_type(task, config, model=tiny_llama(len(WORDS)))
    change(agent)
    env, doctor = batch_env(task, config.batch), Doctor(task, say=lambda line: None)
    agent.learn(env, episodes, doctor)
    return {name: found[0].since for name, found in alarms(doctor).items()}


def sampled(agent, change):
    """Let an agent see another rollout than it has sampled."""
    collect = agent._collect
    agent._collect = lambda *arguments: change(collect(*arguments))


def noise(rollout, size):
    return size * torch.randn(rollout.values.shape, generator=torch.Generator().manual_seed(0))


def by_prompt(prompts, completions, **columns):
    return [float(prompt == "c") for prompt in prompts]


def constant(prompts, completions, **columns):
    return [0.5 for _ in completions]


def broken(prompts, completions, **columns):
    return [None if len(text) > 1 else 1.0 for text in completions]


LIVE = {
    "all rewards of a group equal": lambda: learned(task=tiny_task(reward=by_prompt)),
    "reward constant or NaN": lambda: learned(task=tiny_task(reward=constant)),
    "completions cut off by the budget": lambda: learned(task=tiny_task(max_new_tokens=1)),
    "stop token never sampled": lambda: learned(task=tiny_task(max_new_tokens=2, min_new_tokens=2)),
    "ratio not 1 at the first mini-batch": lambda: learned(
        change=lambda agent: sampled(
            agent, lambda rollout: dataclasses.replace(rollout, log_probs=rollout.log_probs + noise(rollout, 0.2))
        )
    ),
    "clip fraction saturated": lambda: learned(clip=1e-5),
    "gradient norm always clipped": lambda: learned(max_grad_norm=1e-9),
    "learning rate 0": lambda: learned(change=lambda agent: setattr(agent, "learning_rate", 0.0)),
    "entropy collapse": lambda: learned(learning_rate=1.0),
    "value loss useless": lambda: learned(
        agent_type=type(tiny_agent()),
        learning_rate=1e-6,
        change=lambda agent: sampled(
            agent, lambda rollout: dataclasses.replace(rollout, values=rollout.values + noise(rollout, 5.0))
        ),
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_failure_planted_in_a_training_is_named(name):
    found = LIVE[name]()
    assert found[name] <= 5


def test_a_trainer_of_transformers_is_heard():
    """The names are those of TRL's GRPO trainer; its KL is a mean over tokens."""
    said = []
    doctor, state, control = Doctor(say=said.append), TrainerState(), TrainerControl()
    handler = CallbackHandler([doctor], None, None, None, None)
    handler.on_train_begin(None, state, control)
    row = {"reward": 0.3, "reward_std": 0.1, "kl": 0.01, "entropy": 1.0, "learning_rate": 1e-6, "grad_norm": 4.0}
    row |= {"completions/mean_length": 50.0, "completions/clipped_ratio": 1.0, "frac_reward_zero_std": 1.0}
    for step in range(1, 7):
        state.global_step = step
        handler.on_log(SimpleNamespace(max_grad_norm=1.0), state, control, {**row, "kl": 1.0 * step})
    found = alarms(doctor)
    assert found["KL explosion or negative KL"][0].number == pytest.approx(100.0)  # (1 + 2 + 3) / 3 nats, 50 tokens
    assert found.keys() == {
        "completions cut off by the budget",
        "all rewards of a group equal",
        "stop token never sampled",
        "gradient norm always clipped",
        "KL explosion or negative KL",
    }
    assert len(said) == 5
    with pytest.raises(AttributeError, match="has no attribute 'oops'"):
        doctor.oops  # noqa: B018


def test_no_row_can_break_a_training():
    names = [
        *healthy(1),
        "kl",
        "reward",
        "probe",
        "completions/clipped_ratio",
        "reward/failures/error",
        "objective/entropy",
    ]
    for strange in (None, math.nan, math.inf, -math.inf, 0.0, -1e300, True):
        for name in names:
            doctor = Doctor()
            for at in range(1, 9):
                doctor.see({**healthy(at), name: strange} | ({"iteration": at, "episode": at} if at < 4 else {}))
                doctor.see({name: strange} if name != "iteration" else {"text": "no number"})
    for row in ({}, {"kl": "much", "completion_length": 3.0}, {"probe": 1.0}, {"eval/gold": 1.0, "eval/reward": 0.5}):
        doctor = Doctor()
        assert [doctor.see(row) for _ in range(5)] == [[]] * 5


class Noting(SilentWatcher):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_run_is_told_live_and_afterwards(tmp_path, capsys):
    settings = TrainSettings(
        "textgym/Stop-v0",
        "rloo",
        96,
        {"batch": 16, "device": "cpu", "max_grad_norm": 1e-9},
        eval_every=0,
        optimum_per_prompt=0,
        track="",
    )
    watcher = Noting()
    Training(settings, pictures=False).run(tmp_path / "run", watcher)
    told = [note for note in watcher.notes if note.startswith("iteration ")]
    assert any(", gradient norm always clipped (" in note for note in told)
    code, out, err = run(capsys, "doctor", str(tmp_path / "run"), "--json", "--strict")
    assert code == 1
    rows = {row["condition"]: row for row in json.loads(out)}
    assert list(rows) == NAMES
    assert sum(len(row["alarms"]) for row in rows.values()) == len(told)
    assert rows["sampler and trainer disagree"]["verdict"] == "not judged"
    code, out, err = run(capsys, "doctor", str(tmp_path / "run"))
    assert (code, err) == (0, "")
    assert "ALARM since iteration 5: " in " ".join(out.split())
    assert "written at iteration 6: " in out
    assert re.search(r"^1 alarm, \d+ ok, \d+ not judged$", out, re.MULTILINE)
    shutil.copytree(tmp_path / "run", tmp_path / "cell" / "run")
    code, out, err = run(capsys, "doctor", str(tmp_path / "run"), str(tmp_path / "cell" / "run"), "--strict")
    assert (code, err) == (1, "")
    assert " cell " in out
    assert " ".join(out.split()).count("gradient norm always clipped: ALARM since iteration 5: ") == 2
    assert "2 of 2 runs have alarms" in out
    code, out, err = run(capsys, "doctor", str(tmp_path / "nothing"))
    assert code != 0
    assert "no run is there" in err
    code, out, err = run(capsys, "doctor")
    assert code != 0
    assert "RUN: none is given" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "agent", "episodes"),
    [
        pytest.param("Copy-v0", "lm-ppo", 4096, marks=pytest.mark.learning),
        ("Stop-v0", "rloo", 2048),
        pytest.param("DeepSea-v0", "rloo", 4096, marks=pytest.mark.learning),
    ],
)
def test_an_agent_that_learns_raises_no_alarm(tmp_path, env, agent, episodes):
    settings = TrainSettings(f"textgym/{env}", agent, episodes, {"device": "cpu"}, optimum_per_prompt=0, track="")
    watcher = Noting()
    result = Training(settings, pictures=False).run(tmp_path / "run", watcher)
    assert result.after["eval/reward"] > 0.2 + result.before["eval/reward"]
    assert watcher.notes == []


@pytest.mark.learning
def test_helpful_raises_no_alarm(tmp_path):
    settings = TrainSettings("textgym/Helpful-v0", "rloo", 1536, {"device": "cpu", "batch": 128}, track="")
    watcher = Noting()
    result = Training(settings, pictures=False).run(tmp_path / "run", watcher)
    assert result.after["eval/optimality"] > 0.4
    assert [note for note in watcher.notes if note.startswith("iteration ")] == []
