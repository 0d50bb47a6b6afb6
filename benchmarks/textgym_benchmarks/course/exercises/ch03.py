"""Chapter 3: trajectories and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from textgym import Task, make_task
from textgym.checks import Floats
from textgym.rewards.dense import Shaped
from textgym.solver import evaluate_edges, solve
from textgym_benchmarks.course.exercises import Case, Exercise


def _spelling() -> Task:
    """Return the chapter's task: three letters, a third of a reward for each at its place."""
    task = make_task("BetaSweep")
    return replace(task, reward=Shaped(task.reward), beta=0.0)


def _log_probability() -> list[Case]:
    best = solve(_spelling(), beta=0.1).optimal
    first = np.exp([edges[0] for edges in best.log_policy])  # the first edge out of the first state of each depth
    given = {
        "a trajectory of the optimum, rho 1": (1.0, first, best.trajectories.log_probability[0]),
        "rho 0.5 and pi 0.5, 0.25, 0.1": (0.5, np.array([0.5, 0.25, 0.1]), np.log(0.5 * 0.0125)),
        "rho 1 and 1,000 tokens of probability 1/4": (1.0, np.full(1000, 0.25), -1000 * np.log(4)),
    }
    return [Case(said, (start, chosen), {"log P(tau)": right}) for said, (start, chosen, right) in given.items()]


def _returns(rewards: Sequence[float], gamma: float) -> Floats:
    """Return G_t by its definition: a matrix of gamma^(j - t) for j >= t, times the rewards."""
    wait = np.arange(len(rewards)) - np.arange(len(rewards))[:, None]
    return np.asarray(np.where(wait >= 0, float(gamma) ** np.maximum(wait, 0), 0.0) @ np.asarray(rewards))


def _discounted_returns() -> list[Case]:
    given = [([0.0, 0.0, 1.0], 0.5), ([1.0, 2.0, 3.0], 1.0), ([1.0, -1.0, 0.5, 2.0], 0.9), ([3.0, 4.0], 0.0)]
    return [
        Case(f"rewards {rewards} and gamma {gamma}", (np.array(rewards), gamma), {"G": _returns(rewards, gamma)})
        for rewards, gamma in given
    ]


def _expected_return() -> list[Case]:
    cases = []
    for beta, gamma in ((1.0, 1.0), (0.1, 0.9), (0.3, 0.5)):
        best = solve(_spelling(), beta=beta).optimal
        tree, every = best.tree, best.trajectories
        right = evaluate_edges(tree, best.log_policy, best.log_reference, 0.0, gamma).expected_return
        texts = tree.completions(3, every.row)
        rewards = (texts == texts[every.returns.argmax()]) / 3
        said = f"the optimum at beta {beta}, and gamma {gamma}"
        cases.append(Case(said, (every.log_probability, rewards, gamma), {"J": right}))
    return cases


def _longest_wait() -> list[Case]:
    given = {(0.9, 0.5): 7, (0.99, 0.01): 459, (0.5, 0.25): 2, (0.5, 0.2): 3}  # by hand
    return [Case(f"gamma {gamma} and share {share}", (gamma, share), {"k": k}) for (gamma, share), k in given.items()]


def _textbook_values() -> list[Case]:
    cases = []
    for gamma in (0.9, 0.5):
        solver = np.array([level[0] for level in solve(_spelling(), gamma=gamma).reference.values[:3]])
        # By hand: each place that is still to come pays 1/12 on average.
        right = np.array([sum(gamma**k for k in range(3 - t)) / 12 for t in range(3)])
        cases.append(Case(f"V of the solver {np.round(solver, 4)}, gamma {gamma}", (solver, gamma), {"V": right}))
    return cases


EXERCISES = (
    Exercise(
        "trajectory_log_probability",
        "The log-probability of a trajectory.",
        _log_probability,
        {
            "the probability is returned, not its logarithm": lambda start, chosen: start * np.prod(chosen),
            "rho(s_0) is left out": lambda start, chosen: np.log(chosen).sum(),
        },
    ),
    Exercise(
        "discounted_returns",
        "The return from every step on.",
        _discounted_returns,
        {
            "the first reward is discounted, too": lambda rewards, gamma: gamma * _returns(rewards, gamma),
            "rewards of the past are counted": lambda rewards, gamma: np.full(
                len(rewards), _returns(rewards, gamma)[0]
            ),
            "each return is discounted from time 0, not from its own step": lambda rewards, gamma: (
                _returns(rewards, gamma) * gamma ** np.arange(len(rewards))
            ),
        },
    ),
    Exercise(
        "expected_return",
        "J, summed over all trajectories.",
        _expected_return,
        {
            "all trajectories count alike": lambda logs, rewards, gamma: np.mean(
                rewards @ gamma ** np.arange(rewards.shape[1])
            ),
            "gamma is left out": lambda logs, rewards, gamma: np.exp(logs) @ rewards.sum(axis=1),
        },
    ),
    Exercise(
        "longest_wait",
        "The number of steps after which a reward hardly counts.",
        _longest_wait,
        {
            "1 / (1 - gamma) is taken, whatever the share": lambda gamma, share: round(1 / (1 - gamma)),
            "the number is rounded down": lambda gamma, share: int(np.log(share) / np.log(gamma)),
        },
    ),
    Exercise(
        "textbook_values",
        "The textbook's V from the solver's.",
        _textbook_values,
        {"it is multiplied by gamma^t": lambda values, gamma: values * gamma ** np.arange(len(values))},
    ),
)
