"""Bias and variance of policy-gradient and KL estimators against the exact gradient of J.

All policy-gradient estimators see the KL as part of the reward, R - beta log(P / P_ref), so that they differ in their
advantages alone. Rewards and values are in units of time 0, as the agents here have them: the factor gamma^t of the
exact gradient, which practice often leaves out, is in every estimator.

l_t = log(pi / ref) of the action taken in s_t. Per token k1 = l, k2 = l^2 / 2, k3 = exp(-l) - 1 + l, and "exact" is
the KL of the two distributions in s_t; a sequence's estimate is their sum. A KL can be differentiated in the loss, with
the states as they were sampled, or be charged to the return of the actions that led to it, or both: the gradient of the
sequence's KL has one part for the distributions and one for the states visited.

Source: Schulman (2020), Approximating KL Divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Unpack

import numpy as np

from textgym.checks import Floats, Ints
from textgym.solver import PolicyValues
from textgym_agents.exact.objective import (
    Problem,
    ProblemOptions,
    Steps,
    edge_jacobian,
    edge_weights,
    kl_terms,
    steps,
    to_go,
    torch_values,
    unpaid,
)
from textgym_agents.lm.critic_free import centred, leave_one_out, standardised
from textgym_agents.lm.maths import gae

_ZERO = 1e-12  # what is smaller, relative to the other, is rounding


@dataclass(frozen=True)
class Moments:
    """An estimator of a gradient against the gradient.

    Attributes:
        estimator: its name. samples: trajectories that one estimate takes.
        bias: norm of E[g] - gradient. relative_bias: the same over the norm of the gradient.
        cosine: of the angle between E[g] and the gradient; 1 where the bias is a matter of scale alone, NaN where one
            of them is 0.
        variance: E |g - E[g]|^2 of one estimate. variance_per_sample: times `samples`, to compare at equal cost.
        bias_error, variance_error: standard errors of the two; 0 where they are sums over all outcomes.
    """

    estimator: str
    samples: int
    bias: float
    relative_bias: float
    cosine: float
    variance: float
    bias_error: float = 0.0
    variance_error: float = 0.0

    @property
    def variance_per_sample(self) -> float:
        """The variance times `samples`."""
        return self.samples * self.variance


@dataclass(frozen=True, eq=False)
class Enumeration:
    """All N trajectories of a task under a torch policy.

    Attributes:
        values: the policy's exact values.
        jacobian: (E, D) grad log pi of every edge.
        steps: of the trajectories, in the order of `values.trajectories`.
    """

    values: PolicyValues
    jacobian: Floats = field(repr=False)
    steps: Steps = field(repr=False)

    @property
    def mass(self) -> Floats:
        """P(tau), the prompt's probability included, (N,)."""
        return self.values.trajectories.probability

    @property
    def charged(self) -> Floats:
        """(N, T) rewards less beta times the log-ratios: the KL as part of the reward."""
        beta, rewards = self.values.beta, self.steps.rewards
        return rewards - beta * self.steps.log_ratio if beta else rewards

    @cached_property
    def gradient(self) -> Floats:
        """The exact gradient of J, (D,)."""
        return np.asarray(np.concatenate(edge_weights(self.values)) @ self.jacobian)

    @cached_property
    def gram(self) -> Floats:
        """Scalar products of the rows of the Jacobian, (E, E)."""
        return np.asarray(self.jacobian @ self.jacobian.T)

    @cached_property
    def scores(self) -> Floats:
        """Grad log P(tau), (N, D)."""
        return np.asarray(self.on_path(np.ones(self.steps.path.shape)) @ self.jacobian)

    def on_path(self, weights: Floats) -> Floats:
        """Return, from weights of the actions taken (N, T), those of all edges (N, E)."""
        result = np.zeros((len(self.steps.path), len(self.jacobian)))
        row, step = np.nonzero(self.steps.path >= 0)
        result[row, self.steps.path[row, step]] = weights[row, step]
        return result

    def moments(self, estimator: str, weights: Floats, target: Floats | None = None) -> Moments:
        """Return the moments of g = sum of weights times grad log pi, by summing over all trajectories.

        Args:
            weights: (N, T) of the actions taken, or (N, E) of all edges.
            target: (D,) what is estimated; None is grad J.
        """
        edges = weights if weights.shape == (len(self.steps.path), len(self.jacobian)) else self.on_path(weights)
        mean = (self.mass @ edges) @ self.jacobian
        second = float(self.mass @ ((edges @ self.gram) * edges).sum(1))
        return compare(estimator, 1, mean, second, self.gradient if target is None else target)


