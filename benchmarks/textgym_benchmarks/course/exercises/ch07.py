"""Chapter 7: the policy-gradient theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from textgym_agents.exact.estimators import Enumeration, enumerate_trajectories
from textgym_agents.exact.objective import policy_gradient
from torch import Tensor

from textgym import Task, make_task
from textgym.checks import Floats
from textgym.rewards.dense import Shaped
from textgym_benchmarks.course.exercises import Case, Exercise


@cache
def _spelling() -> Task:
    """Return the chapter's task: three letters, a third of a reward for each at its place."""
    task = make_task("BetaSweep")
    return replace(task, reward=Shaped(task.reward), beta=0.0)


class _Table(torch.nn.Module):
    """A row of parameters for each place."""

    def __init__(self, theta: Floats) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta))

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, None]:
        place = self.theta[columns]
        return torch.cat([place, torch.zeros(len(place), 1, dtype=place.dtype)], 1), None


def _theta(seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(3, 4))


def _listed(theta: Floats) -> tuple[Enumeration, Floats, Floats]:
    """Return every text: its steps, the scores (N, T, D) of its choices, and what each is paid (N, T)."""
    found = enumerate_trajectories(_spelling(), _Table(theta))
    return found, found.jacobian[found.steps.path], found.steps.rewards


def _score_table() -> list[Case]:
    cases = []
    for seed, text in enumerate(([3, 0, 1], [2, 2, 2])):
        theta = _theta(seed)
        given = torch.tensor(theta, requires_grad=True)
        log_probability = torch.log_softmax(given, 1)[torch.arange(3), torch.tensor(text)].sum()
        (gradient,) = torch.autograd.grad(log_probability, given)
        said = f"the text {text} and theta {np.round(theta, 2).tolist()}"
        cases.append(Case(said, (theta, np.array(text)), {"grad log P": gradient.numpy()}))
    return cases


def _reward_to_go_estimate() -> list[Case]:
    even = np.zeros((3, 4))
    _, scores, rewards = _listed(even)
    # The even policy writes all 64 texts alike, so that their plain mean is the exact gradient.
    exact = policy_gradient(_spelling(), _Table(even)).gradient.numpy()
    even_case = Case("all texts of the even policy, once each", (scores, rewards), {"grad J": exact})
    rng = np.random.default_rng(0)
    scores, rewards = rng.normal(size=(2, 3, 2)).round(1), rng.normal(size=(2, 3)).round(1)
    later = np.triu(np.ones((3, 3)))  # row t adds up the rewards from t on
    right = np.einsum("ntd,ts,ns->d", scores, later, rewards) / 2
    said = f"scores {scores.tolist()}, rewards {rewards.tolist()}"
    return [Case(said, (scores, rewards), {"grad J": right}), even_case]


def _objective(theta: Floats) -> float:
    """Return J of the chapter's policy: a third of the probability of the right letter at each place."""
    weights = np.exp(theta.reshape(3, 4))
    return float((weights / weights.sum(1, keepdims=True))[range(3), [3, 0, 1]].mean())


def _finite_differences() -> list[Case]:
    cases = []
    for seed in (3, 4):
        theta = 2 * _theta(seed)
        right = policy_gradient(_spelling(), _Table(theta)).gradient.numpy()
        said = f"J of the chapter's policy at theta of seed {seed}, step 0.001"
        cases.append(Case(said, (_objective, theta.ravel(), 1e-3), {"grad J": right}))
    return cases


def _optimal_baseline() -> list[Case]:
    cases = []
    for seed in (5, 6):
        found, scores, rewards = _listed(2 * _theta(seed))
        # The variance is a parabola in b, which three of its points give.
        whole = np.repeat(rewards.sum(1, keepdims=True), 3, axis=1)
        low, middle, high = (found.moments("", whole - b).variance for b in (-1.0, 0.0, 1.0))
        right = (low - high) / (2 * (low + high - 2 * middle))
        arguments = (found.mass, scores.sum(1), rewards.sum(1))
        cases.append(Case(f"all texts of a policy with theta of seed {seed}", arguments, {"b*": right}))
    return cases


def _estimator_moments() -> list[Case]:
    cases = []
    for seed in (7, 8):
        found, scores, rewards = _listed(_theta(seed))
        to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
        arguments = (found.mass, (to_go[:, :, None] * scores).sum(1))
        right = {"mean": found.gradient, "variance": found.moments("", to_go).variance}
        cases.append(Case(f"rewards to go of a policy with theta of seed {seed}", arguments, right))
    return cases


def _forward_differences(objective: Callable[[Floats], float], theta: Floats, step: float) -> Floats:
    moved = theta + step * np.eye(len(theta))
    return np.array([objective(each) - objective(theta) for each in moved]) / step


def _one_at_a_time(probabilities: Floats, estimates: Floats) -> tuple[Floats, Floats]:
    mean = probabilities @ estimates
    return mean, probabilities @ (estimates - mean) ** 2


def _unweighted(probabilities: Floats, estimates: Floats) -> tuple[Floats, float]:
    return estimates.mean(axis=0), float(estimates.var(axis=0).sum())


EXERCISES = (
    Exercise(
        "score_table",
        "The score of a text under a table of softmaxes.",
        _score_table,
        {
            "the probabilities are not subtracted": lambda theta, text: np.eye(theta.shape[1])[text],
            "it is the gradient of P, not of log P": lambda theta, text: (
                (np.eye(theta.shape[1])[text] - np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True))
                * np.prod((np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True))[range(len(text)), text])
            ),
        },
    ),
    Exercise(
        "reward_to_go_estimate",
        "REINFORCE with rewards to go.",
        _reward_to_go_estimate,
        {
            "rewards of the past are summed, not those to come": lambda scores, rewards: (
                np.einsum("ntd,nt->d", scores, rewards.cumsum(axis=1)) / len(rewards)
            ),
            "every choice gets its own reward alone": lambda scores, rewards: (
                np.einsum("ntd,nt->d", scores, rewards) / len(rewards)
            ),
            "texts are summed, not averaged": lambda scores, rewards: np.einsum(
                "ntd,nt->d", scores, rewards[:, ::-1].cumsum(axis=1)[:, ::-1]
            ),
        },
    ),
    Exercise(
        "finite_differences",
        "The gradient of J by central differences.",
        _finite_differences,
        {
            "only one of the two sides is used": _forward_differences,
            "the difference is divided by the step, not by twice the step": lambda objective, theta, step: (
                np.array([objective(theta + e) - objective(theta - e) for e in step * np.eye(len(theta))]) / step
            ),
        },
    ),
    Exercise(
        "optimal_baseline",
        "The constant baseline of least variance.",
        _optimal_baseline,
        {
            "it is the expected return": lambda probabilities, scores, returns: probabilities @ returns,
            "all texts count alike": lambda probabilities, scores, returns: (
                (scores**2).sum(axis=1) @ returns / (scores**2).sum()
            ),
            "the length of the score is not squared": lambda probabilities, scores, returns: np.average(
                returns, weights=probabilities * np.linalg.norm(scores, axis=1)
            ),
        },
    ),
    Exercise(
        "estimator_moments",
        "Mean and variance of an estimate of a gradient.",
        _estimator_moments,
        {"all texts count alike": _unweighted, "the variances of the parameters are not added up": _one_at_a_time},
    ),
)
