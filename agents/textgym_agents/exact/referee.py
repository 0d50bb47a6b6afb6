"""The referee: what estimators of the gradients of reward and KL are worth on samples of an older, or another, policy.

pi is the policy whose gradient is wanted, mu the one that has written the samples, rho_t = pi / mu of the action taken
in s_t. Every estimator is g = sum_t w_t grad log pi(a_t given s_t), and is measured by summing over all trajectories
of a small task, or over all groups of them: its bias and its cosine to the true gradient, and its variance.

A reward's gradient and a KL's are refereed apart: J is a sum, and an estimator of J one of each. The estimators of
groups compare returns; each group's expectation is a sum over how often each return is there in the rest of the group.
What an estimator divides by a statistic of the batch is divided by its limit in large batches.

Source: the papers are named with the estimators (`REWARD_ESTIMATORS`, `KL_ESTIMATORS`, `GROUP_ESTIMATORS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import numpy as np

from textgym.checks import Floats, Ints, check_count
from textgym_agents.exact.estimators import Moments, compare, direct_weights, group_moments, kl_gradient
from textgym_agents.exact.objective import to_go
from textgym_agents.exact.samples import TwoPolicies
from textgym_agents.lm.critic_free import centred, leave_one_out, over_mean, standardised

CLIP, CLIP_HIGH, CAP = 0.2, 0.28, 2.0
"""Ranges of ratios: PPO's, DAPO's upper one, and that of truncated importance sampling."""
ROLLOUTS: Final = 2
"""Completions that VinePPO's value of a state is the mean of."""


class SingleEstimator(NamedTuple):
    """An estimator: its weights from samples, its paper and equation.

    Weights are (N, T), or (N, 1) for the same at every step, or (N, E) of all edges. Behind an end they do not count.
    """

    weights: Callable[[TwoPolicies], Floats]
    source: str


def _clipped(samples: TwoPolicies, advantages: Floats, low: float = CLIP, high: float = CLIP) -> Floats:
    """Return rho A where the gradient of -min(rho A, clip(rho) A) is not 0, (N, T)."""
    rho = samples.rho
    kept = np.where(advantages > 0, rho <= 1 + high, rho >= 1 - low)
    return np.asarray(rho * advantages * kept, dtype=np.float64)


def _sequence_ratio(samples: TwoPolicies) -> Floats:
    """Return the product of rho over each trajectory, (N, 1)."""
    return np.asarray(np.exp(samples.log_rho.sum(1, keepdims=True)))


def _prefix_ratio(samples: TwoPolicies) -> Floats:
    """Return the product of rho up to each step, (N, T)."""
    return np.exp(np.cumsum(samples.log_rho, axis=1))


def _whole(samples: TwoPolicies) -> Floats:
    return samples.returns[:, None]


