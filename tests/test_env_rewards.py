"""What the single environment pays: when, how often it asks the reward, and what it does where that fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_tools import (
    CountA,
    play,
    refuse_b,
    seed_noise,
    word_task,
)
from gymnasium.error import ResetNeeded

from textgym.env import TokenEnv
from textgym.rewards import RewardError
from textgym.vector import TokenVectorEnv


def test_dense_rewards_pay_for_every_prefix() -> None:
    env = TokenEnv(word_task(reward=CountA("every")))
    env.reset(seed=0)
    results = play(env, [0, 2, 1, 3])
    assert [reward for _, reward, *_ in results] == [1.0, 1.0, 2.0, 2.0]
    assert [bool(info) for *_, info in results] == [False, False, False, True]
    assert results[-1][4]["reward_terms"] == {"lower": 1.0, "upper": 1.0}


def test_shaped_rewards_telescope() -> None:
    env = TokenEnv(word_task(reward=CountA("difference", gamma=0.5), gamma=0.5))
    env.reset(seed=0)
    rewards = [reward for _, reward, *_ in play(env, [0, 2, 1, 4])]
    # phi: 0, 1, 1, 2, then 2 at the end. 0.5*1 - 0, 0.5*1 - 1, 0.5*2 - 1, 2 - 2.
    assert rewards == [0.5, -0.5, 0.0, 0.0]
    assert sum(0.5**t * reward for t, reward in enumerate(rewards)) == 0.5**3 * 2


def test_a_potential_with_another_discount_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma=1.0, the task by gamma=0.9"):
        word_task(reward=CountA("difference"), gamma=0.9)


def test_the_reward_is_called_once_per_episode_and_gold_is_not_called_twice() -> None:
    reward = CountA()
    env = TokenEnv(word_task(reward=reward, gold=reward))
    env.reset(seed=0)
    info = play(env, [0, 4])[-1][4]
    assert reward.batches == [1]
    assert info["gold"] == 1.0


def test_a_reward_that_fails_has_the_chosen_outcome() -> None:
    env = TokenEnv(word_task(reward=refuse_b))
    env.reset(seed=0)
    env.step(2)
    with pytest.raises(RewardError, match="no b"):
        env.step(4)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    assert env.step(4)[1] == 1.0
    for on_error, paid in (("skip", 0.0), ("penalty", -2.5)):
        env = TokenEnv(word_task(reward=refuse_b, on_error=on_error, penalty=-2.5))
        env.reset(seed=0)
        env.step(2)
        with pytest.warns(UserWarning, match="no b"):
            assert env.step(4)[1] == paid
        assert env.task.scorer.failures.total() == 1


def test_noise_is_drawn_from_the_environment_s_generator() -> None:
    env = TokenEnv(word_task(reward=seed_noise, noisy=True))
    env.reset(seed=11)
    state = env.get_state()
    rewards = [play(env, [4])[0][1]]
    env.set_state(state)
    rewards.append(play(env, [4])[0][1])
    env.reset()
    rewards.append(play(env, [4])[0][1])
    assert rewards[0] == rewards[1] != rewards[2]
    generator = np.random.default_rng(11)
    generator.random()  # the prompt
    assert rewards[0] == np.random.default_rng(generator.integers(2**63)).normal()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_after_an_error_of_the_reward_a_vector_environment_asks_for_a_reset(mode: str) -> None:
    calls: list[int] = []

    def hiccup(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(prompts))
        if len(calls) == 1:
            raise RuntimeError("a server's")
        return [1.0] * len(prompts)

    env = TokenVectorEnv("Text", 2, autoreset_mode=mode, prompts=["hi"], max_new_tokens=2, reward=hiccup)
    env.reset(seed=0)
    env.step(np.array([5, 5]))
    with pytest.raises(RewardError):
        env.step(np.array([5, 5]))
    with pytest.raises(ResetNeeded):
        env.step(np.array([5, 5]))
    env.reset()
    env.step(np.array([5, 5]))
    assert env.step(np.array([5, 5]))[1].tolist() == [1.0, 1.0]
