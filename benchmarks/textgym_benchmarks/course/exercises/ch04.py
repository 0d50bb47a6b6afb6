"""Chapter 4: value functions."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np

from textgym import Task, make_task
from textgym.checks import Floats, Ints
from textgym.rewards.dense import Shaped
from textgym.solver import PolicyValues, PrefixTree, evaluate_edges, prefix_tree, solve
from textgym_benchmarks.course.exercises import Case, Exercise


def _task(name: str, difficulty: int) -> Task:
    """Return a task that pays as the text grows, without a price of KL; its texts are all of one length."""
    task = make_task(name, difficulty=difficulty)
    return replace(task, reward=Shaped(task.reward), beta=0.0)


def _tables(tree: PrefixTree) -> tuple[Floats, Ints]:
    """Return what each action pays and where it leads, (S, K) each; every running state has the same K actions."""
    actions = len(tree.levels[1].parent)
    rewards = np.concatenate([level.reward for level in tree.levels[1:]]).reshape(-1, actions)
    return rewards, np.arange(1, 1 + rewards.size).reshape(rewards.shape)


def _steps(tree: PrefixTree) -> Ints:
    """Return the number of words of each running state, (S,)."""
    return np.repeat(np.arange(len(tree.levels) - 1), [len(level.running) for level in tree.levels[:-1]])


def _textbook(tree: PrefixTree, per_level: tuple[Floats, ...], gamma: float, actions: int = 1) -> Floats:
    """Return V (S,) or Q (S, K) in the textbook's unit, from the solver's values per level."""
    running = len(tree.levels) - 1
    found = np.concatenate([level / gamma**t for t, level in enumerate(per_level[:running])])
    return found if actions == 1 else found.reshape(-1, actions)


def _random_policy(tree: PrefixTree, seed: int, gamma: float) -> tuple[Floats, PolicyValues]:
    """Return a policy (S, K) drawn by a seed, and its exact values."""
    rewards, _ = _tables(tree)
    policy = np.random.default_rng(seed).dirichlet(np.ones(rewards.shape[1]), len(rewards))
    ends = np.cumsum([len(level.running) for level in tree.levels[:-1]])
    logs = tuple(np.log(part).ravel() for part in np.split(policy, ends[:-1]))
    return policy, evaluate_edges(tree, logs, logs, 0.0, gamma)


_GIVEN = (("Deceptive", 3, 1.0), ("BetaSweep", 3, 0.9), ("Deceptive", 4, 0.5))


def _value_and_advantage() -> list[Case]:
    cases = []
    for seed, (name, difficulty, _) in enumerate(_GIVEN[:2]):
        tree = prefix_tree(_task(name, difficulty))
        policy, values = _random_policy(tree, seed, 1.0)
        actions = policy.shape[1]
        right = {"V": _textbook(tree, values.values, 1.0), "A": _textbook(tree, values.advantages, 1.0, actions)}
        arguments = (policy, _textbook(tree, values.action_values, 1.0, actions))
        cases.append(Case(f"a random policy on {name}", arguments, right))
    return cases


def _policy_evaluation() -> list[Case]:
    cases = []
    for seed, (name, difficulty, gamma) in enumerate(_GIVEN):
        tree = prefix_tree(_task(name, difficulty))
        policy, values = _random_policy(tree, 10 + seed, gamma)
        right = {"V": _textbook(tree, values.values, gamma)}
        cases.append(Case(f"a random policy on {name}, gamma {gamma}", (policy, *_tables(tree), gamma), right))
    return cases


def _optimal_values() -> list[Case]:
    cases = []
    for name, difficulty, gamma in _GIVEN:
        tree = prefix_tree(_task(name, difficulty))
        best, (rewards, following) = solve(tree, gamma=gamma), _tables(tree)
        right = {
            "V*": _textbook(tree, best.values, gamma),
            "Q*": _textbook(tree, best.action_values, gamma, rewards.shape[1]),
        }
        cases.append(Case(f"the tables of {name}, gamma {gamma}", (rewards, following, gamma), right))
    return cases


def _greedy_policy() -> list[Case]:
    """Return cases right by hand."""
    given = {
        "Q 0.3, 0.2625 and 0.5, 1": ([[0.3, 0.2625], [0.5, 1.0]], [[1, 0], [0, 1]]),
        "Q 1, 1, 0 and -1, -2, -1": ([[1.0, 1.0, 0.0], [-1.0, -2.0, -1.0]], [[0.5, 0.5, 0], [0.5, 0, 0.5]]),
        "Q 1, 1 and 0, 1": ([[1.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0, 1]]),
        "Q 0, 0, 0, 0": ([[0.0] * 4], [[0.25] * 4]),
    }
    return [Case(said, (np.array(values),), {"pi": right}) for said, (values, right) in given.items()]


def _performance_difference() -> list[Case]:
    cases = []
    for seed, (name, difficulty, gamma) in enumerate(_GIVEN):
        tree = prefix_tree(_task(name, difficulty))
        _, old = _random_policy(tree, 20 + seed, gamma)
        policy, new = _random_policy(tree, 30 + seed, gamma)
        passing = np.array([*chain.from_iterable(new.reach[:-1])])
        advantages = _textbook(tree, old.advantages, gamma, policy.shape[1])
        arguments = (passing, _steps(tree), policy, advantages, gamma)
        said = f"two random policies on {name}, gamma {gamma}"
        cases.append(Case(said, arguments, {"J(new) - J(old)": new.objective - old.objective}))
    return cases


def _sweep_evaluation(policy: Floats, rewards: Floats, following: Ints, gamma: float) -> Floats:
    values = np.zeros(following.max() + 1)
    for state in reversed(range(len(rewards))):
        values[state] = policy[state] @ (rewards[state] + gamma * values[following[state]])
    return values[: len(rewards)]


def _greedy_of_the_average(rewards: Floats, following: Ints, gamma: float) -> tuple[Floats, Floats]:
    """Return V and Q of the policy that chooses evenly, as if they were the optimum's."""
    even = np.full(rewards.shape, 1 / rewards.shape[1])
    values = _sweep_evaluation(even, rewards, following, gamma)
    ended = np.zeros(following.max() + 1 - len(values))
    return values, rewards + gamma * np.append(values, ended)[following]


