"""Chapter 5: families of algorithms, and exploration."""

from __future__ import annotations

import math

import numpy as np
from textgym_agents.tabular.policies import scheduled

from textgym.checks import Floats
from textgym_benchmarks.course.exercises import Case, Exercise

_Q = ((0.0, 1.0), (2.0, -1.0), (0.5, 0.5))


def _updates() -> list[Case]:
    # s, a, r, s', ended, alpha, gamma, and the new value by hand
    given = [
        (0, 1, 0.5, 1, False, 0.5, 0.9, 1.65),  # target 0.5 + 0.9 * 2 = 2.3; 1 + (2.3 - 1) / 2
        (1, 0, 0.5, 2, True, 0.25, 0.9, 1.625),  # target 0.5, nothing after the end: 2 + (0.5 - 2) / 4
        (2, 0, -1.0, 0, False, 1.0, 1.0, 0.0),  # target -1 + 1
        (0, 0, 0.5, 2, False, 0.5, 0.9, 0.475),  # target 0.5 + 0.9 * 0.5 = 0.95
    ]
    cases = []
    for s, a, r, later, ended, alpha, gamma, right in given:
        said = f"Q {_Q}, s {s}, a {a}, r {r}, s' {later}{' terminal' if ended else ''}, alpha {alpha}, gamma {gamma}"
        cases.append(Case(said, (np.array(_Q), s, a, r, later, ended, alpha, gamma), {"Q(s, a)": right}))
    return cases


def _greedy() -> list[Case]:
    given = [
        ((1.0, 3.0, 2.0), 0.3, (0.1, 0.8, 0.1)),
        ((0.0, 0.0), 0.2, (0.5, 0.5)),
        ((2.0, 1.0, 2.0, 0.0), 0.4, (0.4, 0.1, 0.4, 0.1)),
        ((5.0, 1.0), 0.0, (1.0, 0.0)),
    ]
    return [
        Case(f"values {values} and epsilon {epsilon}", (np.array(values), epsilon), {"pi": right})
        for values, epsilon, right in given
    ]


def _schedules() -> list[Case]:
    given = [
        ("linear", 1.0, 0.1, 0.5),
        ("exponential", 1.0, 0.01, 0.5),
        ("linear", 0.8, 0.2, 1.5),
        ("exponential", 2.0, 0.5, 3.0),
    ]
    return [
        Case(f"{kind} from {start} to {end}, progress {progress}", (kind, start, end, progress), {"epsilon": right})
        for (kind, start, end, progress), right in zip(given, (0.55, 0.1, 0.2, 0.5), strict=True)
    ]


def _puct() -> list[Case]:
    given = [
        ((0.5, 0.0), (0.5, 0.5), (3, 1), 1.0, (0.5 + 0.5 * 2 / 4, 0.5 * 2 / 2)),
        ((0.2, 0.4, 0.0), (0.7, 0.2, 0.1), (10, 6, 0), 1.25, (0.2 + 3.5 / 11, 0.4 + 1 / 7, 0.5)),
    ]
    return [
        Case(
            f"Q {q}, prior {prior}, visits {visits}, c {c}",
            (np.array(q), np.array(prior), np.array(visits), c),
            {"score": right},
        )
        for q, prior, visits, c, right in given
    ]


def _chances() -> list[Case]:
    cases = [
        Case("one text, epsilon 1, 2 actions, depth 3", (np.ones(1), 2, 3), {"chance": 1 / 8}),
        Case("two texts, epsilon 1, 2 actions, depth 1", (np.ones(2), 2, 1), {"chance": 3 / 4}),
    ]
    epsilons = np.linspace(1.0, 0.1, 40)
    missed = math.fsum(math.log1p(-((epsilon / 4) ** 2)) for epsilon in epsilons)
    cases.append(
        Case("40 texts, epsilon from 1 to 0.1, 4 actions, depth 2", (epsilons, 4, 2), {"chance": -math.expm1(missed)})
    )
    return cases


def _greedy_first(q: Floats, epsilon: float) -> Floats:
    return np.asarray(epsilon / len(q) + (1 - epsilon) * (np.arange(len(q)) == q.argmax()))


EXERCISES = (
    Exercise(
        "q_update",
        "One step of Q-learning.",
        _updates,
        {
            "a terminal state is taken to have a future": lambda q, s, a, r, later, ended, alpha, gamma: (
                q[s, a] + alpha * (r + gamma * q[later].max() - q[s, a])
            ),
            "the target itself is taken, whatever alpha is": lambda q, s, a, r, later, ended, alpha, gamma: (
                r + (0.0 if ended else gamma * q[later].max())
            ),
            "the mean over next actions is taken, not the maximum": lambda q, s, a, r, later, ended, alpha, gamma: (
                q[s, a] + alpha * (r + (0.0 if ended else gamma * q[later].mean()) - q[s, a])
            ),
        },
    ),
    Exercise(
        "epsilon_greedy",
        "The epsilon-greedy policy.",
        _greedy,
        {
            "the best action has no share of the random choice": lambda q, epsilon: np.where(
                q == q.max(), 1 - epsilon, epsilon / max(1, len(q) - 1)
            ),
            "the first of several best actions gets all": _greedy_first,
        },
    ),
    Exercise(
        "exploration_schedule",
        "An exploration schedule.",
        _schedules,
        {
            "both kinds are taken to be linear": lambda kind, start, end, progress: scheduled(
                "linear", start, end, progress
            ),
            "it goes on falling after the end": lambda kind, start, end, progress: (
                start + (end - start) * progress if kind == "linear" else start * (end / start) ** progress
            ),
        },
    ),
    Exercise(
        "puct_scores",
        "The scores that a tree search maximises.",
        _puct,
        {
            "1 is not added to the visits": lambda q, prior, visits, c: (
                q + c * prior * np.sqrt(visits.sum()) / np.maximum(visits, 1e-12)
            ),
            "the root of the visits is left out": lambda q, prior, visits, c: (
                q + c * prior * visits.sum() / (1 + visits)
            ),
            "every action has its own visits under the root": lambda q, prior, visits, c: (
                q + c * prior * np.sqrt(visits) / (1 + visits)
            ),
        },
    ),
    Exercise(
        "chance_to_find",
        "The probability that random actions find one sequence.",
        _chances,
        {
            "chances are added up": lambda epsilons, actions, depth: ((epsilons / actions) ** depth).sum(),
            "epsilon is not divided by the number of actions": lambda epsilons, actions, depth: (
                1 - np.prod(1 - epsilons**depth)
            ),
        },
    ),
)
