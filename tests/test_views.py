"""Actions of one token, one turn and a whole answer: the same returns, the same REINFORCE gradient, by enumeration."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from turn_tools import Echo, ragged

from textgym import TokenEnv, make_task
from textgym.views import AnswerEnv, TurnEnv


class Table:
    """A softmax policy with a row of logits for every sequence of tokens that is met, and gradients by hand."""

    def __init__(self, vocabulary):
        self.vocabulary, self.rows = vocabulary, {}

    def probabilities(self, tokens):
        if tokens not in self.rows:
            self.rows[tokens] = np.random.default_rng(len(self.rows)).normal(size=self.vocabulary.size)
        logits = np.where(self.vocabulary.allowed, self.rows[tokens], -np.inf)
        odds = np.exp(logits - logits.max())
        return odds / odds.sum()


def scored(policy, state, ids):
    """The probability of writing ids from a state, and the gradient of its logarithm: sequence -> (V,)."""
    probability, gradient, tokens = 1.0, {}, state.tokens
    for token in ids:
        odds = policy.probabilities(tokens)
        probability *= odds[token]
        gradient[tokens] = np.eye(len(odds))[token] - odds
        tokens += (token,)
    return probability, gradient


def walk(env, actions, policy, state, weight, path):
    """Yield (probability, return, scores of the actions) of every episode from a state."""
    for ids in actions(state):
        env.set_state(state)
        probability, gradient = scored(policy, state, ids)
        action = ids[0] if isinstance(env, TokenEnv) else padded(env, ids)
        _, reward, terminated, _, _ = env.step(action)
        here = weight * probability
        if terminated:
            yield here, reward, [*path, (reward, gradient)]
        else:
            for each in walk(env, actions, policy, env.unwrapped.get_state(), here, path):
                later, total, scores = each
                yield later, reward + total, [(reward + total, gradient), *scores]


def padded(env, ids):
    action = np.zeros(env.action_space.shape, dtype=np.int64)
    action[: len(ids)] = ids
    return action


def starts(env, task):
    """Every state that an episode of one of two prompts begins in, with its probability."""
    prompts = task.encoded("train")[:2]
    for prompt in prompts:
        env.reset(options={"prompt_index": prompt.index})
        state = env.unwrapped.get_state()
        weights = (1.0,) if task.turns is None else task.turns.responder.weights(prompt)
        for hidden, weight in enumerate(weights):
            here = state if task.turns is None else replace(state, hidden=hidden)
            yield here, weight / len(prompts)


def episodes(env, task, policy, actions):
    return [
        each for state, weight in starts(env, task) if weight for each in walk(env, actions, policy, state, weight, [])
    ]


def every_turn(task):
    """The turns that can be written: up to an ending id, or as long as the budget."""
    ends = set(task.vocabulary.stop_ids if task.turns is None else task.turns.ends)
    budget = task.max_new_tokens if task.turns is None else task.turns.tokens
    allowed = np.flatnonzero(task.vocabulary.allowed).tolist()
    return [
        ids
        for length in range(1, budget + 1)
        for ids in product(allowed, repeat=length)
        if ends.isdisjoint(ids[:-1]) and (ids[-1] in ends or length == budget)
    ]


def distribution(found):
    counted = Counter()
    for probability, total, _ in found:
        counted[round(total, 9)] += probability
    return dict(sorted(counted.items()))


def gradient(found):
    """E of the sum over actions of return x gradient of log-probability: REINFORCE without a baseline."""
    total = {}
    for probability, _, scores in found:
        for to_go, parts in scores:
            for tokens, part in parts.items():
                total[tokens] = total.get(tokens, 0.0) + probability * to_go * part
    return total


TASKS = {
    "TwentyQuestions": lambda: make_task("TwentyQuestions", difficulty=1),
    "Clarify": lambda: make_task("Clarify", difficulty=2),
    "ragged turns": lambda: ragged(Echo(weights=(0.25, 0.75), mark=1), most=2, tokens=2),
    "Copy": lambda: make_task("Copy", difficulty=2),
    "Stop": lambda: make_task("Stop", difficulty=1),
}


@pytest.mark.parametrize("name", TASKS)
def test_returns_and_the_reinforce_gradient_are_equal_by_enumeration(name):
    task = TASKS[name]()
    policy, turns = Table(task.vocabulary), every_turn(task)
    allowed = [(int(token),) for token in np.flatnonzero(task.vocabulary.allowed)]
    tokens = episodes(TokenEnv(task), task, policy, lambda state: allowed)
    views = [TurnEnv] if task.turns is not None else [TurnEnv, AnswerEnv]
    for view in views:
        found = episodes(view(TokenEnv(task)), task, policy, lambda state: turns)
        assert sum(probability for probability, _, _ in found) == pytest.approx(1.0)
        assert distribution(found) == pytest.approx(distribution(tokens))
        expected, ours = gradient(tokens), gradient(found)
        assert ours.keys() == expected.keys()
        for sequence, part in expected.items():
            np.testing.assert_allclose(ours[sequence], part, atol=1e-12)
        assert max(abs(part).max() for part in expected.values()) > 1e-3
        assert task.turns is not None or all(len(scores) == 1 for _, _, scores in found)


@pytest.mark.parametrize(("view", "name"), [(TurnEnv, "Clarify"), (AnswerEnv, "Copy"), (TurnEnv, "Helpful")])
def test_they_are_environments_as_gymnasium_asks(view, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")  # it is a wrapper
        check_env(view(TokenEnv(name)), skip_render_check=True)


def test_many_in_step():
    envs = SyncVectorEnv([lambda: TurnEnv(TokenEnv("TwentyQuestions", difficulty=2))] * 3)
    envs.reset(seed=0)
    _, rewards, ended, _, _ = envs.step(np.array([[1], [3], [4]]))
    assert ended.tolist() == [False, True, True]
    assert set(rewards[1:]) <= {0.0, 1.0}


def test_what_stands_behind_the_end_of_a_turn_is_not_read():
    env = TurnEnv(TokenEnv(ragged()))
    env.reset(seed=0)
    env.step(np.array([1, 5, 3]))
    assert env.unwrapped.get_state().completion[:3] == (1, 5, 5)  # the turn and the echo's mark
    assert env.written(np.array([5, 5, 5])) == [5]


def test_what_is_refused():
    env = TurnEnv(TokenEnv(ragged()))
    with pytest.raises(ResetNeeded):
        env.step(np.array([1, 2, 3]))
    env.reset(seed=0)
    for bad in ([1, 2], [1, 2, 8], [-1, 2, 3], [1.0, 2.0, 3.0], 3, None):
        with pytest.raises(InvalidAction, match=r"allowed are 3 token ids in 0\.\.7"):
            env.step(bad)
    env.env.step(1)
    state = env.unwrapped.get_state()
    with pytest.raises(ValueError, match="its turn has 1 tokens already; allowed is one that begins"):
        TurnEnv(TokenEnv(ragged())).set_state(state)
    with pytest.raises(ValueError, match="'TwentyQuestions': its environment answers in turns; allowed is a TurnEnv"):
        AnswerEnv(TokenEnv("TwentyQuestions"))
    with pytest.raises(TypeError, match="does not show tokens"):
        TurnEnv(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"gamma=0\.9: a turn is one step here; allowed is 1"):
        TurnEnv(TokenEnv(replace(make_task("Copy"), gamma=0.9)))


def test_it_renders():
    env = TurnEnv(gym.make("textgym/Clarify-v0", render_mode="ansi"))
    env.reset(options={"prompt_index": 0})
    assert "paint any" in env.render()
