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
from itertools import combinations_with_replacement
from typing import NamedTuple, Unpack

import numpy as np

from textgym.checks import Floats, Ints, check_count
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

_ZERO = 1e-6  # what is smaller, relative to the other, is rounding of float32


@dataclass(frozen=True)
class Moments:
    """An estimator of a gradient against the gradient.

    Attributes:
        estimator: its name. samples: trajectories that one estimate takes, a mean.
        bias: norm of E[g] - gradient. relative_bias: the same over the norm of the gradient.
        cosine: of the angle between E[g] and the gradient; 1 where the bias is a matter of scale alone, NaN where one
            of them is 0.
        variance: E |g - E[g]|^2 of one estimate. variance_per_sample: times `samples`, to compare at equal cost.
        along: E[g] along the gradient, in units of the gradient: 1 without bias, NaN where the gradient is 0.
        bias_error, variance_error: standard errors of the two; 0 where they are sums over all outcomes.
    """

    estimator: str
    samples: float
    bias: float
    relative_bias: float
    cosine: float
    variance: float
    along: float
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
        """Return, from weights of the actions taken, (N, T) or (N, 1), those of all edges (N, E)."""
        result, path = np.zeros((len(self.steps.path), len(self.jacobian))), self.steps.path
        row, step = np.nonzero(path >= 0)
        result[row, path[row, step]] = np.broadcast_to(weights, path.shape)[row, step]
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
    samples: float,
    mean: Floats,
    second: float,
    target: Floats,
    errors: tuple[float, float] = (0.0, 0.0),
) -> Moments:
    """Return a row of the table from E[g] (D,) and E |g|^2."""
    bias, size, length = (float(np.linalg.norm(v)) for v in (mean - target, target, mean))
    relative, along = (bias / size, float(mean @ target) / size**2) if size else (math.nan, math.nan)
    cosine = along * size / length if min(size, length) > _ZERO * (size + length) else math.nan
    return Moments(estimator, samples, bias, relative, cosine, max(second - length**2, 0.0), along, *errors)


def enumerate_trajectories(
    problem: Problem, policy: object, reference: object = None, **options: Unpack[ProblemOptions]
) -> Enumeration:
    """Return everything the tables are made of, for a torch policy. Args: see `torch_values`.

    Raises: as `torch_values`; ValueError if the Jacobian is too large.
    """
    own, values = torch_values(problem, policy, reference, **options)
    return Enumeration(values, edge_jacobian(values.tree, own), steps(values))


_MOST_COUNTS = 1_000_000
Advantages = Callable[[Floats], Floats]


def estimator_table(
    enumeration: Enumeration, lams: Sequence[float] = (0.0, 0.95), group: int = 2, draws: int = 200_000, seed: int = 0
) -> list[Moments]:
    """Return a row per estimator.

    Args:
        enumeration: from `enumerate_trajectories`.
        lams: of GAE, with the exact V as critic and with a critic that says 0.
        group: completions of one prompt per estimate of RLOO and GRPO. draws, seed: see `group_moments`.
    Raises: ValueError if `group` < 2.
    """
    check_count("group", group, 2)
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
        scale = 1 / enumeration.values.trajectories.length[:, None] if mean_over_tokens else 1.0
        scores, paid = np.stack([enumeration.scores * scale] * 2), enumeration.charged.sum(1)
        rows.append(
            group_moments(enumeration.values, enumeration.gradient, name, paid, scores, function, group, draws, seed)
        )
    return rows


def group_moments(
    values: PolicyValues,
    gradient: Floats,
    name: str,
    returns: Floats,
    scores: Floats,
    advantages: Advantages,
    group: int,
    draws: int = 20_000,
    seed: int = 0,
    kept: float = 1.0,
) -> Moments:
    """Return the moments of g = (1/n) sum_i A_i S_i over groups of n completions of one prompt.

    Given its return a completion is independent of the rest of its group, so that the mean needs the returns of n - 1
    others, and the second moment those of n - 2 beside a pair. Of a prompt with more than a million of these, `draws`
    groups are drawn by `seed`, and the errors are stated.

    Args:
        values: of the policy that has written the completions. gradient: (D,) what is estimated.
        returns: (N,) of all trajectories. scores: (2, N, D) S where A is above 0, and elsewhere.
        advantages: (M, n) of the returns (M, n) of groups.
        kept: share of the groups that count, where the advantages of all others are 0; g is that of one that does.
    """
    every, weights = values.trajectories, values.tree.weights
    probability, generator = np.exp(every.log_probability), np.random.default_rng([seed, 6])
    total = _Sums(np.zeros(scores.shape[2]), 0.0, 0.0, 0.0)
    for prompt in np.flatnonzero(weights > 0):
        own = np.flatnonzero((every.prompt == prompt) & (probability > 0))
        paid, part = returns[own].round(12), scores[:, own]
        count = len(np.unique(paid))
        # What the second moment needs: the mean needs (K + n - 2) / ((n - 1) K) of it, which is never more.
        if math.comb(count + group - 3, group - 2) * count**2 <= _MOST_COUNTS:
            found = _one_prompt(_classes(paid, probability[own], part), advantages, group)
        else:
            chosen = generator.choice(len(own), (draws, group), p=probability[own] / probability[own].sum())
            found = _drawn(paid, part, chosen, advantages)
        total = total.plus(found, float(weights[prompt]))
    errors = (math.sqrt(max(total.scatter, 0.0)) / kept, math.sqrt(total.spread) / kept)
    return compare(f"{name}, groups of {group}", group / kept, total.mean / kept, total.second / kept, gradient, errors)