_PPO: Final = "Schulman et al. 2017, 1707.06347, eq. 7"
_VINE: Final = "Kazemnejad et al. 2024, 2410.01679, section 4"
_TIS: Final = "Ionides 2008; Yao et al. 2025"
REWARD_ESTIMATORS: Final[Mapping[str, SingleEstimator]] = {
    "REINFORCE, no correction": SingleEstimator(_whole, "Williams 1992"),
    "REINFORCE, reward to go": SingleEstimator(lambda s: to_go(s.rewards), "Sutton and Barto 2018, 13.3"),
    "REINFORCE, reward to go - V": SingleEstimator(lambda s: s.advantages, "Sutton and Barto 2018, 13.4"),
    "sequence ratio, whole return": SingleEstimator(
        lambda s: _sequence_ratio(s) * _whole(s), "Precup et al. 2000, eq. 4"
    ),
    "sequence ratio, advantages": SingleEstimator(
        lambda s: _sequence_ratio(s) * s.advantages, "Precup et al. 2000, eq. 4"
    ),
    "each reward by the ratio so far": SingleEstimator(
        lambda s: to_go(_prefix_ratio(s) * s.rewards), "Precup et al. 2000, eq. 7"
    ),
    "ratio so far, advantages": SingleEstimator(
        lambda s: _prefix_ratio(s) * s.advantages, "of eq. 7 without what comes after"
    ),
    "token ratio": SingleEstimator(lambda s: s.rho * s.advantages, "Schulman et al. 2015, 1502.05477, eq. 14"),
    "token ratio, clipped (PPO)": SingleEstimator(lambda s: _clipped(s, s.advantages), _PPO),
    "token ratio, clipped, overlong masked": SingleEstimator(
        lambda s: _clipped(s, s.advantages) * s.ended[:, None] / (float(s.mass @ s.ended) or 1.0),
        "Yu et al. 2025, 2503.14476, section 3.4",
    ),
    "token ratio, clip-higher (DAPO)": SingleEstimator(
        lambda s: _clipped(s, s.advantages, CLIP, CLIP_HIGH), "Yu et al. 2025, 2503.14476, eq. 10"
    ),
    "token ratio, truncated (TIS)": SingleEstimator(lambda s: np.minimum(s.rho, CAP) * s.advantages, _TIS),
    "token ratio, masked (MIS)": SingleEstimator(lambda s: s.rho * (s.rho <= CAP) * s.advantages, "Liu et al. 2025"),
    "sequence ratio, truncated": SingleEstimator(lambda s: np.minimum(_sequence_ratio(s), CAP) * s.advantages, _TIS),
    "sequence ratio, masked": SingleEstimator(
        lambda s: _sequence_ratio(s) * (_sequence_ratio(s) <= CAP) * s.advantages, "Liu et al. 2025"
    ),
    "weight capped above (CISPO)": SingleEstimator(
        lambda s: np.minimum(s.rho, 1 + CLIP_HIGH) * s.advantages, "MiniMax 2025, 2506.13585, eq. 4"
    ),
    "mean ratio of the sequence, clipped (GSPO)": SingleEstimator(
        lambda s: _gspo(s, _whole(s) - s.baseline[:, :1]), "Zheng et al. 2025, 2507.18071, eq. 5"
    ),
    "exact V of the next state - V (VinePPO)": SingleEstimator(lambda s: _clipped(s, s.segment_advantages(1)), _VINE),
    "batch mean and deviation (REINFORCE++)": SingleEstimator(
        lambda s: _clipped(s, _standardised_limit(s)), "Hu 2025, 2501.03262, eq. 7"
    ),
}
"""Estimators of the gradient of E[R] from single completions."""


def _gspo(samples: TwoPolicies, advantages: Floats) -> Floats:
    """Return the weights of GSPO's gradient: the clipped ratio is the geometric mean of a sequence's rho.

    They are (N, 1) or (N, T), as the advantages are.
    """
    lengths = samples.lengths[:, None]
    ratio = np.exp(samples.log_rho.sum(1, keepdims=True) / lengths)
    kept = np.where(advantages > 0, ratio <= 1 + CLIP, ratio >= 1 - CLIP)
    return np.asarray(ratio * advantages * kept / lengths)


def _standardised_limit(samples: TwoPolicies) -> Floats:
    """Return returns less their mean over their deviation, both of mu and of all prompts, (N, 1)."""
    mean = float(samples.mass @ samples.returns)
    deviation = float(np.sqrt(samples.mass @ (samples.returns - mean) ** 2)) or 1.0
    return np.asarray((samples.returns[:, None] - mean) / deviation)