def compare(
    estimator: str,
    samples: int,
    mean: Floats,
    second: float,
    target: Floats,
    errors: tuple[float, float] = (0.0, 0.0),
) -> Moments:
    """Return a row of the table from E[g] (D,) and E |g|^2."""
    bias, size, length = (float(np.linalg.norm(v)) for v in (mean - target, target, mean))
    return Moments(
        estimator=estimator,
        samples=samples,
        bias=bias,
        relative_bias=bias / size if size else float("nan"),
        cosine=float(mean @ target) / (size * length) if min(size, length) > _ZERO * (size + length) else float("nan"),
        variance=max(second - length**2, 0.0),
        bias_error=errors[0],
        variance_error=errors[1],
    )


def enumerate_trajectories(
    problem: Problem, policy: object, reference: object = None, **options: Unpack[ProblemOptions]
) -> Enumeration:
    """Return everything the tables are made of, for a torch policy. Args: see `torch_values`.

    Raises: as `torch_values`; ValueError if the Jacobian is too large.
    """
    own, values = torch_values(problem, policy, reference, **options)
    return Enumeration(values, edge_jacobian(values.tree, own), steps(values))


_TUPLES = 500_000
Advantages = Callable[[Floats], Floats]


def estimator_table(
    enumeration: Enumeration, lams: Sequence[float] = (0.0, 0.95), group: int = 2, draws: int = 200_000, seed: int = 0
) -> list[Moments]:
    """Return a row per estimator.

    Args:
        enumeration: from `enumerate_trajectories`.
        lams: of GAE, with the exact V as critic and with a critic that says 0.
        group: completions of one prompt per estimate of RLOO and GRPO. All tuples of completions are summed over where
            there are at most 500,000; otherwise `draws` of them are drawn by `seed`, and the errors are stated.
    Raises: ValueError if `group` < 2.
    """
    if group < 2:
        raise ValueError(f"group={group!r}: allowed is an integer >= 2")
    rewards, values = enumeration.charged, enumeration.steps.state_values
    whole = np.repeat(rewards.sum(1, keepdims=True), rewards.shape[1], axis=1)
    rows = [
        enumeration.moments("REINFORCE", whole),
        enumeration.moments("REINFORCE, reward to go", to_go(rewards)),
        enumeration.moments("REINFORCE, reward to go - V", to_go(rewards) - values),
    ]
    for lam in lams:
        for critic, says in (("V", values), ("critic 0", np.zeros_like(values))):
            advantages = gae(rewards, says, enumeration.values.trajectories.length, lam)
            rows.append(enumeration.moments(f"GAE({lam:g}), {critic}", advantages))
    for name, function, mean_over_tokens in (
        ("RLOO", leave_one_out, False),
        ("GRPO without std", centred, False),
        ("GRPO", standardised, False),
        ("GRPO, mean over tokens", standardised, True),
    ):
        rows.append(_group_moments(enumeration, name, function, mean_over_tokens, group, draws, seed))
    return rows


def _group_moments(
    enumeration: Enumeration,
    name: str,
    advantages: Advantages,
    mean_over_tokens: bool,
    group: int,
    draws: int,
    seed: int,
) -> Moments:
    """Return the moments of g = (1/n) sum_i A_i grad log P(tau_i) over groups of n completions of one prompt."""
    every = enumeration.values.trajectories
    weights, returns = enumeration.values.tree.weights, enumeration.charged.sum(1)
    probability = np.exp(every.log_probability)  # given the prompt
    scale = 1 / every.length if mean_over_tokens else np.ones(len(returns))
    mean, second = np.zeros(enumeration.jacobian.shape[1]), 0.0
    scatter, spread = 0.0, 0.0  # variances of the two estimates above, where they are drawn
    generator = np.random.default_rng([seed, 6])
    for prompt in np.flatnonzero(weights > 0):
        own = np.flatnonzero((every.prompt == prompt) & (probability > 0))
        tuples, mass, drawn = _tuples(probability[own], group, draws, generator)
        amounts = advantages(returns[own][tuples]) * scale[own][tuples] / group
        coefficients = np.bincount(tuples.ravel(), (mass[:, None] * amounts).ravel(), minlength=len(own))
        part = coefficients @ enumeration.scores[own]
        squares = _squares(tuples, amounts, enumeration.scores[own] @ enumeration.scores[own].T)
        mean += weights[prompt] * part
        second += weights[prompt] * float(mass @ squares)
        if drawn:
            scatter += weights[prompt] ** 2 * (float(mass @ squares) - float(part @ part)) / len(mass)
            spread += weights[prompt] ** 2 * float(squares.var()) / len(mass)
    return compare(
        f"{name}, groups of {group}",
        group,
        mean,
        second,
        enumeration.gradient,
        (math.sqrt(max(scatter, 0.0)), math.sqrt(spread)),
    )


