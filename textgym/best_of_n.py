"""Best-of-n sampling: its exact policy on a prefix tree, and its estimate from samples for every n at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from textgym.checks import Bools, Floats, Ints, check_count
from textgym.estimates import RESAMPLES, Estimate, interval, resampled_counts, widen
from textgym.solver.tree import PrefixTree, UnsolvableError, log_sum, normalised
from textgym.solver.values import trajectories
from textgym.task import Task, refuse_turns

_TIE = 1e-12  # Returns that differ by less, relative to their size, are one level: sums round differently.
FEWEST = 4
"""Samples needed for each one of n: with fewer, too few reach the highest levels to estimate the KL."""
_NODES = 16  # of the quadrature, in every cell that is one standard deviation wide
_REACH = 9  # standard deviations; the density beyond is 1e-18 of a prompt's


@dataclass(frozen=True)
class BestOfNEstimate:
    """Rewards and KL of the completion with the highest proxy reward among n samples, estimated.

    Attributes:
        n: samples it is chosen from.
        proxy, gold: expected rewards of the chosen one, reward units.
        kl: KL(best-of-n || sampling policy), nats a completion, see `sampled_kl`; None where there are fewer than 4 n
            samples a prompt, which do not tell.
        replicates: (R, 3) bootstrap replicates of proxy, gold and KL, drawn together; the last are NaN without KL.
    """

    n: int
    proxy: Estimate
    gold: Estimate
    kl: Estimate | None
    replicates: Floats


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n, nats: an upper bound of KL(best-of-n || sampling policy), exact without ties.

    Source: Beirami et al. (2024), arXiv:2401.01879, theorem 3.1.
    """
    return math.log(n) - (n - 1) / n


def highest(returns: Floats) -> Ints:
    """Return the index of the first of the highest returns (..., n) that differ by rounding only."""
    top = returns.max(-1, keepdims=True)
    return np.asarray((returns >= top - _slack(top)).argmax(-1))


# The exact policy


def best_of_n_edges(tree: PrefixTree, log_reference: tuple[Floats, ...], n: int, gamma: float) -> tuple[Floats, ...]:
    """Return the exact log-probability of every edge under "the best of n completions of the reference".

    The best one has the highest discounted return, among equal ones any. With G and F the reference's probabilities
    of a return up to a level and below it, P(level) = G^n - F^n, spread in the reference's proportions; equal are
    returns that differ by rounding only. Where the reward is noisy, every completion has noise of its own: P(y) =
    p(y) n times the integral of f(x - R(y)) F(x)^(n - 1) dx, with f the density of the noise and F the reference's
    distribution of noisy returns.

    Args:
        tree: of the problem; its rewards are expected ones. log_reference: per edge, nats.
        n: samples, >= 1. gamma: in [0, 1]; what is paid after t tokens counts gamma^(t - 1), its noise too.
    Returns: one array per level, aligned with `tree.levels[t + 1]`, nats; -inf where the reference never goes.

    Raises:
        ValueError: n is no integer >= 1; completions have probabilities under the reference that do not sum to 1.
        UnsolvableError: see `noise_deviation`; or n is too large, or the noise too small, to integrate.
    Source: Beirami et al. (2024), arXiv:2401.01879, with levels of the return where texts tie.
    """
    check_count("n", n, unit="samples")
    refuse_turns(tree.task, "best-of-n")
    every = trajectories(tree, log_reference, None, gamma)
    deviations = np.asarray(noise_deviation(tree.task) * np.power(gamma, every.length - 1.0))
    tilts, gap = np.empty(len(every.prompt)), 0.0
    order = np.argsort(every.prompt, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(every.prompt[order])) + 1):
        logs = every.log_probability[own]
        mass = np.exp(logs).sum()
        if abs(mass - 1) > 1e-6:
            text = tree.task.encoded(tree.split)[every.prompt[own[0]]].text
            raise ValueError(
                f"log_reference: completions of prompt {text!r:.80} have probability {mass:.6f}; allowed is 1"
            )
        gap = max(gap, abs(mass - 1))
        tilts[own] = _log_tilts(every.returns[own], deviations[own], logs, n)
    # log E_ref[P(y) / p(y)] of what follows a state tilts the edge that leads there, as exp(R / beta) does in pi*.
    result: list[Floats] = []
    after = np.zeros(0)
    for depth in range(len(tree.levels) - 1, 0, -1):
        level, above = tree.levels[depth], tree.levels[depth - 1]
        here = every.length == depth
        own_tilts = np.zeros(len(level.parent))
        own_tilts[every.row[here]] = tilts[here]
        own_tilts[level.running] = after
        logs = log_reference[depth - 1] + own_tilts
        after = log_sum(logs, above)
        result.insert(0, normalised(logs, above))
    worst = float(after[np.abs(after).argmax()])
    if abs(worst) > 1e-9 + 2 * gap:
        raise UnsolvableError(
            f"task {tree.task.name!r}: the probabilities of best-of-{n} sum to {math.exp(worst)!r}, not to 1; allowed "
            "is a smaller n, or noise that is not so much smaller than the returns"
        )
    return tuple(result)


