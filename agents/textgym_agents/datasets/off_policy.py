"""Off-policy evaluation: what a policy is worth, from episodes that another policy wrote.

Arrays are (B, T): B logged episodes of at most T tokens of the policy, 0 behind an episode's end. Rewards are pays at
time 0: gamma^t r_t for E[R], less beta log(pi / pi_ref) of the token for J. An estimate is a sum of one number per
episode over a sum of another, which is 1 where nothing is normalised.

Source: Precup, Sutton and Singh (2000), Eligibility traces for off-policy policy evaluation, section 3 (importance
sampling, per decision, weighted); Ionides (2008), Truncated importance sampling; Jiang and Li (2016), arXiv:1511.03722,
eq. 10, and Thomas and Brunskill (2016), arXiv:1604.00923, eq. 1 (doubly robust); Le et al. (2019), arXiv:1903.08738,
algorithm 3 (fitted Q evaluation); Maurer and Pontil (2009), arXiv:0907.3740, theorem 4, and Thomas et al. (2015), High
confidence off-policy evaluation, theorem 1 (the lower bound).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

from textgym.checks import Bools, Floats, Ints, check_count
from textgym.estimates import Estimate, interval, resampled_counts, widen

FEWEST: Final = 10.0
"""Effective samples below which nothing is estimated."""
_SHRINK = 10.0  # visits that the mean of a state counts for in the Q of `doubly_robust`
_FITS = 200  # bootstrap resamples of fitted Q
_CHOOSING = 20  # one of so many episodes chooses where the lower bound cuts
_NUMBERS = 2**24  # that the fits of a part of the resamples hold
_LEAST = 1e-300


@dataclass(frozen=True, eq=False)
class Logged:
    """B logged episodes as a policy sees them, see the module.

    Attributes:
        lengths: (B,) int64, tokens of the policy, at least 1.
        states, edges: (B, T) int64, the same number for the same state, and for the same token in the same state.
        rewards: (B, T) float64, reward units at time 0.
        log_policy: (B, T) float64, log pi of the logged tokens under the policy that is judged, nats; may be -inf.
        log_logged: (B, T) the same under the policy that wrote them; NaN where it is not known.
        log_logged_sums: (B,) of the whole episode; NaN where it is not known.
        earned: (B,) the returns without the KL, where `rewards` are less it; None: those of `rewards`.
    """

    lengths: Ints
    states: Ints
    edges: Ints
    rewards: Floats
    log_policy: Floats
    log_logged: Floats
    log_logged_sums: Floats
    earned: Floats | None = None

    @cached_property
    def weights(self) -> Floats:
        """Return pi(tau) / pi_b(tau) of every episode (B,); NaN where it is not known."""
        return np.asarray(np.exp(self.log_policy.sum(1) - self.log_logged_sums))

    @cached_property
    def step_weights(self) -> Floats:
        """Return prod_{u <= t} pi / pi_b (B, T); behind the end that of the whole episode."""
        return np.asarray(np.exp(np.cumsum(self.log_policy - self.log_logged, axis=1)))

    @cached_property
    def returns(self) -> Floats:
        """Return the sum of the rewards of every episode (B,)."""
        return np.asarray(self.rewards.sum(1))

    @property
    def differs(self) -> bool:
        """Return whether not all episodes earned the same: where they did, the log cannot know what pays."""
        return bool(np.ptp(self.returns if self.earned is None else self.earned) > 0)


class Terms(NamedTuple):
    """An estimate as the sum of `tops` (B,) over the sum of `bottoms` (B,)."""

    tops: Floats
    bottoms: Floats

    @property
    def value(self) -> float:
        """Return the estimate."""
        return float(self.tops.sum() / self.bottoms.sum())


def importance_sampling(log: Logged) -> Terms:
    """Return the mean of w R, w being the episode's ratio: without bias where pi_b writes whatever pi does."""
    return Terms(log.weights * log.returns, np.ones(len(log.lengths)))


def self_normalised(log: Logged) -> Terms:
    """Return the sum of w R over the sum of w: within the range of the returns, with a bias of order 1 / B."""
    return Terms(log.weights * log.returns, log.weights)


def truncated(log: Logged, most: float | None = None) -> Terms:
    """Return the mean of min(w, c) R: less spread, and biased by what is cut.

    Args: most: c; None: the square root of B.
    """
    most = math.sqrt(len(log.lengths)) if most is None else most
    return Terms(np.minimum(log.weights, most) * log.returns, np.ones(len(log.lengths)))


