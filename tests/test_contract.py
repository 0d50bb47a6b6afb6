"""What holds for every registered id, whatever the task."""

from __future__ import annotations

from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textgym.env import TokenEnv
from textgym.prompts import Split
from textgym.task import task_entry, task_names

IDS = [task_entry(name).id for name in task_names()]
every_id = pytest.mark.parametrize("name", IDS)
every_split = pytest.mark.parametrize("split", get_args(Split))


def life(env: gym.Env[Any, Any], seed: int, steps: int) -> list[Any]:
    """What happens to allowed random actions."""
    rng = np.random.default_rng(seed)
    events: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        mask = env.unwrapped.action_masks()  # type: ignore[attr-defined]
        events.append(env.step(int(rng.choice(np.flatnonzero(mask)))))
        if events[-1][2]:
            events.append(env.reset())
    return events


@every_id
@every_split
def test_observations_and_infos_have_one_form(name: str, split: Split) -> None:
    env = gym.make(name, split=split)
    assert env.observation_space == gym.make(name).observation_space
    task = env.unwrapped.task  # type: ignore[attr-defined]
    assert isinstance(env.unwrapped, TokenEnv)
    assert task_entry(task.name).summary
    assert task.family
    width = task.max_prompt_tokens + task.max_new_tokens
    final: set[tuple[Any, ...]] = set()
    for event in life(env, 0, 300):
        observation, info = event[0], event[-1]
        assert observation in env.observation_space
        length = observation["attention_mask"].sum()
        assert observation["attention_mask"].tolist() == [1] * length + [0] * (width - length)
        assert (observation["input_ids"][length:] == task.vocabulary.pad_id).all()
        if len(event) == 2:
            assert [(key, type(value)) for key, value in info.items()] == [
                ("prompt", str),
                ("prompt_index", int),
            ]
        elif not event[2]:
            assert info == {}
        else:
            assert event[3] is False
            assert type(event[1]) is float
            terms = tuple((key, type(value)) for key, value in info["reward_terms"].items())
            final.add((tuple((key, type(value)) for key, value in info.items()), terms))
    assert len(final) == 1


@every_id
def test_a_seed_is_a_life_and_a_spec_is_an_environment(name: str) -> None:
    env = gym.make(name)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))  # type: ignore[union-attr]
    lives = [life(each, 3, 150) for each in (env, again, env)]
    assert data_equivalence(lives[0], lives[1], exact=True)
    assert data_equivalence(lives[0], lives[2], exact=True)
    assert not data_equivalence(lives[0], life(env, 4, 150), exact=True)


@every_id
@pytest.mark.parametrize(
    ("mode", "split"),
    [
        (AutoresetMode.NEXT_STEP, "train"),
        (AutoresetMode.SAME_STEP, "train"),
        (AutoresetMode.SAME_STEP, "eval"),
        (AutoresetMode.SAME_STEP, "tune"),
    ],
)
def test_the_vector_environment_is_the_single_one_side_by_side(name: str, mode: AutoresetMode, split: Split) -> None:
    ours = gym.make_vec(name, num_envs=3, split=split, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: gym.make(name, split=split)] * 3, autoreset_mode=mode)
    assert data_equivalence(ours.reset(seed=1), theirs.reset(seed=1), exact=True)
    assert ours.action_space == theirs.action_space
    size = ours.single_action_space.n  # type: ignore[attr-defined]
    stop = theirs.envs[0].unwrapped.task.vocabulary.stop_ids[:1] or (0,)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = np.where(rng.random(3) < 0.1, stop[0], rng.integers(0, size, 3))
        assert data_equivalence(ours.step(actions), theirs.step(actions), exact=True)
