"""Bias and variance of KL estimators, of the value KL(pi || ref) and of its gradient, by exact enumeration.

l_t = log(pi / ref) of the action taken in s_t. Per token k1 = l, k2 = l^2 / 2, k3 = exp(-l) - 1 + l, and "exact" is
the KL of the two distributions in s_t; a sequence's estimate is their sum. A KL can be differentiated in the loss, with
the states as they were sampled, or be charged to the return of the actions that led to it, or both: the gradient of the
sequence's KL has one part for the distributions and one for the states visited.

Source: Schulman (2020), Approximating KL Divergence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from textgym.solve import evaluate_edges
from textgym_agents.exact import Floats, edge_weights
from textgym_agents.exact_estimators import to_go
from textgym_agents.exact_moments import Enumeration, Moments


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
    """k1, k2, k3 and the exact KL of the states visited, as estimators of KL(pi || ref) per sequence."""
    ratio, mass, truth = enumeration.log_ratio, enumeration.mass, enumeration.values.kl
    rows = []
    for name, tokens in (
        ("k1", ratio),
        ("k2", 0.5 * ratio**2),
        ("k3", np.expm1(-ratio) + ratio),
        ("exact", enumeration.kl),
    ):
        sums = tokens.sum(1)
        mean = float(mass @ sums)
        rows.append(ValueMoments(name, mean, mean - truth, float(mass @ (sums - mean) ** 2)))
    return rows


def kl_gradient_table(enumeration: Enumeration) -> list[Moments]:
    """Estimators of the gradient of KL(pi || ref) per sequence, in the loss, in the reward, or in both."""
    ratio, kl = enumeration.log_ratio, enumeration.kl
    later = to_go(kl) - kl
    direct = _direct(enumeration)
    weights = {
        "k1 in the loss": (enumeration.path >= 0).astype(np.float64),
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
    """The exact gradient of KL(pi || ref) per sequence, (D,): of -J where nothing is paid and beta is 1."""
    values = enumeration.values
    levels = tuple(replace(level, reward=np.zeros_like(level.reward)) for level in values.tree.levels)
    unpaid = evaluate_edges(
        replace(values.tree, levels=levels), values.log_policy, values.log_reference, 1.0, values.gamma
    )
    return np.asarray(-np.concatenate(edge_weights(unpaid)) @ enumeration.jacobian)


def _direct(enumeration: Enumeration) -> Floats:
    """Weights (N, E) of the gradient of the exact KL in each state visited: pi(a) l(a) on all of its edges."""
    values = enumeration.values
    tree, own = values.tree, values.log_policy
    terms = [
        np.exp(p) * np.where(p > -np.inf, p - q, 0.0) for p, q in zip(own, values.log_reference, strict=True)
    ]
    flat, offsets = np.concatenate(terms), np.cumsum([0, *(len(level.parent) for level in tree.levels[1:])])
    result = np.zeros((len(enumeration.path), len(flat)))
    for depth, level in enumerate(tree.levels[:-1]):
        here = np.flatnonzero(enumeration.path[:, depth] >= 0)
        parent = tree.levels[depth + 1].parent
        state = parent[enumeration.path[here, depth] - offsets[depth]]
        visited = np.zeros((len(here), len(level.parent)))
        visited[np.arange(len(here)), state] = 1.0
        edges = slice(offsets[depth], offsets[depth + 1])
        result[here, edges] = visited[:, parent] * flat[edges]
    return result
