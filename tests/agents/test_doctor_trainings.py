"""The doctor beside trainings: failures planted in them, other trainers, the command, and agents that learn."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from agents.enumerated import WORDS, tiny_agent, tiny_task
from agents.test_doctor import NAMES, alarms, healthy
from agents.test_masks import batch_env
from cli_tools import run
from lm.tiny_models import tiny_llama
from textgym_agents import make_agent, make_env
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.config import TrainSettings
from textgym_agents.training.doctor import Doctor
from textgym_agents.training.loop import SilentWatcher, Training
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        pytest.param("Copy-v0", "lm-ppo", 4096, marks=pytest.mark.long),
        ("Stop-v0", "rloo", 2048),
        pytest.param("DeepSea-v0", "rloo", 4096, marks=pytest.mark.long),
    ],
)
def test_an_agent_that_learns_raises_no_alarm(tmp_path, env, agent, episodes):
    settings = TrainSettings(f"textgym/{env}", agent, episodes, {"device": "cpu"}, optimum_per_prompt=0, track="")
    watcher = Noting()
    result = Training(settings, pictures=False).run(tmp_path / "run", watcher)
    assert result.after["eval/reward"] > 0.2 + result.before["eval/reward"]
    assert [note for note in watcher.notes if note.startswith("iteration ")] == []


@pytest.mark.long
def test_helpful_raises_no_alarm(tmp_path):
    settings = TrainSettings("textgym/Helpful-v0", "rloo", 1536, {"device": "cpu", "batch": 128}, track="")
    watcher = Noting()
    result = Training(settings, pictures=False).run(tmp_path / "run", watcher)
    assert result.after["eval/optimality"] > 0.4
    assert [note for note in watcher.notes if note.startswith("iteration ")] == []