def per_decision(log: Logged) -> Terms:
    """Return the mean of the sums over t of w_{0:t} r_t: a pay is weighted by the tokens up to it, no later ones."""
    return Terms((log.step_weights * log.rewards).sum(1), np.ones(len(log.lengths)))


def doubly_robust(log: Logged, values: Floats, action_values: Floats) -> Terms:
    """Return the mean of V(s_0) + the sum over t of w_{0:t} (r_t + V(s_{t+1}) - Q(s_t, a_t)).

    Args:
        values: (B, T + 1), V of every state that an episode came through, 0 from its end on. action_values: (B, T), Q
            of its tokens. They must fit: V(s) = sum_a pi(a given s) Q(s, a); and not know the episode they are used on.
    """
    errors = log.rewards + values[:, 1:] - action_values
    return Terms(values[:, 0] + (log.step_weights * errors).sum(1), np.ones(len(log.lengths)))


class _Step(NamedTuple):
    """The running episodes at one time, ordered by state and token."""

    rows: Ints  # (n,)
    starts: Ints  # (e,) where each edge begins in them
    edge_of: Ints  # (n,) the edge of each row
    state_of: Ints  # (e,) the state of each edge
    chances: Floats  # (e, 1) pi of each edge


def _steps(log: Logged) -> list[_Step]:
    found = []
    for time in range(int(log.lengths.max())):
        running = np.flatnonzero(log.lengths > time)
        rows = running[np.lexsort((log.edges[running, time], log.states[running, time]))]
        states, edges = log.states[rows, time], log.edges[rows, time]
        new_state = np.append(True, states[1:] != states[:-1])
        new_edge = new_state | np.append(True, edges[1:] != edges[:-1])
        starts = np.flatnonzero(new_edge)
        state_of_edge = np.cumsum(new_state[starts]) - 1
        chances = np.exp(log.log_policy[rows[starts], time])[:, None]
        found.append(_Step(rows, starts, np.cumsum(new_edge) - 1, state_of_edge, chances))
    return found


def fitted_q(log: Logged, counts: Floats, shrink: float = 0.0) -> tuple[Floats, Floats]:
    """Fit Q of the policy by induction backwards over the logged states: Q(s, a) is the mean of r + V(s').

    V(s) = sum_a pi(a given s) Q(s, a), where tokens that were never logged in a state count as the mean of those that
    were. What no fitted episode visits has the value of where it was left.

    Args:
        counts: (B, R), how often each episode counts in each of R fits.
        shrink: visits that the mean of a state counts for in the mean of each of its tokens.
    Returns: V (B, T + 1, R), 0 from the end on, and Q (B, T, R), of the states and tokens of all episodes.
    """
    steps, (count, width), fits = _steps(log), log.rewards.shape, counts.shape[1]
    values, action_values = np.zeros((count, width + 1, fits)), np.zeros((count, width, fits))
    unseen: list[Bools] = []
    for time, step in reversed(list(enumerate(steps))):
        own, starts = counts[step.rows], np.unique(step.state_of, return_index=True)[1]
        targets = own * (log.rewards[step.rows, time, None] + values[step.rows, time + 1])
        visits, sums = (np.add.reduceat(each, step.starts) for each in (own, targets))  # (e, R)
        state_visits, state_sums = (np.add.reduceat(each, starts) for each in (visits, sums))  # (s, R)
        means = (state_sums / np.maximum(state_visits, _LEAST))[step.state_of]  # (e, R)
        some = visits > 0
        edges = np.where(some, (sums + shrink * means) / np.maximum(visits + shrink, _LEAST), means)
        gains = np.add.reduceat(step.chances * (edges - means), starts)[step.state_of]
        values[step.rows, time] = (means + gains)[step.edge_of]
        action_values[step.rows, time] = edges[step.edge_of]
        unseen.insert(0, (state_visits[step.state_of] == 0)[step.edge_of])
    start = (counts * values[:, 0]).sum(0) / np.maximum(counts.sum(0), _LEAST)
    for time, (step, new) in enumerate(zip(steps, unseen, strict=True)):
        before = action_values[step.rows, time - 1] if time else start
        for found in (values, action_values):
            found[step.rows, time] = np.where(new, before, found[step.rows, time])
    return values, action_values