def noise_deviation(task: Task) -> float:
    """Return the standard deviation of the noise that a task's reward adds at the end, reward units; 0 without noise.

    A noisy reward declares it by an attribute `normal_noise`: the standard deviation of the normal noise that every
    completion gets once, on top of `expected`.

    Raises: UnsolvableError for a noisy reward that declares none, or one that pays before the end.
    """
    if not task.noisy:
        return 0.0
    deviation = getattr(task.reward, "normal_noise", None)
    if deviation is None or task.scorer.pay != "end":
        raise UnsolvableError(
            f"task {task.name!r}: its reward {task.scorer.name!r} is noisy and declares no density of its noise; "
            "needed is an attribute `normal_noise`, the standard deviation of normal noise paid at the end"
        )
    return float(deviation)


def _log_tilts(returns: Floats, deviations: Floats, log_masses: Floats, n: int) -> Floats:
    """Return log of P(y) / p(y) of a prompt's N completions, nats; all arrays (N,)."""
    if n == 1:
        return np.zeros(len(returns))
    if _blurred(returns, deviations):
        noise, groups = _noise(returns, deviations)
        masses = np.bincount(groups, weights=np.exp(log_masses))
        return np.asarray(noise.log_tilts(masses[None] / masses.sum(), n)[0][groups])
    order = np.argsort(returns, kind="stable")
    starts = _level_starts(returns[order])
    own = np.logaddexp.reduceat(log_masses[order], starts)
    up_to = np.logaddexp.accumulate(own)
    up_to -= up_to[-1]
    # (G^n - F^n) / (G - F) = G^(n - 1) (1 - (1 - q)^n) / q with q = (G - F) / G, which cancels nothing.
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        share = np.exp(np.minimum(own - up_to, 0.0))
        factor = np.where(share > 0, np.log(-np.expm1(n * np.log1p(-share)) / share), math.log(n))
        tilts = (n - 1) * up_to + factor
    result = np.empty(len(returns))
    result[order] = np.repeat(tilts, np.diff(np.append(starts, len(returns))))
    return result


@dataclass(frozen=True, eq=False)
class _Noise:
    """A mixture of K normal distributions of noisy returns, at M nodes of a quadrature.

    Attributes:
        cumulative, density: (K, M), of each component. weights: (M,), of the nodes.
    """

    cumulative: Floats
    density: Floats
    weights: Floats

    def log_tilts(self, masses: Floats, n: int) -> Floats:
        """Return log of n times the integral of f(x - R) F(x)^(n - 1) dx by component (R, K); masses (R, K) make F."""
        below = (masses @ self.cumulative) ** (n - 1) * self.weights
        with np.errstate(divide="ignore"):
            return np.asarray(math.log(n) + np.log(below @ self.density.T))

    def kl(self, counts: Ints, n: int) -> Floats:
        """Return the KL (R,) in nats, where a sample has `counts` (R, K) of each component."""
        masses = counts / counts.sum(-1, keepdims=True)
        tilts = self.log_tilts(masses, n)
        return np.asarray((masses * np.exp(tilts) * np.where(np.isneginf(tilts), 0.0, tilts)).sum(-1))


def _blurred(returns: Floats, deviations: Floats) -> bool:
    """Return whether noise decides between returns that differ, and not between equal ones alone."""
    return bool(deviations.max() > 1e-9 * np.abs(returns).max())


