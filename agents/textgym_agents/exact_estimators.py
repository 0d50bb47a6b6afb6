"""Bias and variance of policy-gradient estimators against the exact gradient of J: REINFORCE, GAE, RLOO, GRPO.

All of them see the KL as part of the reward, R - beta log(P / P_ref), so that they differ in their advantages alone;
for the KL in the loss see `textgym_agents.exact_kl`. Rewards and values are in units of time 0, as the agents here have
them: the factor gamma^t of the exact gradient, which practice often leaves out, is in every estimator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from textgym_agents.advantages import centred, gae, leave_one_out, standardised
from textgym_agents.exact import Floats, Ints
from textgym_agents.exact_moments import Enumeration, Moments, compare

_TUPLES = 500_000
Advantages = Callable[[Floats], Floats]


def estimator_table(
    enumeration: Enumeration,
    lams: Sequence[float] = (0.0, 0.95),
    group: int = 2,
    draws: int = 200_000,
    seed: int = 0,
) -> list[Moments]:
    """One row per estimator.

    Args:
        enumeration: from `enumerate_trajectories`.
        lams: of GAE, with the exact V as critic and with a critic that says 0.
        group: completions of one prompt per estimate of RLOO and GRPO. All tuples of completions are summed over where
            there are at most 500,000; otherwise `draws` of them are drawn by `seed`, and the errors are stated.
    Raises: ValueError if `group` < 2.
    """
    if group < 2:
        raise ValueError(f"group={group!r}: allowed is an integer >= 2")
    rewards, values = enumeration.charged, enumeration.state_values
    whole = np.repeat(rewards.sum(1, keepdims=True), rewards.shape[1], axis=1)
    rows = [
        enumeration.moments("REINFORCE", whole),
        enumeration.moments("REINFORCE, reward to go", to_go(rewards)),
        enumeration.moments("REINFORCE, reward to go - V", to_go(rewards) - values),
    ]
    for lam in lams:
        for critic, says in (("V", values), ("critic 0", np.zeros_like(values))):
            advantages = gae(rewards, says, enumeration.lengths, lam)
            rows.append(enumeration.moments(f"GAE({lam:g}), {critic}", advantages))
    for name, function, mean_over_tokens in (
        ("RLOO", leave_one_out, False),
        ("GRPO without std", centred, False),
        ("GRPO", standardised, False),
        ("GRPO, mean over tokens", standardised, True),
    ):
        rows.append(_group_moments(enumeration, name, function, mean_over_tokens, group, draws, seed))
    return rows


def to_go(rewards: Floats) -> Floats:
    """Sums of this and all later entries, (N, T)."""
    return np.asarray(np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], dtype=np.float64)


def _group_moments(
    enumeration: Enumeration,
    name: str,
    advantages: Advantages,
    mean_over_tokens: bool,
    group: int,
    draws: int,
    seed: int,
) -> Moments:
    """Moments of g = (1/n) sum_i A_i grad log P(tau_i) over groups of n completions of one prompt."""
    weights, returns = enumeration.values.tree.weights, enumeration.charged.sum(1)
    scale = 1 / enumeration.lengths if mean_over_tokens else np.ones(len(returns))
    mean, second = np.zeros(enumeration.jacobian.shape[1]), 0.0
    scatter, spread = 0.0, 0.0  # variances of the two estimates above, where they are drawn
    generator = np.random.default_rng([seed, 6])
    for prompt in np.flatnonzero(weights > 0):
        own = np.flatnonzero((enumeration.prompt == prompt) & (enumeration.probability > 0))
        tuples, mass, drawn = _tuples(enumeration.probability[own], group, draws, generator)
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


def _tuples(
    probability: Floats, group: int, draws: int, generator: np.random.Generator
) -> tuple[Ints, Floats, bool]:
    """Groups of completions (M, n) with their probabilities (M,): all there are, or some that were drawn."""
    count = len(probability)
    if count**group <= _TUPLES:
        tuples = np.indices((count,) * group).reshape(group, -1).T
        return tuples, probability[tuples].prod(1), False
    drawn = generator.choice(count, size=(draws, group), p=probability / probability.sum())
    return drawn, np.full(draws, 1 / draws), True


def _squares(tuples: Ints, amounts: Floats, gram: Floats) -> Floats:
    """|sum_i amount_i grad log P(tau_i)|^2 of every group, (M,)."""
    result = np.zeros(len(tuples))
    for i in range(tuples.shape[1]):
        for j in range(tuples.shape[1]):
            result += amounts[:, i] * amounts[:, j] * gram[tuples[:, i], tuples[:, j]]
    return result