KL_ESTIMATORS: Final[Mapping[str, SingleEstimator]] = {
    "k1 in the loss": SingleEstimator(lambda s: s.real, "Schulman 2020"),
    "k2 in the loss": SingleEstimator(lambda s: s.log_ratio, "Schulman 2020"),
    "k3 in the loss": SingleEstimator(lambda s: -np.expm1(-s.log_ratio), "Shao et al. 2024, 2402.03300, eq. 4"),
    "k3 in the loss, times the ratio": SingleEstimator(
        lambda s: s.rho * s.log_ratio,  # rho (k3 + 1 - exp(-l))
        "DeepSeek-V3.2 2025, eq. 7",
    ),
    "k2 in the loss, times the ratio": SingleEstimator(
        lambda s: s.rho * (s.log_ratio + 0.5 * s.log_ratio**2), "as k3 with the ratio"
    ),
    "k1 in the loss, times the ratio": SingleEstimator(lambda s: s.rho * (s.log_ratio + 1), "as k3 with the ratio"),
    "exact in the loss": SingleEstimator(lambda s: direct_weights(s.current), "this package"),
    "k1 in the reward": SingleEstimator(lambda s: s.rho * to_go(s.old_log_ratio), "Ziegler et al. 2019, eq. 2"),
    "k1 in the reward, whole sequence": SingleEstimator(
        lambda s: s.rho * s.old_log_ratio.sum(1, keepdims=True), "Ahmadian et al. 2024, 2402.14740"
    ),
    "k3 in the reward": SingleEstimator(
        lambda s: s.rho * to_go(np.expm1(-s.old_log_ratio) + s.old_log_ratio), "Schulman 2020"
    ),
    "exact in the loss, later KL in the reward": SingleEstimator(
        lambda s: (
            direct_weights(s.current) + s.current.on_path(s.rho * (to_go(s.current.steps.kl) - s.current.steps.kl))
        ),
        "this package",
    ),
}
"""Estimators of the gradient of KL(pi || ref) per sequence; what is charged to returns is what mu's samples had."""


VALUES_FROM_ROLLOUTS: Final[Mapping[str, int]] = {
    "a state's value by 2 completions (VinePPO)": 1,
    "the same, every 4 tokens": 4,
}
"""Tokens from one state with a value to the next."""


def _vine(samples: TwoPolicies, name: str, stride: int) -> Moments:
    """Return the moments of rho times `segment_advantages`, whose values are means of completions that mu writes.

    The value of a state is one number, which ends a segment and begins the next, and is right on average. So the mean
    is that of the exact V, and each value adds its variance times |g|^2 of the difference of the two segments' scores.
    """
    place, rho = np.arange(samples.real.shape[1]) // stride, samples.rho
    edges = samples.on_edges(rho * samples.segment_advantages(stride))
    squares, valued = samples.squares(edges), np.zeros(len(edges))
    for segment in range(place.max() + 1):
        own = samples.on_edges(rho * ((place == segment - 1) * 1.0 - (place == segment)))
        here = samples.real[:, segment * stride]
        squares = squares + here * samples.spread(segment * stride) / ROLLOUTS * samples.squares(own)
        valued += here
    played = 1 + ROLLOUTS * float(samples.mass @ valued)
    mean = (samples.mass @ edges) @ samples.current.jacobian
    return compare(name, played, mean, float(samples.mass @ squares), samples.current.gradient)


class GroupEstimator(NamedTuple):
    """An estimator that compares a group's returns.

    Attributes:
        advantages: (M, n) of returns (M, n).
        factor: (N, T) or (N, 1), of the actions of completions with an advantage above 0, or else below, from samples.
        source: paper and equation.
        per_token: whether a batch's sum is divided by its tokens, and not by its completions.
        unequal: whether groups of equal returns are left out, of what is divided by too, or others played for them.
        masked: whether completions that the budget ended are left out, of what is divided by too.
    """

    advantages: Callable[[Floats], Floats]
    factor: Callable[[TwoPolicies, bool], Floats]
    source: str
    per_token: bool = False
    unequal: bool = False
    masked: bool = False


def _ppo_factor(samples: TwoPolicies, positive: bool, high: float = CLIP) -> Floats:
    sign = np.array(1.0 if positive else -1.0)
    return np.asarray(_clipped(samples, sign, CLIP, high) * sign)


