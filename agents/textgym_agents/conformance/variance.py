"""The exact variance of a policy-gradient estimator on the logits of a small task, by summing over trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from textgym_agents.conformance.gradient import ExactGradients
from textgym_agents.conformance.hooks import Estimator, Floats


def exact_variance(
    exact: ExactGradients, estimator: Estimator, values: Callable[[Any], Any] | None, episodes: int
) -> tuple[float, float]:
    """Return the trace of the covariance of one batch's estimate of grad J, and how wide its spectrum is.

    With a baseline of other completions the estimate is a U-statistic of order 2, the mean over pairs x, y of
    h(x, y) = (a(x) - G(y) s(x) + a(y) - G(x) s(y)) / 2, where s is the score, G the return and a(x) the episode's term
    without baseline. For n of them its variance is 4 (n - 2) / (n (n - 1)) Var E[h given x] + 2 / (n (n - 1)) Var h.

    Args:
        estimator: the baseline, the credit and the KL. values: V(s), with the baseline "value".
        episodes: of a batch.
    Returns: E |g - E g|^2, and sqrt(tr(C^2)) / tr(C) in (0, 1], C being the covariance to first order.
    Source: Hoeffding (1948), A class of statistics with asymptotically normal distribution, section 5.
    """
    weight, prompt, score, term, returns = _episodes(exact, estimator, values)
    if estimator.baseline in ("none", "value"):
        total, spread = _covariance(weight, term)
        return total / episodes, spread
    if estimator.baseline == "batch":
        first, second, linear = _pairs(weight, score, term, returns)
        return _hoeffding(first, second, episodes), _covariance(weight, linear)[1]
    count, groups = estimator.group, episodes // estimator.group
    within, means, masses = 0.0, [], []
    linear = np.zeros_like(term)
    for own in (np.flatnonzero(prompt == index) for index in np.unique(prompt)):
        mass = float(weight[own].sum())
        shares = weight[own] / mass
        first, second, linear[own] = _pairs(shares, score[own], term[own], returns[own])
        within += mass * _hoeffding(first, second, count)
        means.append(shares @ linear[own])
        masses.append(mass)
    between, _ = _covariance(np.array(masses), np.array(means))
    return (within + between) / groups, _covariance(weight, linear)[1]


def _pairs(weight: Floats, score: Floats, term: Floats, returns: Floats) -> tuple[float, float, Floats]:
    """Var E[h given x], Var h, and 2 E[h given x] less its mean's constant, (N, D): what is linear in one episode."""
    mean_return, mean_term = float(weight @ returns), weight @ term
    conditional = (term - mean_return * score + mean_term) / 2  # the mean score is 0
    mean = weight @ conditional
    first = float(weight @ (conditional**2).sum(1)) - float(mean @ mean)
    # |h|^2 over all pairs from scalar products of the terms and scores alone.
    at, ss, as_ = (one @ other.T for one, other in ((term, term), (score, score), (term, score)))
    g = returns
    square = np.diag(at)[:, None] + g[None] ** 2 * np.diag(ss)[:, None] - 2 * g[None] * np.diag(as_)[:, None]
    cross = at - g[:, None] * as_ - g[None] * as_.T + np.outer(g, g) * ss.T
    squares = (square + square.T + 2 * cross) / 4
    second = float(weight @ squares @ weight) - float(mean @ mean)
    return first, second, 2 * conditional - mean_term


def _hoeffding(first: float, second: float, count: int) -> float:
    return (4 * (count - 2) * first + 2 * second) / (count * (count - 1))


def _covariance(weight: Floats, term: Floats) -> tuple[float, float]:
    """Its trace, and sqrt(tr(C^2)) / tr(C)."""
    centred = np.sqrt(weight)[:, None] * (term - weight @ term)
    gram = centred @ centred.T
    total = float(np.trace(gram))
    return total, float(np.sqrt((gram**2).sum())) / max(total, 1e-300)


def _episodes(
    exact: ExactGradients, estimator: Estimator, values: Callable[[Any], Any] | None
) -> tuple[Floats, Any, Floats, Floats, Floats]:
    """Of every trajectory: probability (N,), prompt (N,), score (N, D), term a (N, D) and return G (N,)."""
    tree, own = exact.tree, exact.values
    size = tree.task.vocabulary.size
    every = own.trajectories
    first = np.cumsum([0, *(len(level.running) for level in tree.levels[:-1])])
    probability = exact.mass.reshape(-1, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        policy = np.where(probability > 0, probability / probability.sum(1, keepdims=True), 0.0)
    ratios = np.zeros_like(policy)
    ratios.reshape(-1)[:] = exact.per_edge(
        [np.where(p > -np.inf, p - q, 0.0) for p, q in zip(own.log_policy, own.log_reference, strict=True)]
    )
    kl = (policy * ratios).sum(1)
    table = None if values is None else _table(tree, values)
    count = len(every.row)
    score, term = np.zeros((count, *policy.shape)), np.zeros((count, *policy.shape))
    returns = np.zeros(count)
    for n in range(count):
        states, actions, rewards = _path(exact, first, int(every.length[n]), int(every.row[n]))
        charged = ratios[states, actions] if estimator.kl == "k1" else np.append(kl[states[1:]], 0.0)
        credit = rewards - own.beta * charged
        to_go = credit[::-1].cumsum()[::-1]
        returns[n] = to_go[0]
        weights = to_go if estimator.to_go else np.full(len(states), to_go[0])
        if table is not None:
            weights = weights - table[states]
        grads = -policy[states]
        grads[np.arange(len(states)), actions] += 1
        score[n, states] += grads
        term[n, states] += weights[:, None] * grads
        if estimator.kl == "exact":
            term[n, states] -= own.beta * policy[states] * (ratios[states] - kl[states, None])
    flat = (count, policy.size)
    return every.probability, every.prompt, score.reshape(flat), term.reshape(flat), returns


def _path(exact: ExactGradients, first: Any, length: int, row: int) -> tuple[Any, Any, Floats]:
    """The running states (T,), actions and discounted rewards of the trajectory that ends in a state."""
    tree, states, actions, rewards = exact.tree, [], [], []
    for depth in range(length, 0, -1):
        level = tree.levels[depth]
        actions.append(int(level.action[row]))
        rewards.append(exact.values.gamma ** (depth - 1) * float(level.reward[row]))
        row = int(level.parent[row])
        states.append(int(first[depth - 1] + np.searchsorted(tree.levels[depth - 1].running, row)))
    return np.array(states[::-1]), np.array(actions[::-1]), np.array(rewards[::-1])


def _table(tree: Any, values: Callable[[Any], Any]) -> Floats:
    parts = [values(tree.observations(d, level.running)) for d, level in enumerate(tree.levels[:-1])]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])