def _tuples(probability: Floats, group: int, draws: int, generator: np.random.Generator) -> tuple[Ints, Floats, bool]:
    """Return groups of completions (M, n) with their probabilities (M,): all there are, or some that were drawn."""
    count = len(probability)
    if count**group <= _TUPLES:
        tuples = np.indices((count,) * group).reshape(group, -1).T
        return tuples, probability[tuples].prod(1), False
    drawn = generator.choice(count, size=(draws, group), p=probability / probability.sum())
    return drawn, np.full(draws, 1 / draws), True


def _squares(tuples: Ints, amounts: Floats, gram: Floats) -> Floats:
    """Return |sum_i amount_i grad log P(tau_i)|^2 of every group, (M,)."""
    result = np.zeros(len(tuples))
    for i in range(tuples.shape[1]):
        for j in range(tuples.shape[1]):
            result += amounts[:, i] * amounts[:, j] * gram[tuples[:, i], tuples[:, j]]
    return result


@dataclass(frozen=True)
class ValueMoments:
    """A single-sample estimator of a sequence's KL, nats.

    Attributes:
        mean: of the estimator. bias: mean - KL. variance: of one estimate.
    """

    estimator: str
    mean: float
    bias: float
    variance: float


def kl_value_table(enumeration: Enumeration) -> list[ValueMoments]:
    """Return k1, k2, k3 and the exact KL of the states visited, as estimators of KL(pi || ref) per sequence."""
    ratio, mass, truth = enumeration.steps.log_ratio, enumeration.mass, enumeration.values.kl
    rows = []
    for name, tokens in (
        ("k1", ratio),
        ("k2", 0.5 * ratio**2),
        ("k3", np.expm1(-ratio) + ratio),
        ("exact", enumeration.steps.kl),
    ):
        sums = tokens.sum(1)
        mean = float(mass @ sums)
        rows.append(ValueMoments(name, mean, mean - truth, float(mass @ (sums - mean) ** 2)))
    return rows


def kl_gradient_table(enumeration: Enumeration) -> list[Moments]:
    """Return estimators of the gradient of KL(pi || ref) per sequence, in the loss, in the reward, or in both."""
    ratio, kl = enumeration.steps.log_ratio, enumeration.steps.kl
    later = to_go(kl) - kl
    direct = _direct(enumeration)
    weights = {
        "k1 in the loss": (enumeration.steps.path >= 0).astype(np.float64),
        "k2 in the loss": ratio,
        "k3 in the loss": -np.expm1(-ratio),
        "exact in the loss": direct,
        "k1 in the reward": to_go(ratio),
        "k1 in the reward, whole sequence": np.repeat(ratio.sum(1, keepdims=True), ratio.shape[1], axis=1),
        "k3 in the reward": to_go(np.expm1(-ratio) + ratio),
        "exact in the reward": to_go(kl),
        "k2 in the loss, later KL in the reward": ratio + later,
        "exact in the loss, later KL in the reward": direct + enumeration.on_path(later),
    }
    target = kl_gradient(enumeration)
    return [enumeration.moments(name, weight, target) for name, weight in weights.items()]


def kl_gradient(enumeration: Enumeration) -> Floats:
    """Return the exact gradient of KL(pi || ref) per sequence, (D,): of -J where nothing is paid and beta is 1."""
    gradient: Floats = -np.concatenate(edge_weights(unpaid(enumeration.values))) @ enumeration.jacobian
    return gradient


def _direct(enumeration: Enumeration) -> Floats:
    """Return weights (N, E) of the gradient of the exact KL in each state visited: pi(a) l(a) on all of its edges."""
    tree, path = enumeration.values.tree, enumeration.steps.path
    terms = kl_terms(enumeration.values)
    result = []
    first = 0
    for depth, level in enumerate(tree.levels[:-1]):
        parent = tree.levels[depth + 1].parent
        here = np.flatnonzero(path[:, depth] >= 0)
        visited = np.zeros((len(path), len(level.parent)))
        visited[here, parent[path[here, depth] - first]] = 1.0
        result.append(visited[:, parent] * terms[depth])
        first += len(parent)
    return np.concatenate(result, axis=1)