def _gspo_factor(samples: TwoPolicies, positive: bool) -> Floats:
    sign = np.array(1.0 if positive else -1.0)
    return np.asarray(_gspo(samples, sign) * sign)


def _dapo_factor(samples: TwoPolicies, positive: bool) -> Floats:
    return _ppo_factor(samples, positive, CLIP_HIGH)


_RLOO: Final = GroupEstimator(leave_one_out, _ppo_factor, "Ahmadian et al. 2024, 2402.14740, eq. 9")
_GRPO: Final = GroupEstimator(
    standardised, lambda s, up: _ppo_factor(s, up) / s.lengths[:, None], "Shao et al. 2024, 2402.03300, eq. 3"
)
_DAPO: Final = GroupEstimator(standardised, _dapo_factor, "Yu et al. 2025, 2503.14476, eq. 10", per_token=True)
_DYNAMIC: Final = "Yu et al. 2025, 2503.14476, eq. 11"
GROUP_ESTIMATORS: Final[Mapping[str, GroupEstimator]] = {
    "RLOO": _RLOO,
    "RLOO, equal groups dropped": _RLOO._replace(unequal=True, source="Yu et al. 2025, without others in their place"),
    "RLOO, equal groups resampled": _RLOO._replace(unequal=True, source=_DYNAMIC),
    "RLOO, overlong masked": _RLOO._replace(masked=True, source="Yu et al. 2025, 2503.14476, section 3.4"),
    "Dr. GRPO": GroupEstimator(centred, _ppo_factor, "Liu et al. 2025, 2503.20783, section 3.2"),
    "GRPO": _GRPO,
    "GRPO, equal groups dropped": _GRPO._replace(unequal=True, source="Shao et al. 2024, without equal groups"),
    "GRPO, sum over tokens": GroupEstimator(standardised, _ppo_factor, "Shao et al. 2024, without division by length"),
    "GRPO without deviation": GroupEstimator(
        centred, lambda s, up: _ppo_factor(s, up) / s.lengths[:, None], "Shao et al. 2024, without the deviation"
    ),
    "DAPO": _DAPO,
    "DAPO, equal groups resampled": _DAPO._replace(unequal=True, source=_DYNAMIC),
    "DAPO, resampled and overlong masked": _DAPO._replace(
        unequal=True, masked=True, source="Yu et al. 2025, all of it"
    ),
    "GSPO": GroupEstimator(standardised, _gspo_factor, "Zheng et al. 2025, 2507.18071, eq. 5"),
    "CISPO": GroupEstimator(
        standardised,
        lambda s, up: np.minimum(s.rho, 1 + CLIP_HIGH),
        "MiniMax 2025, 2506.13585, eq. 4",
        per_token=True,
    ),
    "MaxRL": GroupEstimator(over_mean, _ppo_factor, "Tajwar et al. 2026, 2602.02710"),
}
"""Estimators of the gradient of E[R] from groups of completions of a prompt."""


def unequal_share(samples: TwoPolicies, group: int) -> Floats:
    """Return with which probability the returns of a completion's group are not all equal, (N,)."""
    every = samples.behaviour.trajectories
    paid = np.stack([every.prompt, samples.returns.round(12)], axis=1)
    _, alike = np.unique(paid, axis=0, return_inverse=True)
    alike = alike.ravel()
    return np.asarray(1.0 - np.bincount(alike, np.exp(every.log_probability))[alike] ** (group - 1))


