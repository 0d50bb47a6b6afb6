"""The VecEnv adapter equals DummyVecEnv over single environments, and answers what SB3 asks of one."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import CountA, gold_length, odd_after_even, seed_noise, word_task
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from textgym_agents.sb3.vec_env import SB3VecEnv

from textgym import make_task
from textgym.env import TokenEnv
from textgym.vector import TokenVectorEnv
from textgym.wrappers import (
    LMFeatures,
    ReferenceReward,
    TopKActions,
    VectorActionMaskInfo,
    VectorLMFeatures,
    VectorReferenceReward,
    VectorTopKActions,
)

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
TASKS: dict[str, dict[str, Any]] = {
    "gold": {"gold": gold_length},
    "noisy": {"reward": seed_noise, "noisy": True, "mask": odd_after_even},
    "dense": {"reward": CountA("difference", 0.9), "gamma": 0.9, "gold": gold_length},
}


def same(ours: Any, theirs: Any, where: Any) -> None:
    """Equal values of equal types, all the way down."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), (where, ours, theirs)
        for name in ours:
            same(ours[name], theirs[name], (where, name))
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, (where, number))
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        np.testing.assert_array_equal(ours, theirs, err_msg=str(where))
    else:
        assert ours == theirs, where


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("steps", [2_000, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_it_equals_dummy_vec_env_for_thousands_of_steps(kind: str, mode: AutoresetMode, steps: int) -> None:
    task, rows = word_task(**TASKS[kind]), 8
    theirs = DummyVecEnv([functools.partial(TokenEnv, task)] * rows)
    ours = SB3VecEnv(TokenVectorEnv(task, rows, autoreset_mode=mode))
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    ours.seed(7)
    theirs.seed(7)
    same(dict(ours.reset()), dict(theirs.reset()), "reset")
    rng = np.random.default_rng(0)
    ends = 0
    for step in range(steps // rows):
        actions = rng.integers(0, task.vocabulary.size, rows)
        mine, other = ours.step(actions), theirs.step(actions)
        same([dict(mine[0]), *mine[1:]], [dict(other[0]), *other[1:]], step)
        same(ours.reset_infos, theirs.reset_infos, step)
        if step % 50 == 0:
            same(ours.env_method("action_masks"), theirs.env_method("action_masks"), step)
        ends += int(mine[2].sum())
    assert ends > steps / 10


def test_options_choose_the_prompts_once() -> None:
    task = word_task()
    env = SB3VecEnv(TokenVectorEnv(task, 2, autoreset_mode=AutoresetMode.SAME_STEP))
    texts = [prompt.text for prompt in task.encoded("train")][:2]
    env.set_options([{"prompt": texts[1]}, {"prompt": texts[0]}])
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == [texts[1], texts[0]]
    env.set_options([{"prompt": texts[0]}, {}])
    with pytest.raises(ValueError, match="same names in every row"):
        env.reset()


def test_a_later_reset_goes_on_with_the_generators() -> None:
    """Seeds count once, as in DummyVecEnv."""
    task = word_task()
    ours = SB3VecEnv(TokenVectorEnv(task, 3, autoreset_mode=AutoresetMode.DISABLED))
    theirs = DummyVecEnv([functools.partial(TokenEnv, task)] * 3)
    for env in (ours, theirs):
        env.seed(3)
        env.reset()
    for _ in range(5):
        same(dict(ours.reset()), dict(theirs.reset()), "reset")


def test_attributes_and_methods_of_rows() -> None:
    task = word_task(mask=odd_after_even)
    env = SB3VecEnv(TokenVectorEnv(task, 3, autoreset_mode=AutoresetMode.SAME_STEP))
    env.seed(0)
    env.reset()
    assert env.get_attr("task") == [task] * 3
    assert env.get_attr("np_random_seed", [0, 2]) == [0, 2]
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_attribute")
    states = env.env_method("get_state")
    env.step(np.zeros(3, dtype=np.int64))
    restored = env.env_method("set_state", states[1], indices=1)[0]
    assert restored["attention_mask"].sum() == len(states[1].tokens)
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], env.venv.action_masks()[2])
    np.testing.assert_array_equal(env.get_attr("action_masks", 0)[0](), env.venv.action_masks()[0])
    with pytest.raises(AttributeError, match="Did you mean 'get_state'"):
        env.env_method("get_stat")
    with pytest.raises(ValueError, match="shared by all rows"):
        env.set_attr("split", "eval", indices=0)


@pytest.mark.parametrize("features", [False, True])
def test_attributes_and_methods_of_wrapped_rows(features: bool) -> None:
    """A row answers as the wrapped single environment does."""
    task = make_task("Helpful", max_new_tokens=3)
    inner = TokenVectorEnv(task, 3, autoreset_mode=AutoresetMode.SAME_STEP)
    rows: Any = VectorTopKActions(VectorReferenceReward(inner), 4)
    single: Any = TopKActions(ReferenceReward(TokenEnv(task)), 4)
    env = SB3VecEnv(VectorLMFeatures(rows) if features else rows)
    single = LMFeatures(single) if features else single
    env.seed(0)
    env.reset()
    env.step(np.array([0, 1, 2]))
    states = env.env_method("get_state")
    env.step(np.zeros(3, dtype=np.int64))
    single.reset(seed=0)
    want = single.get_wrapper_attr("set_state")(states[2])
    restored = env.env_method("set_state", states[2], indices=1)[0]
    assert env.env_method("get_state", indices=1)[0].tokens == states[2].tokens
    if features:
        np.testing.assert_allclose(restored, want, atol=2e-5)
    else:
        same(dict(restored), dict(want), "set_state")
    mask = env.env_method("action_masks", indices=1)[0]
    np.testing.assert_array_equal(mask, single.get_wrapper_attr("action_masks")())
    assert env.get_attr("task") == [task] * 3


def test_wrappers_are_found() -> None:
    class Nothing(VectorWrapper):  # type: ignore[type-arg]
        pass

    inner = TokenVectorEnv(word_task(), 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert SB3VecEnv(Nothing(inner)).env_is_wrapped(Nothing) == [True, True]
    assert SB3VecEnv(inner).env_is_wrapped(Nothing, indices=1) == [False]
    assert SB3VecEnv(inner).env_is_wrapped(Monitor) == [False, False]


class _Cut(TokenVectorEnv):
    """Truncates every episode at five tokens, the prompt included, as an outer time limit would."""

    def step(self, actions: Any) -> Any:
        observation, rewards, terminated, _, infos = super().step(actions)
        return observation, rewards, terminated, observation["attention_mask"].sum(1) >= 5, infos


def test_a_truncated_row_is_reset_and_says_so() -> None:
    task = word_task(max_new_tokens=4)
    env = SB3VecEnv(_Cut(task, 2, autoreset_mode=AutoresetMode.DISABLED))
    env.reset()
    seen = 0
    for _ in range(6):
        observation, _, dones, infos = env.step(np.full(2, 1))
        for row in range(2):
            last = infos[row].get("terminal_observation")
            assert (last is not None) == dones[row]
            if infos[row]["TimeLimit.truncated"]:
                seen += 1
                assert last["attention_mask"].sum() > observation["attention_mask"][row].sum()
    assert seen


@pytest.mark.parametrize("env", [gym.make("CartPole-v1"), None])
def test_what_is_no_vector_environment_is_refused(env: Any) -> None:
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        SB3VecEnv(env)


def test_an_environment_that_resets_a_step_late_is_refused() -> None:
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        SB3VecEnv(TokenVectorEnv(word_task(), 2))


def test_observations_that_a_step_changes_are_refused() -> None:
    env = TokenVectorEnv(word_task(), 2, autoreset_mode=AutoresetMode.SAME_STEP, copy=False)
    for each in (env, RecordEpisodeStatistics(env)):
        with pytest.raises(ValueError, match="copy=False: Stable-Baselines3 keeps observations"):
            SB3VecEnv(each)


@pytest.mark.parametrize("mode", MODES)
def test_infos_of_vector_wrappers_are_of_their_episode(mode: AutoresetMode) -> None:
    if mode is AutoresetMode.SAME_STEP and tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4):
        pytest.skip("before Gymnasium 1.4 the wrapper itself leaves out the first step of every later episode")
    theirs = DummyVecEnv([lambda: gym.wrappers.RecordEpisodeStatistics(TokenEnv("Copy"))] * 2)
    ours = SB3VecEnv(RecordEpisodeStatistics(TokenVectorEnv("Copy", 2, autoreset_mode=mode)))
    for env in (ours, theirs):
        env.seed(0)
        env.reset()
    for _ in range(7):
        found, expected = (env.step(np.array([1, 2]))[3] for env in (ours, theirs))
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert ("episode" in one) == ("terminal_observation" in one)
            if "episode" in one:
                assert (one["episode"]["r"], one["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
        assert [sorted(info) for info in ours.reset_infos] == [["prompt", "prompt_index"]] * 2
    masked = SB3VecEnv(VectorActionMaskInfo(TokenVectorEnv("Copy", 2, autoreset_mode=mode)))
    masked.reset()
    assert all("action_mask" in info for info in masked.step(np.array([1, 2]))[3])
