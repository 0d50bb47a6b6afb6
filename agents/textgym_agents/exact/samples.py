"""All trajectories of a small task as one policy writes them for the gradient of another.

pi is the policy whose gradient is wanted, mu the one that has written the samples, rho_t = pi / mu of the action taken
in s_t.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Unpack

import numpy as np

from textgym.checks import Floats, Ints
from textgym.solver import PolicyValues
from textgym_agents.exact.estimators import Enumeration, Moments, compare
from textgym_agents.exact.objective import (
    Problem,
    ProblemOptions,
    edge_jacobian,
    log_ratios,
    steps,
    to_go,
    torch_values,
)


@dataclass(frozen=True, eq=False)
class TwoPolicies:
    """All N trajectories of a task, T steps at the longest, as one policy writes them for the gradient of another.

    Attributes:
        current: everything about pi, at beta = 0.
        behaviour: the values of mu on the same tree.
    """

    current: Enumeration
    behaviour: PolicyValues = field(repr=False)

    @property
    def mass(self) -> Floats:
        """P(tau) under mu, (N,)."""
        return self.behaviour.trajectories.probability

    @property
    def lengths(self) -> Ints:
        """Tokens of each trajectory, (N,)."""
        return self.behaviour.trajectories.length

    @cached_property
    def real(self) -> Floats:
        """1 where there is a step, else 0, (N, T)."""
        return (self.current.steps.path >= 0).astype(np.float64)

    @cached_property
    def log_rho(self) -> Floats:
        """log(pi / mu) of the actions taken, (N, T) nats; 0 where mu never goes."""
        own, other = (self._taken(each.log_policy) for each in (self.current.values, self.behaviour))
        return np.where(np.exp(other) > 0, own - other, 0.0)

    @property
    def rho(self) -> Floats:
        """Ratios pi / mu of the actions taken, (N, T)."""
        return np.exp(self.log_rho)

    @cached_property
    def log_ratio(self) -> Floats:
        """log(pi / ref) of the actions taken, (N, T) nats."""
        return self.current.steps.log_ratio

    @cached_property
    def old_log_ratio(self) -> Floats:
        """log(mu / ref) of the actions taken, (N, T) nats, as it was when they were sampled."""
        return self._taken(log_ratios(self.behaviour))

    @property
    def rewards(self) -> Floats:
        """Discounted rewards, (N, T)."""
        return self.current.steps.rewards

    @cached_property
    def returns(self) -> Floats:
        """Return of each trajectory, (N,)."""
        return np.asarray(self.rewards.sum(1))

    @cached_property
    def baseline(self) -> Floats:
        """V of mu in the state of each step, (N, T)."""
        return steps(self.behaviour).state_values

    @property
    def advantages(self) -> Floats:
        """Reward to go less V of mu, (N, T)."""
        return to_go(self.rewards) - self.baseline

    def _taken(self, edges: tuple[Floats, ...] | list[Floats]) -> Floats:
        """Return an array per edge as one per step, (N, T); 0 after the end."""
        flat, path = np.concatenate(edges), self.current.steps.path
        return np.where(path >= 0, flat[path], 0.0)

    @cached_property
    def ended(self) -> Floats:
        """1 where a completion ended by itself, or the task has no stop token; 0 where the budget ended it, (N,)."""
        tree, path = self.behaviour.tree, self.current.steps.path
        stops = tree.task.end_ids
        last = np.concatenate([level.action for level in tree.levels[1:]])[path[np.arange(len(path)), self.lengths - 1]]
        return np.isin(last, stops).astype(np.float64) if stops else np.ones(len(path))

    def segment_advantages(self, stride: int) -> Floats:
        """Return rewards of the step's segment of `stride` tokens, and V of mu where it ends less V where it begins.

        (N, T); behind an end they mean nothing.
        """
        begin = np.arange(self.real.shape[1]) // stride * stride
        ahead = ((0, 0), (0, stride))
        # V less what is to come is what was paid so far, up to a sum that both ends share.
        worth = np.pad(self.baseline, ahead) - np.pad(to_go(self.rewards), ahead)  # (N, T + stride)
        return np.asarray(worth[:, begin + stride] - worth[:, begin])

    def spread(self, step: int) -> Floats:
        """Return the variance of the reward to go under mu in the state of a step, (N,); 0 after the end."""
        every, path = self.behaviour.trajectories, self.current.steps.path
        state = every.prompt if step == 0 else path[:, step - 1] + 1
        mass, found = (np.bincount(state, self.mass * each) for each in (1.0, self.advantages[:, step] ** 2))
        return np.asarray((found / np.where(mass > 0, mass, 1.0))[state])

    def squares(self, edges: Floats) -> Floats:
        """Return |g|^2 of estimates with weights of all edges, (N,)."""
        return np.asarray(((edges @ self.current.gram) * edges).sum(1))

    def moments(self, name: str, weights: Floats, target: Floats) -> Moments:
        """Return the moments of an estimator with weights (N, T) of actions taken, or (N, E) of all edges."""
        edges = self.on_edges(weights)
        mean = (self.mass @ edges) @ self.current.jacobian
        return compare(name, 1, mean, float(self.mass @ self.squares(edges)), target)

    def on_edges(self, weights: Floats) -> Floats:
        """Return weights of the actions taken (N, T) as those of all edges, (N, E)."""
        return (
            weights if weights.shape == (len(self.mass), len(self.current.jacobian)) else self.current.on_path(weights)
        )


def samples_of(
    problem: Problem, current: object, behaviour: object, reference: object = None, **options: Unpack[ProblemOptions]
) -> TwoPolicies:
    """Return the trajectories of `behaviour` for the gradient of `current`, both torch policies. Args: `torch_values`.

    Rewards and KL are refereed apart, so that `beta` is 0 here.

    Raises: as `torch_values`; ValueError if the Jacobian is too large, or for another beta.
    """
    if options.get("beta"):
        raise ValueError(f"beta={options['beta']!r}: the gradient is that of the reward alone; allowed is 0, or none")
    options = {**options, "beta": 0.0}
    own, values = torch_values(problem, current, reference, **options)
    enumeration = Enumeration(values, _coordinates(edge_jacobian(values.tree, own)), steps(values))
    return TwoPolicies(enumeration, torch_values(values.tree, behaviour, reference, **options)[1])


def _coordinates(jacobian: Floats) -> Floats:
    """Return rows (E, D) in an orthonormal basis of what they span, (E, min(E, D)): their products are the same."""
    edges, parameters = jacobian.shape
    return jacobian if edges >= parameters else np.asarray(np.linalg.qr(jacobian.T, mode="r")).T
