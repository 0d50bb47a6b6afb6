"""What other libraries read: single wrappers by hand, vector ones against SyncVectorEnv of single ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import gold_length, odd_after_even, word_task
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from textgym.env import TokenEnv
from textgym.vector import TokenVectorEnv
from textgym.wrappers import (
    ActionMaskInfo,
    NoInfo,
    OneHotTokens,
    TopKActions,
    VectorActionMaskInfo,
    VectorNoInfo,
    VectorOneHotTokens,
    VectorTopKActions,
)

MODES = list(AutoresetMode)
STOP = 4  # of the six words
PAIRS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "numbers": (NoInfo, VectorNoInfo),
    "one-hot": (OneHotTokens, VectorOneHotTokens),
    "both": (lambda env: NoInfo(OneHotTokens(env)), lambda env: VectorNoInfo(VectorOneHotTokens(env))),
    "masks": (ActionMaskInfo, VectorActionMaskInfo),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PAIRS)
def test_vector_twins_equal_the_sync_vector_env(kind: str, mode: AutoresetMode) -> None:
    task = word_task(gold=gold_length, mask=odd_after_even)
    one, rows = PAIRS[kind]
    ours = rows(TokenVectorEnv(task, 3, autoreset_mode=mode))
    theirs = SyncVectorEnv([lambda: one(TokenEnv(task))] * 3, autoreset_mode=mode)
    assert ours.observation_space == theirs.observation_space
    assert ours.single_observation_space == theirs.single_observation_space
    left, right = ours.reset(seed=3), theirs.reset(seed=3)
    assert data_equivalence(left, right, exact=True)
    # Row 0 stops at once, the others when the budget is spent; without resets nobody steps on after that.
    steps = [[STOP, 0, 1], [0, 2, 3], [2, 2, 2], [1, STOP, 0]]
    for actions in steps[: 1 if mode is AutoresetMode.DISABLED else 4]:
        left, right = ours.step(np.array(actions)), theirs.step(np.array(actions))
        for infos in (left[-1], right[-1]):  # the one intended difference: nothing is done in an ended state
            infos.get("final_info", {}).pop("action_mask", None)
            infos.get("final_info", {}).pop("_action_mask", None)
        assert data_equivalence(left, right, exact=True), (left, right)


def test_one_hot_by_hand() -> None:
    env = OneHotTokens(TokenEnv("Copy"))  # 8 words, 5 columns of prompt and 3 of answer
    shown, _ = env.reset(seed=0)
    tokens = env.unwrapped.get_state().tokens
    assert shown.shape == env.observation_space.shape == (64,)
    assert shown.dtype == np.float32
    assert np.flatnonzero(shown).tolist() == [8 * place + token for place, token in enumerate(tokens)]
    shown, *_ = env.step(7)
    assert np.flatnonzero(shown).tolist()[-1] == 8 * len(tokens) + 7
    assert shown.max() == 1
    again = env.set_state(env.unwrapped.get_state())
    np.testing.assert_array_equal(again, shown)


def test_no_info_keeps_numbers_alone() -> None:
    env = NoInfo(TokenEnv(word_task(gold=gold_length)))
    assert set(env.reset(seed=0)[1]) == {"prompt_index"}
    assert env.step(0)[-1] == {}
    assert set(env.step(STOP)[-1]) == {"reward_terms", "gold"}


def test_masks_are_those_of_the_wrappers_below_and_sample_takes_them() -> None:
    task = word_task(mask=odd_after_even)
    env = ActionMaskInfo(TopKActions(TokenEnv(task), 3))
    _, info = env.reset(seed=0)
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"].tolist() == env.get_wrapper_attr("action_masks")().tolist()
    *_, info = env.step(0)
    assert info["action_mask"].shape == (3,)
    assert env.action_space.sample(info["action_mask"]) in np.flatnonzero(info["action_mask"])
    rows = VectorActionMaskInfo(
        gym.wrappers.vector.RecordEpisodeStatistics(VectorTopKActions(TokenVectorEnv(task, 2), 3))
    )
    assert rows.reset(seed=0)[1]["action_mask"].shape == (2, 3)
    # The grammar's masks by hand: TokenEnv.action_masks gives them, before and after a step.
    plain, single = ActionMaskInfo(TokenEnv(task)), TokenEnv(task)
    single.reset(seed=1)
    assert plain.reset(seed=1)[1]["action_mask"].tolist() == single.action_masks().astype(int).tolist()
    single.step(0)
    assert plain.step(0)[-1]["action_mask"].tolist() == single.action_masks().astype(int).tolist()


def test_environments_without_masks_are_refused() -> None:
    with pytest.raises(TypeError, match="has no task; allowed are environments of TextGym"):
        ActionMaskInfo(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="has no task; allowed are environments of TextGym"):
        VectorActionMaskInfo(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"))


def test_rows_of_wrappers_are_called_through_them() -> None:
    env = VectorNoInfo(VectorTopKActions(TokenVectorEnv(word_task(), 2), 3))
    env.reset(seed=0)
    assert [mask.shape for mask in env.call("action_masks")] == [(3,), (3,)]
    assert env.get_attr("action_space") == (env.single_action_space,) * 2
