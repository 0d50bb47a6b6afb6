"""Every trajectory of a small task with what gradient estimators read from it, and exact moments of the estimators."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from textgym.solve import MAX_STATES, PolicyValues, policy_values, prefix_tree
from textgym_agents.exact import EnumeratedPolicy, Floats, Ints, edge_jacobian, edge_weights, readable

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
        """Variance times samples."""
        return self.samples * self.variance


@dataclass(frozen=True, eq=False)
class Enumeration:
    """All N trajectories of a task under a torch policy; T is the longest. Time steps after the end hold 0.

    Attributes:
        values: the policy's exact values.
        jacobian: (E, D) grad log pi of every edge.
        prompt: (N,) index. probability: (N,) given the prompt. lengths: (N,) tokens.
        path: (N, T) edge of each step, -1 after the end.
        rewards: (N, T) discounted, reward units. log_ratio: (N, T) log(pi / ref) of the action, nats.
        kl: (N, T) KL(pi || ref) of the state, nats. state_values: (N, T) V(s_t), reward units at time 0.
    """

    values: PolicyValues
    jacobian: Floats = field(repr=False)
    prompt: Ints = field(repr=False)
    probability: Floats = field(repr=False)
    lengths: Ints = field(repr=False)
    path: Ints = field(repr=False)
    rewards: Floats = field(repr=False)
    log_ratio: Floats = field(repr=False)
    kl: Floats = field(repr=False)
    state_values: Floats = field(repr=False)

    @property
    def mass(self) -> Floats:
        """P(tau), the prompt's probability included, (N,)."""
        return np.asarray(self.values.tree.weights[self.prompt] * self.probability)

    @property
    def charged(self) -> Floats:
        """(N, T) rewards less beta times the log-ratios: the KL as part of the reward."""
        return self.rewards - self.values.beta * self.log_ratio if self.values.beta else self.rewards

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
        return np.asarray(self.on_path(np.ones(self.path.shape)) @ self.jacobian)

    def on_path(self, weights: Floats) -> Floats:
        """From weights of the actions taken (N, T) to weights of all edges (N, E)."""
        result = np.zeros((len(self.path), len(self.jacobian)))
        row, step = np.nonzero(self.path >= 0)
        result[row, self.path[row, step]] = weights[row, step]
        return result

    def moments(self, estimator: str, weights: Floats, target: Floats | None = None) -> Moments:
        """Of g = sum of weights times grad log pi, by summing over all trajectories.

        Args:
            weights: (N, T) of the actions taken, or (N, E) of all edges.
            target: (D,) what is estimated; None is grad J.
        """
        edges = weights if weights.shape == (len(self.path), len(self.jacobian)) else self.on_path(weights)
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
    """A row of the table from E[g] (D,) and E |g|^2."""
    bias, size, length = (float(np.linalg.norm(v)) for v in (mean - target, target, mean))
    return Moments(
        estimator=estimator,
        samples=samples,
        bias=bias,
        relative_bias=bias / size if size else float("nan"),
        cosine=float(mean @ target) / (size * length)
        if min(size, length) > _ZERO * (size + length)
        else float("nan"),
        variance=max(second - length**2, 0.0),
        bias_error=errors[0],
        variance_error=errors[1],
    )


def enumerate_trajectories(
    subject: Any,
    policy: Any,
    reference: Any = None,
    beta: float | None = None,
    gamma: float | None = None,
    split: str | None = None,
    max_states: int = MAX_STATES,
) -> Enumeration:
    """Everything the tables are made of, for a torch policy. For the arguments see `policy_gradient`.

    Raises: as `policy_gradient`; ValueError if the Jacobian is too large.
    """
    tree = prefix_tree(subject, split, max_states)
    values = policy_values(tree, EnumeratedPolicy(policy), readable(reference), beta, gamma)
    every, depths = values.trajectories, len(tree.levels) - 1
    state_kl = _state_kl(values)
    shape = (len(every.row), depths)
    path, arrays = np.full(shape, -1), np.zeros((4, *shape))
    offsets = np.cumsum([0, *(len(level.parent) for level in tree.levels[1:])])
    row = np.zeros(shape[0], dtype=np.int64)
    for depth in range(depths, 0, -1):
        here = np.flatnonzero(every.length >= depth)
        ends = every.length[here] == depth
        row[here[ends]] = every.row[here[ends]]
        level, edge, step = tree.levels[depth], row[here], depth - 1
        path[here, step] = offsets[step] + edge
        arrays[0, here, step] = values.gamma**step * level.reward[edge]
        arrays[1, here, step] = values.log_policy[step][edge] - values.log_reference[step][edge]
        row[here] = level.parent[edge]
        arrays[2, here, step] = state_kl[step][row[here]]
        arrays[3, here, step] = values.values[step][row[here]]
    return Enumeration(
        values, edge_jacobian(tree, policy), every.prompt, np.exp(every.log_probability), every.length, path, *arrays
    )  # fmt: skip


def _state_kl(values: PolicyValues) -> list[Floats]:
    """KL(pi || ref) of every state, nats; 0 at ended ones."""
    result = []
    for depth, level in enumerate(values.tree.levels[:-1]):
        logs = values.log_policy[depth]
        terms = np.where(logs > -np.inf, np.exp(logs) * (logs - values.log_reference[depth]), 0.0)
        kl = np.zeros(len(level.parent))
        kl[level.running] = np.add.reduceat(terms, level.starts)
        result.append(kl)
    return result