def cross_fitted(log: Logged, group: int = 1) -> tuple[Floats, Floats]:
    """Return V (B, T + 1) and Q (B, T) for `doubly_robust`: of every other episode as the rest fits them.

    Args: group: consecutive episodes that stay together.
    """
    half = np.arange(len(log.lengths)) // group % 2
    values, action_values = fitted_q(log, (half[:, None] != np.arange(2)).astype(np.float64), _SHRINK)
    each = np.arange(len(half))
    return values[each, :, half], action_values[each, :, half]


def effective_samples(terms: Terms, weights: Floats) -> float:
    """Return how many equal samples would know as much: the smaller of two sizes (sum v)^2 / sum v^2.

    One is that of the weights (Kish, 1965), 0 where the policy writes none of the episodes. The other is of how far
    each episode moves the estimate, from the median: where nearly all completions say the same, it counts those that do
    not. Where all say the same it is left out.

    Args: weights: (B,), pi(tau) / pi_b(tau).
    """
    if not weights.any():
        return 0.0
    moves = terms.tops - terms.value * terms.bottoms
    far = np.abs(moves - np.median(moves))
    return min(_size(each) for each in (weights, far) if each.any())


def _size(each: Floats) -> float:
    scaled = each / each.max()
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def bernstein_bound(terms: Floats, delta: float = 0.05) -> float:
    """Return what the mean of non-negative draws is at least, with probability 1 - delta.

    Draws are cut at c, which only lowers their mean; a twentieth of them, the first, chooses c, the others bound.

    Args: terms: (n,), at least 0, without any upper end.
    Source: Maurer and Pontil (2009), theorem 4; Thomas et al. (2015), theorem 1 with one c.
    """
    first = max(len(terms) // _CHOOSING, 2)
    rest = len(terms) - first
    if rest < 2:
        return 0.0
    top = max(float(terms[:first].max()), 1e-300)
    cuts = top * 2.0 ** np.arange(-4, 1)  # none above the largest draw is better than that one
    guesses = [_bernstein(np.minimum(terms[:first], cut), float(cut), rest, delta) for cut in cuts]
    cut = float(cuts[int(np.argmax(guesses))])
    return max(_bernstein(np.minimum(terms[first:], cut), cut, rest, delta), 0.0)


def _bernstein(draws: Floats, most: float, count: int, delta: float) -> float:
    """Return the lower bound for `count` draws in [0, most] with the mean and variance of these."""
    spread, log = float(draws.var(ddof=1)), math.log(2 / delta)
    return float(draws.mean()) - math.sqrt(2 * spread * log / count) - 7 * most * log / (3 * (count - 1))


def ratio_intervals(terms: Terms, counts: Ints | Floats) -> tuple[Estimate, Estimate]:
    """Return an estimate with two 95% bootstrap intervals: studentised, and of the replicates' percentiles.

    Args: counts: (R, B), how often each episode is drawn in each resample.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, sections 12.5 (bootstrap-t) and 13.3.
    """
    value, bottoms = terms.value, terms.bottoms
    moves = terms.tops - value * bottoms
    columns = np.stack([moves, bottoms, moves * moves, moves * bottoms, bottoms * bottoms], axis=1)
    sums = np.asarray(counts @ columns, dtype=np.float64)  # (R, 5)
    shifts = sums[:, 0] / np.maximum(sums[:, 1], _LEAST)
    own, errors = float(_error(np.zeros(1), columns.sum(0)[None])[0]), _error(shifts, sums)
    usable = errors > 0
    students = shifts[usable] / errors[usable] if usable.any() else np.zeros(1)
    low, high = np.quantile(students, [0.025, 0.975])
    return Estimate(value, float(value - high * own), float(value - low * own)), interval(value, value + shifts)


def _error(shifts: Floats, sums: Floats) -> Floats:
    """Return the standard errors (R,) of ratios by the delta method; 0 where there is nothing but rounding.

    Args: shifts: (R,), the ratios less the one that the terms moved from; sums: (R, 5) of the products of both.
    """
    most = sums[:, 2] + shifts**2 * sums[:, 4]
    spread = most - 2 * shifts * sums[:, 3]
    return np.asarray(np.sqrt(np.where(spread > 1e-12 * most, spread, 0.0)) / np.maximum(sums[:, 1], _LEAST))


@dataclass(frozen=True)
class Judged:
    """What one estimator says.

    Attributes:
        estimate: with its 95% interval; None where it is not known. why: why not; "" where it is.
        effective_samples: see the function; NaN where log-probabilities are not known.
    """

    estimate: Estimate | None
    effective_samples: float
    why: str = ""


_WEIGHTED = ("importance sampling", "self-normalised", "truncated", "per decision", "doubly robust")


def judge(log: Logged, seed: int = 0, group: int = 1) -> dict[str, Judged]:
    """Return what every estimator says of E[R], or of J where the KL is part of the rewards.

    Not known is what needs log-probabilities that are missing, has fewer than `FEWEST` effective samples, or where
    the log's returns do not differ.

    Args: seed: of the bootstrap. group: consecutive episodes of one prompt, resampled together; divides B.
    Raises: ValueError for another group.
    """
    check_count("group", group)
    if len(log.lengths) % group:
        raise ValueError(f"group={group}: allowed are divisors of {len(log.lengths)} episodes")
    if not np.isfinite(log.rewards).all():
        why = "the policy writes what the reference never does, so that J is -inf"
        return {name: Judged(None, math.nan, why) for name in (*_WEIGHTED, "fitted Q")}
    counts = resampled_counts(np.random.default_rng([seed, 12]), len(log.lengths) // group)
    whole, steps = not np.isnan(log.log_logged_sums).any(), not np.isnan(log.log_logged).any()
    found = dict[str, Terms]()
    if whole:
        found = {"importance sampling": importance_sampling(log), "self-normalised": self_normalised(log)}
        found["truncated"] = truncated(log)
    if steps:
        found |= {"per decision": per_decision(log), "doubly robust": doubly_robust(log, *cross_fitted(log, group))}
    same = "" if log.differs else "the rewards of the log do not differ"
    judged = dict[str, Judged]()
    for name in _WEIGHTED:
        if name not in found:
            why = f"not every episode of the log has log-probabilities{' of tokens' if whole else ''}"
            judged[name] = Judged(None, math.nan, why)
            continue
        terms = Terms(*(_grouped(each, group) for each in found[name]))
        size = effective_samples(terms, _grouped(log.weights, group))
        why = same or ("" if size >= FEWEST else f"fewer than {FEWEST:g} effective samples")
        judged[name] = Judged(None if why else ratio_intervals(terms, counts)[0], size, why)
    weights = _grouped(log.weights, group)
    size = _size(weights) if whole and weights.any() else 0.0 if whole else math.nan
    why = same or (f"fewer than {FEWEST:g} effective samples" if size < FEWEST else "")
    judged["fitted Q"] = Judged(None if why else fitted_interval(log, counts[:_FITS], group), size, why)
    return judged


def fitted_interval(log: Logged, counts: Ints | Floats, group: int = 1) -> Estimate:
    """Return the mean of V(s_0) by fitted Q, with the percentile interval of fits to resampled episodes, see `widen`.

    A resample lacks tokens that the log has, which biases its fit as the log's own is biased: once is enough.

    Args: counts: (R, B / group), how often each group is drawn.
    """
    each = np.repeat(counts, group, axis=1).T.astype(np.float64)  # (B, R)
    columns = np.concatenate([np.ones((len(each), 1)), each], axis=1)
    at_once = max(_NUMBERS // log.rewards.size, 1)
    parts = []
    for start in range(0, columns.shape[1], at_once):
        own = columns[:, start : start + at_once]
        parts.append((own * fitted_q(log, own)[0][:, 0]).sum(0) / own.sum(0))
    means = np.concatenate(parts)
    return interval(float(means[0]), widen(means[:1], means[1:, None], counts.shape[1])[:, 0])


def _grouped(each: Floats, group: int) -> Floats:
    return np.asarray(each.reshape(-1, group).mean(1))


def lower_bound(log: Logged, least: float, group: int = 1) -> float:
    """Return what E[R] is at least, with probability 0.95, see `bernstein_bound`.

    Args: least: the least return that there is, reward units. group: as in `judge`.
    Raises: ValueError if a return is below it.
    """
    if log.returns.min() < least - 1e-9:
        raise ValueError(
            f"minimum={least:g}: a return in the log is {log.returns.min():g}; allowed is the least of all"
        )
    return least + bernstein_bound(_grouped(log.weights * np.maximum(log.returns - least, 0.0), group))
