"""ReferenceReward: reward plus beta times entropy is J, by exact enumeration; single and vector alike."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from solver_tools import STOP, Paid, Table, bigram, small_task

from textgym.env import TokenEnv
from textgym.lm.reference import UniformReference
from textgym.solver import policy_values, prefix_tree
from textgym.state import TokenState
from textgym.vector import TokenVectorEnv
from textgym.wrappers import ReferenceReward, VectorReferenceReward


def grammar(states: Any) -> Any:
    """Token 0 first; after an odd number of tokens, token 1 is forbidden."""
    masks = np.ones((len(states), 4), dtype=bool)
    for mask, state in zip(masks, states, strict=True):
        if not state.completion:
            mask[1:3] = False
        elif len(state.completion) % 2:
            mask[1] = False
    return masks


def enumerated(env: Any, task: Any, policy: Table) -> tuple[float, float]:
    """E[return] and entropy of whole texts, by playing every sequence of actions in the environment."""
    weights = np.array(task.prompt_set("train").weights, dtype=float)
    reward = entropy = 0.0
    for index, weight in enumerate(weights / weights.sum()):
        for length in range(1, task.max_new_tokens + 1):
            for actions in itertools.product(range(4), repeat=length):
                ended = actions[-1] == STOP or length == task.max_new_tokens
                if STOP in actions[:-1] or not ended:
                    continue
                observation, _ = env.reset(seed=0, options={"prompt_index": index})
                total, log_probability = 0.0, 0.0
                for action in actions:
                    tokens = observation["input_ids"][observation["attention_mask"] == 1]
                    probabilities = policy.distribution(tokens.tolist())
                    if task.mask is not None:
                        probabilities = probabilities * env.unwrapped.action_masks()
                        probabilities = probabilities / probabilities.sum()
                    if probabilities[action] == 0:
                        break
                    log_probability += math.log(probabilities[action])
                    observation, paid, *_ = env.step(action)
                    total += paid
                else:
                    share = weight * math.exp(log_probability)
                    reward += share * total
                    entropy -= share * log_probability
    return reward, entropy


@pytest.mark.parametrize("mask", [None, grammar])
@pytest.mark.parametrize("pay", ["end", "every", "difference"])
@pytest.mark.parametrize(("seed", "gamma"), [(0, 1.0), (1, 1.0), (0, 0.6), (1, 0.0)])
def test_return_plus_entropy_is_the_objective(seed: int, gamma: float, pay: str, mask: Any) -> None:
    task = small_task(reference=bigram(), reward=Paid(pay, gamma), gamma=gamma, mask=mask)
    policy = Table(seed)
    reward, entropy = enumerated(ReferenceReward(TokenEnv(task)), task, policy)
    exact = policy_values(prefix_tree(task), policy)
    assert reward + task.beta * entropy == pytest.approx(exact.objective, abs=1e-9)
    # The bonus is not 0, so that the identity says something.
    assert abs(reward - exact.expected_return) > 0.05


def test_the_bonus_by_hand() -> None:
    """Uniform over four tokens, beta 0.4: every token costs 0.4 log 4."""
    env = ReferenceReward(TokenEnv(small_task()))
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(-0.4 * math.log(4))
    env = ReferenceReward(TokenEnv(small_task()), beta=2.0, floor=-1.0)
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(-2.0)


def test_only_the_reward_is_discounted_by_hand() -> None:
    """Each step pays the letters a so far: the second is worth 0.5 of the 2 that it pays, and its bonus all of it."""
    env = ReferenceReward(TokenEnv(small_task(reward=Paid("every"), gamma=0.5)))
    env.reset(options={"prompt_index": 0})
    bonus = -0.4 * math.log(4)
    assert [env.step(0)[1] for _ in range(2)] == pytest.approx([1 + bonus, 1 + bonus])
    after_one = TokenState(env.unwrapped.task.encoded("train")[0], (0,))
    env.set_state(after_one)
    assert env.step(0)[1] == pytest.approx(1 + bonus)
    env.reset(options={"prompt_index": 0})
    assert env.step(0)[1] == pytest.approx(1 + bonus)
    rows = VectorReferenceReward(TokenVectorEnv(env.unwrapped.task, 2, autoreset_mode=AutoresetMode.DISABLED))
    rows.reset(options={"prompt_index": 0})
    rows.step(np.array([0, 0]))
    rows.set_states([TokenState(after_one.prompt)], [1])
    assert rows.step(np.array([0, 0]))[1] == pytest.approx([1 + bonus, 1 + bonus])


def test_a_token_that_the_reference_never_writes_costs_the_floor() -> None:
    reference = UniformReference(np.array([True, True, False, True]))
    env = ReferenceReward(TokenEnv(small_task()), reference=reference, floor=-7.0)
    env.reset(seed=0)
    assert env.step(2)[1] == pytest.approx(-0.4 * 7)


def test_what_a_reference_gives_to_tokens_that_are_never_legal_is_shared_out() -> None:
    words = ("a", "b", "<pad>", "<end>")
    task = small_task(tokenizer=words, prompts=["a", "b"], reference=bigram(), reward=Paid("end"))
    assert not task.vocabulary.allowed[2]
    assert np.exp(bigram().log_probs({"input_ids": np.array([[0]]), "attention_mask": np.ones((1, 1))}))[0, 2] > 0.1
    policy = Table(0)
    policy.distribution = lambda tokens: np.array([0.5, 0.2, 0.0, 0.3])
    with np.errstate(divide="ignore"):
        exact = policy_values(prefix_tree(task), policy)
    reward, entropy = enumerated(ReferenceReward(TokenEnv(task)), task, policy)
    assert reward + task.beta * entropy == pytest.approx(exact.objective, abs=1e-9)
    rows = VectorReferenceReward(TokenVectorEnv(task, 2))
    single = ReferenceReward(TokenEnv(task))
    for env in (rows, single):
        env.reset(options={"prompt_index": 0})
    assert rows.step(np.array([1, 1]))[1].tolist() == [single.step(1)[1]] * 2


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_equal_single_environments(mode: AutoresetMode) -> None:
    task = small_task(reference=bigram(), reward=Paid("difference", 0.6), gamma=0.6, mask=grammar)
    rows = VectorReferenceReward(TokenVectorEnv(task, 3, autoreset_mode=mode))
    singles = [ReferenceReward(TokenEnv(task)) for _ in range(3)]
    rows.reset(seed=4)
    for number, env in enumerate(singles):
        env.reset(seed=4 + number)
    over, rng = np.zeros(3, dtype=bool), np.random.default_rng(1)
    for _ in range(60):
        # Legal actions: the bonus of others is the floor in both.
        actions = np.array([rng.choice(np.flatnonzero(m)) for m in rows.action_masks()])
        want = np.zeros(3)
        for number, env in enumerate(singles):
            if over[number]:
                if mode is AutoresetMode.NEXT_STEP:
                    env.reset()
                    over[number] = False
                continue
            _, want[number], over[number], *_ = env.step(actions[number])
            if over[number] and mode is AutoresetMode.SAME_STEP:
                env.reset()
                over[number] = False
        np.testing.assert_allclose(rows.step(actions)[1], want, atol=1e-12)
        if mode is AutoresetMode.DISABLED and over[1]:
            rows.reset(options={"reset_mask": over})
            for number in np.flatnonzero(over):
                singles[number].reset()
            over[:] = False


def test_bad_arguments_and_actions_are_named() -> None:
    task = small_task()
    for name, value in (("beta", -1.0), ("floor", 0.0), ("floor", "low"), ("floor", None), ("floor", float("nan"))):
        with pytest.raises(ValueError, match=f"{name}={value!r}: allowed is a finite number"):
            ReferenceReward(TokenEnv(task), **{name: value})
    env = VectorReferenceReward(TokenVectorEnv(task, 2))
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"actions\[1\] = 9"):
        env.step(np.array([0, 9]))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_observations_that_are_the_environment_s_own_arrays_pay_the_same(mode: AutoresetMode) -> None:
    paid = []
    for copy in (True, False):
        rows = TokenVectorEnv(small_task(), 3, autoreset_mode=mode, copy=copy)
        for env in (rows, RecordEpisodeStatistics(rows)):
            view = VectorReferenceReward(env, 0.5, bigram())
            view.reset(seed=2)
            paid.append([view.step(np.array([0, 1, 0]))[1].tolist() for _ in range(2)])
    assert all(each == paid[0] for each in paid)