class _Sums(NamedTuple):
    """E[g] (D,) and E |g|^2, and the squared standard errors of both; 0 where they are sums over all groups."""

    mean: Floats
    second: float
    scatter: float
    spread: float

    def plus(self, other: _Sums, weight: float) -> _Sums:
        """Return the sums with those of another prompt."""
        mean, second = self.mean + weight * other.mean, self.second + weight * other.second
        return _Sums(mean, second, *(a + weight**2 * b for a, b in zip(self[2:], other[2:], strict=True)))


def _drawn(returns: Floats, scores: Floats, chosen: Ints, advantages: Advantages) -> _Sums:
    """Return the sums over groups (M, n) of completions (N,) that were drawn. Args: scores: (2, N, D)."""
    amounts = advantages(returns[chosen]) / chosen.shape[1]  # (M, n)
    at = np.where(amounts > 0, chosen, chosen + len(returns))
    flat = scores.reshape(-1, scores.shape[2])
    mean = np.bincount(at.ravel(), amounts.ravel(), len(flat)) @ flat / len(chosen)
    gram = flat @ flat.T
    squares = np.einsum("mi,mj,mij->m", amounts, amounts, gram[at[:, :, None], at[:, None]])
    second = float(squares.mean())
    return _Sums(mean, second, (second - float(mean @ mean)) / len(chosen), float(squares.var()) / len(chosen))


class _Classes(NamedTuple):
    """Completions of a prompt by their K returns.

    Attributes:
        returns, mass: (K,). first: (2, K, D) E[S; return], second: (2, K) E[|S|^2; return], for a positive advantage
            and for another.
    """

    returns: Floats
    mass: Floats
    first: Floats
    second: Floats


def _classes(returns: Floats, probability: Floats, scores: Floats) -> _Classes:
    found, where = np.unique(returns, return_inverse=True)
    one_hot = np.zeros((len(found), len(returns)))
    one_hot[where, np.arange(len(returns))] = probability
    first = np.stack([one_hot @ each for each in scores])
    second = np.stack([one_hot @ (each**2).sum(1) for each in scores])
    return _Classes(found, one_hot.sum(1), first, second)


def _one_prompt(classes: _Classes, advantages: Advantages, group: int) -> _Sums:
    """Return the sums over all groups of completions of one prompt."""
    count = len(classes.returns)
    mean, alone, pairs = np.zeros(classes.first.shape[2]), 0.0, 0.0
    rest, chances = _multisets(classes, group - 1)
    for own in range(count):
        amounts = advantages(np.insert(rest, 0, classes.returns[own], axis=1))[:, 0]  # (M,)
        for sign, kept in enumerate((amounts > 0, amounts <= 0)):
            mean += float(chances @ (amounts * kept)) * classes.first[sign, own]
            alone += float(chances @ (amounts**2 * kept)) * float(classes.second[sign, own])
    rest, chances = _multisets(classes, group - 2)
    products = np.einsum("skd,tld->stkl", classes.first, classes.first)  # (2, 2, K, K)
    for one in range(count):
        for two in range(count):
            both = advantages(np.insert(rest, [0, 0], classes.returns[[one, two]], axis=1))[:, :2]  # (M, 2)
            signs = (both <= 0).astype(np.int64)
            pairs += float(chances @ (both[:, 0] * both[:, 1] * products[signs[:, 0], signs[:, 1], one, two]))
    return _Sums(mean, (alone + (group - 1) * pairs) / group, 0.0, 0.0)


def _multisets(classes: _Classes, size: int) -> tuple[Floats, Floats]:
    """Return the returns (M, size) of every multiset of `size` completions, and their probabilities (M,)."""
    count = len(classes.returns)
    many = math.comb(count + size - 1, size)
    chosen = np.array([*combinations_with_replacement(range(count), size)], dtype=np.int64).reshape(many, size)
    times = (chosen[:, :, None] == np.arange(count)).sum(1)  # (M, K)
    ways = math.factorial(size) / np.prod([[math.factorial(int(each)) for each in row] for row in times], axis=1)
    return classes.returns[chosen], np.asarray(ways * np.prod(classes.mass**times, axis=1))


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
    """Return k1, k2, k3 and the exact KL of the states visited as estimators of KL(pi || ref) in an enumeration."""
    ratio, mass, truth = enumeration.steps.log_ratio, enumeration.mass, enumeration.values.kl
    rows = []
    for name, tokens in (
        ("k1", ratio),
        ("k2", 0.5 * ratio**2),
        ("k3", np.expm1(-ratio) + ratio),
        ("exact", enumeration.steps.kl),
    ):
        mean = float(mass @ tokens.sum(1))
        rows.append(ValueMoments(name, mean, mean - truth, float(mass @ (tokens.sum(1) - mean) ** 2)))
    return rows


def kl_gradient_table(enumeration: Enumeration) -> list[Moments]:
    """Return estimators of the gradient of KL(pi || ref) per sequence of an enumeration, in loss or reward or both."""
    ratio, kl = enumeration.steps.log_ratio, enumeration.steps.kl
    later = to_go(kl) - kl
    direct = direct_weights(enumeration)
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


def direct_weights(enumeration: Enumeration) -> Floats:
    """Return weights (N, E) of the gradient of the exact KL in each state visited: pi(a) l(a) on all of its edges."""
    tree, path = enumeration.values.tree, enumeration.steps.path
    terms = kl_terms(enumeration.values)
    result, first = list[Floats](), 0
    for depth, level in enumerate(tree.levels[:-1]):
        parent = tree.levels[depth + 1].parent
        here = np.flatnonzero(path[:, depth] >= 0)
        visited = np.zeros((len(path), len(level.parent)))
        visited[here, parent[path[here, depth] - first]] = 1.0
        result.append(visited[:, parent] * terms[depth])
        first += len(parent)
    return np.concatenate(result, axis=1)
