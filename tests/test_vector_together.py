"""Rows of a vector environment that are scored together: what they earn, when, and what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from core_tools import CountA, gold_length, word_task
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.env import TokenEnv
from textgym.optimum import optimum_of
from textgym.rewards import RewardError
from textgym.solver import UnsolvableError, solve
from textgym.vector import TokenVectorEnv, scoring_together, settle_rest

A, STOP = 0, 4  # of the six words


def together(task: Any, num_envs: int, **options: Any) -> TokenVectorEnv:
    return TokenVectorEnv(task, num_envs, autoreset_mode=AutoresetMode.DISABLED, **options)


@pytest.mark.slow
@given(
    actions=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=6, max_size=6),
    settled=st.integers(0, 7),
)
@settings(max_examples=60, deadline=None)
def test_scored_together_or_not_every_row_earns_and_says_the_same(actions: list[list[int]], settled: int) -> None:
    """Also where the waiting rows are settled early; the last action is what each reward belongs to."""
    task = word_task(gold=gold_length)
    apart, joint = together(task, 3), together(task, 3, score_together=True)
    for env in (apart, joint):
        env.reset(seed=1)
    earned, said = {}, {}
    for step, row in enumerate([*actions, [1, 1, 1]]):
        results = {}
        for name, env in (("apart", apart), ("joint", joint)):
            before = env.get_states()
            observation, rewards, terminations, _, infos = env.step(np.array(row))
            results[name] = observation["input_ids"], terminations
            if name == "joint" and step == settled:
                more, later = env.settle()
                rewards, infos = rewards + more, infos or later
            for at in np.flatnonzero(infos.get("_completion", ())):
                assert (name, at) not in earned
                earned[name, at] = rewards[at]
                said[name, at] = [infos["completion"][at], infos["finish_reason"][at], infos["gold"][at]]
                said[name, at] += [infos["reward_terms"][term][at] for term in ("lower", "upper")]
            assert not rewards[[at for at in range(3) if (name, at) not in earned]].any()
            assert before[0].finish_reason is None or env.get_states()[0] == before[0]
        np.testing.assert_array_equal(results["apart"][0], results["joint"][0])
        np.testing.assert_array_equal(results["apart"][1], results["joint"][1])
    running = [at for at in range(3) if ("apart", at) not in earned]
    assert not running, "max_new_tokens end every row"
    for at in range(3):
        assert earned["apart", at] == earned["joint", at]
        assert said["apart", at] == said["joint", at]


def test_scored_together_the_reward_is_called_once_and_unpaid_rows_are_kept() -> None:
    reward = CountA()
    env = together(word_task(reward=reward), 3, score_together=True)
    env.reset(seed=0)
    assert env.settle()[1] == {}
    _, rewards, terminations, _, infos = env.step(np.array([STOP, A, A]))
    assert terminations.tolist() == [True, False, False]
    assert (reward.batches, rewards.tolist(), infos) == ([], [0, 0, 0], {})
    with pytest.raises(RuntimeError, match=r"reset: rows \[0\] have ended and wait .* or call settle\(\)"):
        env.reset()
    with pytest.raises(RuntimeError, match=r"set_states: rows \[0\]"):
        env.set_states(env.get_states([1]), [0])
    env.reset(options={"reset_mask": np.array([False, True, False])})
    env.step(np.array([A, A, STOP]))
    *_, infos = env.step(np.array([A, STOP, A]))
    assert reward.batches == [3]
    assert infos["_completion"].all()
    assert env.reset(seed=1)


def test_rows_that_could_not_be_scored_go_on_waiting() -> None:
    failures = [RuntimeError("no answer"), KeyboardInterrupt()]

    def shaky(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if failures:
            raise failures.pop(0)
        return [2.0] * len(prompts)

    env = together(word_task(reward=shaky), 2, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    with pytest.raises(RewardError, match="no answer"):
        env.step(np.array([A, STOP]))
    with pytest.raises(KeyboardInterrupt):
        env.settle()
    with pytest.raises(RuntimeError, match=r"rows \[0, 1\] have ended and wait"):
        env.reset()
    rewards, infos = env.settle()
    assert rewards.tolist() == [2, 2]
    assert infos["_completion"].all()
    env.reset(seed=1)


def test_a_row_that_is_ended_by_its_state_makes_the_others_due() -> None:
    env = together(word_task(), 2, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    ended = env.get_states([0])
    env.set_states(ended, [1])
    *_, infos = env.step(np.array([A, A]))
    assert infos["_completion"].tolist() == [True, False]


def test_a_block_scores_together_and_forgets_what_an_interrupt_left() -> None:
    reward = CountA()
    env = together(word_task(reward=reward), 2)
    env.reset(seed=0)
    with contextlib.suppress(KeyboardInterrupt), scoring_together(env):
        env.step(np.array([STOP, A]))
        raise KeyboardInterrupt
    assert (env.score_together, reward.batches) == (False, [])
    env.reset(seed=0)
    env.step(np.array([STOP, A]))
    assert reward.batches == [1]
    dense = together(word_task(reward=CountA("every")), 2)
    with scoring_together(dense):
        assert not dense.score_together
    # A wrapper may count on rewards that come with the action they belong to.
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    with scoring_together(wrapped):
        assert not env.score_together
    assert settle_rest(wrapped)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_together": 1}, "score_together=1: allowed is True or False"),
        ({"score_together": True, "autoreset_mode": "SameStep"}, "autoreset_mode='Disabled', not 'SameStep'"),
        ({"score_together": True, "reward": CountA("every")}, "'count_a' has pay='every'"),
        ({"reward": CountA("together"), "autoreset_mode": "NextStep"}, "compares the completions of a batch"),
    ],
)
def test_what_cannot_be_scored_together_is_refused(options: dict[str, Any], message: str) -> None:
    task = word_task(**({"reward": options.pop("reward")} if "reward" in options else {}))
    with pytest.raises((TypeError, ValueError), match=message):
        TokenVectorEnv(task, 2, **{"autoreset_mode": "Disabled", **options})


class Best(CountA):
    """Pays 1 for the completions of a batch that are not shorter than any other."""

    pay = "together"
    name = "best"

    def __init__(self) -> None:
        super().__init__("together")

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Any]:
        longest = max(map(len, completions))
        return {"lower": [float(len(text) == longest) for text in completions], "upper": [0.0] * len(prompts)}


def test_a_reward_that_compares_completions_sees_whole_batches_or_is_refused() -> None:
    task = word_task(reward=Best())
    env = together(task, 3, score_together=True)
    env.reset(seed=0)
    env.step(np.array([STOP, A, A]))
    env.step(np.array([A, STOP, A]))
    _, rewards, *_ = env.step(np.array([A, A, STOP]))
    assert rewards.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"'best' compares the completions of a batch .* TokenVectorEnv"):
        TokenEnv(task)
    apart = together(task, 2)
    apart.reset(seed=0)
    with pytest.raises(ValueError, match=r"'best' compares .* score_together=True"):
        apart.step(np.array([STOP, A]))
    with pytest.raises(UnsolvableError, match="no function of one text"):
        solve(task)
    assert optimum_of(task).unknown == "the reward compares completions, so that no text has a value of its own"
