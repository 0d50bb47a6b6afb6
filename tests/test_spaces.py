"""Samplers of action spaces take the masks of environments as they are, and draw what Gymnasium's draw."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from textgym.wrappers import AllowedActions, VectorAllowedActions


def single() -> Any:
    return gym.make("textgym/Json-v0")


ENVS = {
    "single": single,
    "wrapped": lambda: AllowedActions(single().unwrapped),
    "vector": lambda: gym.make_vec("textgym/Json-v0", num_envs=3),
    "wrapped vector": lambda: VectorAllowedActions(gym.make_vec("textgym/Json-v0", num_envs=3, segments=True)),
    "sync": lambda: SyncVectorEnv([single] * 3),
}


@pytest.mark.parametrize("name", ENVS)
def test_a_mask_is_sampled_without_a_cast(name: str) -> None:
    env = ENVS[name]()
    env.reset(seed=0)
    mask = np.array(env.call("action_masks")) if name == "sync" else env.get_wrapper_attr("action_masks")() if (
        name == "single"
    ) else env.action_masks()  # fmt: skip
    assert mask.dtype == np.bool_
    space = env.action_space
    plain: Any = (
        spaces.Discrete(mask.shape[-1]) if mask.ndim == 1 else spaces.MultiDiscrete([mask.shape[-1]] * len(mask))
    )
    assert space == plain
    assert repr(space) == repr(plain)
    assert pickle.loads(pickle.dumps(space)) == space
    as_int8 = mask.astype(np.int8) if mask.ndim == 1 else tuple(mask.astype(np.int8))
    for seed in range(5):
        space.seed(seed)
        plain.seed(seed)
        taken = space.sample(mask=mask)
        assert np.array_equal(taken, plain.sample(mask=as_int8))
        assert np.take_along_axis(np.atleast_2d(mask), np.atleast_1d(taken)[:, None], 1).all()
        assert np.array_equal(space.sample(mask=as_int8), plain.sample(mask=as_int8))
        assert np.array_equal(space.sample(), plain.sample())
    with pytest.raises(AssertionError, match="int8"):
        space.sample(mask=mask.astype(np.float64))