def _noise(returns: Floats, deviations: Floats) -> tuple[_Noise, Ints]:
    """Return the different normal distributions among N noisy returns, and which of them each return has, (N,)."""
    # A deviation of 0 (gamma = 0 takes the noise with the reward) becomes one that is none beside the others.
    floored = np.maximum(deviations, 1e-9 * deviations.max())
    pairs, groups = np.unique(np.stack([returns, floored], axis=1), axis=0, return_inverse=True)
    means, scales = pairs.T[:, :, None]  # (K, 1)
    steps = np.arange(-_REACH, _REACH + 2)
    cells = [
        np.unique(np.floor(means[scales == scale] / scale)[:, None] + steps) * scale for scale in np.unique(scales)
    ]
    ends = np.unique(np.concatenate(cells))
    places, shares = np.polynomial.legendre.leggauss(_NODES)
    half = np.diff(ends)[:, None] / 2
    nodes = (ends[:-1, None] + half * (1 + places)).ravel()
    scores = (nodes - means) / scales
    cumulative = 0.5 * np.frompyfunc(math.erfc, 1, 1)(-scores / math.sqrt(2)).astype(np.float64)
    with np.errstate(under="ignore"):
        density = np.exp(-0.5 * scores**2) / (scales * math.sqrt(2 * math.pi))
    return _Noise(cumulative, density, (half * shares).ravel()), groups.ravel()


# From samples