def _grouped(
    samples: TwoPolicies, name: str, kind: GroupEstimator, group: int, draws: int, seed: int
) -> tuple[Moments, tuple[float, float]]:
    """Return the moments of an estimator, and its mean along the gradient in groups that were drawn, with its error."""
    jacobian, gradient, returns = samples.current.jacobian, samples.current.gradient, samples.returns
    unequal = unequal_share(samples, group) if kind.unequal else np.ones(len(returns))  # (N,)
    ended = samples.ended if kind.masked else np.ones(len(returns))  # (N,)
    counted = samples.lengths if kind.per_token else np.ones(len(returns))  # (N,)
    kept = float(samples.mass @ unequal) or 1.0
    divisor = float(samples.mass @ (counted * unequal * ended)) or 1.0
    weight = ended * kept / divisor  # of a completion in a group that is kept
    scores = np.stack(
        [samples.current.on_path(kind.factor(samples, up) * weight[:, None]) @ jacobian for up in (True, False)]
    )
    moments = group_moments(
        samples.behaviour, gradient, name, returns, scores, kind.advantages, group, draws, seed, kept
    )
    along = scores @ gradient / (float(gradient @ gradient) or np.nan)  # (2, N)
    chosen = _groups(samples, draws // group, group, seed)
    amounts = kind.advantages(returns[chosen].round(12)) / kept
    found = (amounts * np.where(amounts > 0, *along[:, chosen])).mean(1)  # (M,)
    return moments, (float(found.mean()), float(found.std(ddof=1)) / len(found) ** 0.5)


def _groups(samples: TwoPolicies, count: int, group: int, seed: int) -> Ints:
    """Return so many groups (M, n) of completions of a prompt each, drawn as mu writes them."""
    every, generator = samples.behaviour.trajectories, np.random.default_rng([seed, 9])
    weights = samples.behaviour.tree.weights
    drawn, parts = generator.multinomial(count, weights / weights.sum()), list[Ints]()
    for prompt in np.flatnonzero(drawn):
        own = np.flatnonzero(every.prompt == prompt)
        chances = np.exp(every.log_probability[own])
        parts.append(generator.choice(own, (drawn[prompt], group), p=chances / chances.sum()))
    return np.concatenate(parts)


Part = Literal["reward", "KL"]


class Verdict(NamedTuple):
    """A row of the referee's table: what is estimated, what it is worth, and from whom it is.

    `sampled` is the moments' `along` from completions that were drawn, and its standard error; NaN for values of
    completions, which are not drawn.
    """

    part: Part
    moments: Moments
    source: str
    sampled: tuple[float, float]


def referee(samples: TwoPolicies, group: int = 4, draws: int = 20_000, seed: int = 0) -> list[Verdict]:
    """Return a row for every estimator: those of E[R] from single completions and from groups, then those of the KL.

    Args:
        group: completions of a prompt.
        draws: completions that are drawn by `seed` as a check of the sums, and groups where these are too many to sum.
    Raises: ValueError for fewer than two completions a group, or two groups, or a seed below 0.
    """
    check_count("draws", draws, 2 * check_count("group", group, 2))
    check_count("seed", seed, 0)
    gradient, target = samples.current.gradient, kl_gradient(samples.current)
    drawn = np.random.default_rng([seed, 8]).choice(len(samples.mass), draws, p=samples.mass / samples.mass.sum())
    rows: list[Verdict] = []
    parts: tuple[tuple[Part, Mapping[str, SingleEstimator], Floats], ...] = (
        ("reward", REWARD_ESTIMATORS, gradient),
        ("KL", KL_ESTIMATORS, target),
    )
    for part, kinds, wanted in parts:
        for name, each in kinds.items():
            edges = samples.on_edges(each.weights(samples))
            along = edges @ (samples.current.jacobian @ wanted) / (float(wanted @ wanted) or np.nan)  # (N,)
            checked = float(along[drawn].mean()), float(along[drawn].std(ddof=1) / draws**0.5)
            rows.append(Verdict(part, samples.moments(name, edges, wanted), each.source, checked))
    for name, stride in VALUES_FROM_ROLLOUTS.items():
        rows.append(Verdict("reward", _vine(samples, name, stride), _VINE, (np.nan, np.nan)))
    for name, kind in GROUP_ESTIMATORS.items():
        moments, checked = _grouped(samples, name, kind, group, draws, seed)
        rows.append(Verdict("reward", moments, kind.source, checked))
    return sorted(rows, key=lambda row: row.part, reverse=True)