EXERCISES = (
    Exercise(
        "value_and_advantage",
        "V and A from a policy and its Q.",
        _value_and_advantage,
        {
            "all actions count alike": lambda policy, values: (
                values.mean(axis=1),
                values - values.mean(axis=1, keepdims=True),
            ),
            "V is the largest Q": lambda policy, values: (
                values.max(axis=1),
                values - values.max(axis=1, keepdims=True),
            ),
        },
    ),
    Exercise(
        "policy_evaluation",
        "V of a policy, by the expectation equations.",
        _policy_evaluation,
        {
            "only the next reward is counted": lambda policy, rewards, following, gamma: (policy * rewards).sum(axis=1),
            "the reward is discounted with the value": lambda policy, rewards, following, gamma: (
                gamma * _sweep_evaluation(policy, rewards, following, gamma)
            ),
            "gamma is left out": lambda policy, rewards, following, gamma: _sweep_evaluation(
                policy, rewards, following, 1.0
            ),
        },
    ),
    Exercise(
        "optimal_values",
        "V* and Q*, by the optimality equations.",
        _optimal_values,
        {
            "the average over actions is taken, not the largest": _greedy_of_the_average,
            "only the next reward is counted": lambda rewards, following, gamma: (rewards.max(axis=1), rewards),
        },
    ),
    Exercise(
        "greedy_policy",
        "The greedy policy, with ties.",
        _greedy_policy,
        {
            "the first of equal actions gets all": lambda values: np.eye(values.shape[1])[values.argmax(axis=1)],
            "each of equal actions gets probability 1": lambda values: values == values.max(axis=1, keepdims=True),
        },
    ),
    Exercise(
        "performance_difference",
        "The gain of a new policy from the old policy's advantages.",
        _performance_difference,
        {
            "gamma^t is left out": lambda passing, steps, policy, advantages, gamma: (
                passing @ (policy * advantages).sum(axis=1)
            ),
            "all states count alike": lambda passing, steps, policy, advantages, gamma: (
                (gamma**steps) @ (policy * advantages).sum(axis=1)
            ),
        },
    ),
)
