"""The diagnostic tasks as environments: ids, difficulties, listing, Gymnasium's checker, pickling."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from cli_tools import run
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env, data_equivalence

from textgym.task import make_task, task_entry, task_names

RANGES = {
    "Bandit": (1, 12),
    "BetaSweep": (0, 6),
    "BigVocab": (0, 6),
    "Copy": (2, 5),
    "Deceptive": (2, 16),
    "DeepSea": (1, 18),
    "Delayed": (1, 12),
    "Distractor": (2, 24),
    "Noisy": (0, 20),
    "Recall": (1, 6),
    "Reverse": (2, 5),
    "Scale": (0, 4),
    "Stop": (1, 8),
    "TwoModes": (1, 10),
}
every_name = pytest.mark.parametrize("name", sorted(RANGES))


def make(name: str, **options: Any) -> Any:
    return gym.make(f"textgym/{name}-v0", **options)


# What is refused


@every_name
def test_every_difficulty_in_range_makes_a_task_and_no_other(name: str) -> None:
    low, high = RANGES[name]
    for difficulty in (low, high):
        env = make(name, difficulty=difficulty)
        env.reset(seed=0)
        assert EnvSpec.from_json(env.spec.to_json()).kwargs["difficulty"] == difficulty
    for wrong in (low - 1, high + 1, True, 1.5, "2", None):
        with pytest.raises(ValueError, match=rf"difficulty={wrong!r}: allowed is .*{low}\.\.{high} \("):
            make_task(name, difficulty=wrong)


def test_a_misspelt_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"argument 'dificulty'.* Did you mean 'difficulty'"):
        make_task("Bandit", dificulty=1)


def test_a_reference_is_a_name_or_gives_log_probabilities() -> None:
    with pytest.raises(TypeError, match=r"reference=3: allowed are 'builtin', 'uniform', a model's folder"):
        make_task("Bandit", reference=3)
    for name in ("Bandit", "Text"):
        with pytest.raises(ValueError, match=r"^reference='': allowed are 'builtin', 'uniform', a model's folder"):
            make_task(name, reference="")


# The environments


def test_they_are_the_family_diagnostics() -> None:
    assert {name for name in task_names() if task_entry(name).family == "diagnostics"} == set(RANGES)


def test_textgym_list_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["id"]: row for row in json.loads(run(capsys, "list", "--json")[1])}
    for name in RANGES:
        row = rows[f"textgym/{name}-v0"]
        assert row["family"] == "diagnostics"
        assert row["gold"] is True
        assert row["reference"] == ("2-gram" if name == "TwoModes" else "uniform")
        assert row["summary"] == task_entry(name).summary


@every_name
def test_gymnasium_s_checker_has_nothing_to_say(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(name).unwrapped)


@every_name
def test_an_environment_survives_pickling_in_the_middle_of_an_episode(name: str) -> None:
    env = make(name)
    env.reset(seed=4)
    copy = pickle.loads(pickle.dumps(env))
    ended = False
    while not ended:
        action = int(np.flatnonzero(env.unwrapped.action_masks())[0])
        events = env.step(action), copy.step(action)
        ended = events[0][2]
        assert data_equivalence(*events, exact=True)
    assert data_equivalence(env.reset(), copy.reset(), exact=True)