def sampled_kl(returns: Floats, deviations: Floats, n: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Estimate KL(best-of-n || sampling policy) of each prompt from the levels of N samples' returns.

    A level is a return that two samples or more have; where no two are alike, returns are taken to be continuous. The
    bias of the plug-in estimate is taken out by the jackknife. A level that no sample has is not counted: n / N of the
    probability of the chosen ones may lie there.

    Args:
        returns: (P, N) without noise, N >= 4 n; deviations: (P, N) of the noise of each, 0 where there is none.
        n: >= 1. seed: of the bootstrap.
    Returns: estimates (P,) and bootstrap replicates (R, P), nats a completion.
    Raises: ValueError for shapes that differ, n out of range, or too few samples.
    Source: P(level) = G^n - F^n, see `best_of_n_edges`; Efron and Tibshirani (1993), An Introduction to the Bootstrap,
        chapters 8 and 10.
    """
    check_count("n", n, unit="samples")
    if returns.shape != deviations.shape or returns.ndim != 2:
        raise ValueError(f"shapes differ: returns {returns.shape}, deviations {deviations.shape}; allowed is (P, N)")
    prompts, count = returns.shape
    if not _enough(count, n):
        raise ValueError(f"returns: {count} samples a prompt; allowed is {FEWEST} n = {FEWEST * n} or more")
    generator = np.random.default_rng([seed, 6])
    means, replicates = np.empty(prompts), np.empty((RESAMPLES, prompts))
    for prompt in range(prompts):
        found: _Noise | _Levels
        if _blurred(returns[prompt], deviations[prompt]):
            found, groups = _noise(returns[prompt], deviations[prompt])
            counts = np.bincount(groups)
        else:
            found = _levels(np.sort(returns[prompt]))
            counts = found.sizes
        means[prompt] = _jackknife(found, counts, n)
        replicates[:, prompt] = found.kl(generator.multinomial(count, counts / count, size=RESAMPLES), n)
    return means, widen(means, replicates, count)


@dataclass(frozen=True, eq=False)
class _Levels:
    """L levels of N sorted returns, the lowest first.

    Attributes:
        starts: (L,) where each begins. sizes: (L,). tied: (L,) whether its returns are equal; else it is a stretch of
            returns that are all different, taken to be continuous.
    """

    starts: Ints
    sizes: Ints
    tied: Bools

    def kl(self, counts: Ints, n: int) -> Floats:
        """Return the KL (R,) in nats, where a sample has `counts` (R, L) of each level."""
        ends = counts.cumsum(-1) / counts.sum(-1, keepdims=True)
        edges = np.concatenate([np.zeros_like(ends[..., :1]), ends], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
            powers = edges**n
            chosen = np.diff(powers)
            atom = chosen * np.log(chosen / np.diff(edges))
            # With v = u^n, the integral of n u^(n - 1) log(n u^(n - 1)) du is that of log n + (n - 1) / n log v dv.
            bends = np.where(powers > 0, powers * np.log(powers), 0.0)
            spread = chosen * best_of_n_kl(n) + (n - 1) / n * np.diff(bends)
        return np.asarray(np.where(chosen > 0, np.where(self.tied & (counts > 1), atom, spread), 0.0).sum(-1))


def _levels(ordered: Floats) -> _Levels:
    """Return the levels of sorted returns (N,)."""
    starts = _level_starts(ordered)
    tied = np.diff(np.append(starts, len(ordered))) > 1
    first = tied | np.append(True, tied[:-1])
    starts = starts[first]
    return _Levels(starts, np.diff(np.append(starts, len(ordered))), tied[first])


def _level_starts(ordered: Floats) -> Ints:
    """Return where levels begin among sorted returns (N,); rounding makes no level."""
    return np.flatnonzero(np.append(True, np.diff(ordered) > _slack(ordered[1:])))


def _slack(returns: Floats) -> Floats:
    return _TIE * np.maximum(1.0, np.abs(returns))


def _jackknife(found: _Noise | _Levels, counts: Ints, n: int) -> float:
    """Return the KL of `counts` (L,) samples of each level, less its bias of order 1 / N."""
    total = counts.sum()
    without = found.kl(counts - np.eye(len(counts), dtype=np.int64), n)
    return float(total * found.kl(counts[None], n)[0] - (total - 1) * (counts @ without) / total)


def _enough(count: int, n: int) -> bool:
    return n == 1 or count >= FEWEST * n


def rank_shares(count: int, n: int) -> Floats:
    """Return how often the best of n, drawn without replacement from `count` samples, is among the k worst.

    Returns: (count + 1,); entry k is C(k, n) / C(count, n), k = 0..count.
    """
    k = np.arange(count + 1, dtype=np.float64)
    factors = (k[:, None] - np.arange(n)) / (count - np.arange(n))
    return np.asarray(np.prod(np.maximum(factors, 0.0), axis=1))


def best_of_n(proxy: Floats, gold: Floats, weights: Floats, n: int, seed: int = 0) -> BestOfNEstimate:
    """Return expected rewards of best-of-n, by the mean over all subsets of n samples, without bias; and its KL.

    Args:
        proxy, gold: (P, N) rewards of N samples of each of P prompts; the choice goes by `proxy`, and among equal
            ones by chance.
        weights: (P,) probabilities of the prompts.
        n: 1..N.
        seed: of the bootstrap.
    Raises: ValueError if the shapes differ or n is out of range.
    Source: Nakano et al. (2021), arXiv:2112.09332, section 3 (the estimator over all subsets).
    """
    if proxy.shape != gold.shape or proxy.ndim != 2 or weights.shape != proxy.shape[:1]:
        raise ValueError(
            f"shapes differ: proxy {proxy.shape}, gold {gold.shape}, weights {weights.shape}; allowed are "
            "(P, N), (P, N) and (P,)"
        )
    count = proxy.shape[1]
    check_count("n", n, 1, count, "samples a prompt")
    shares = rank_shares(count, n)
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.stack([np.take_along_axis(rewards, order, 1) for rewards in (proxy, gold)])  # (2, P, N)
    known, once = _enough(count, n), np.ones((1, count), dtype=np.int64)
    generator = np.random.default_rng([seed, 5])
    means, replicates = np.zeros(3), np.zeros((RESAMPLES, 3))
    for own, weight in zip(ranked.swapaxes(0, 1), weights, strict=True):
        levels, times = _levels(own[0]), resampled_counts(generator, count)
        kl = _jackknife(levels, levels.sizes, n) if known else np.nan
        means += weight * np.append(_expected(own, once, shares)[0], kl)
        drawn = levels.kl(np.add.reduceat(times, levels.starts, axis=1), n)
        replicates += weight * np.column_stack([_expected(own, times, shares), drawn])
    replicates = widen(means, replicates, count)
    return BestOfNEstimate(
        n=n,
        proxy=interval(float(means[0]), replicates[:, 0]),
        gold=interval(float(means[1]), replicates[:, 1]),
        kl=interval(float(means[2]), replicates[:, 2]) if known else None,
        replicates=replicates,
    )


def _expected(ranked: Floats, times: Ints, shares: Floats) -> Floats:
    """Return mean proxy and gold (R, 2) of the best of n, where ranked sample i (2, N) counts `times[:, i]` times."""
    proxy, gold = ranked
    # Samples of equal proxy form a group; which of them is chosen is chance, so a group pays the mean of its gold.
    starts = _level_starts(proxy)
    sizes = np.add.reduceat(times, starts, axis=1)
    below = np.concatenate([np.zeros((len(times), 1), dtype=np.int64), sizes.cumsum(1)], axis=1)
    chosen = np.diff(shares[below], axis=1)
    paid = np.add.reduceat(times * gold, starts, axis=1) / np.maximum(sizes, 1)
    return np.stack([chosen @ proxy[starts], (chosen * paid).sum(1)], axis=1)
