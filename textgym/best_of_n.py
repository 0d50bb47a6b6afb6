"""Best-of-n sampling, measured from one set of samples for every n at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textgym.bootstrap import RESAMPLES, Estimate, Floats, interval, widen


@dataclass(frozen=True)
class BestOfN:
    """The completion with the highest proxy reward among n samples.

    Attributes:
        n: samples it is chosen from.
        proxy, gold: expected rewards of the chosen one, reward units.
        kl: log n - (n - 1) / n nats, an upper bound of KL(best-of-n || sampling policy); exact without ties among
            completions that are all different.
        replicates: (R, 2) bootstrap replicates of proxy and gold, drawn together.
    """

    n: int
    proxy: Estimate
    gold: Estimate
    kl: float
    replicates: Floats


def best_of_n_kl(n: int) -> float:
    """Log n - (n - 1) / n, nats. Source: Beirami et al. (2024), arXiv:2401.01879, theorem 3.1 (an upper bound)."""
    return math.log(n) - (n - 1) / n


def rank_shares(count: int, n: int) -> Floats:
    """How often the best of n, drawn without replacement from `count` samples, is among the k worst: (count + 1,).

    Entry k is C(k, n) / C(count, n), k = 0..count.
    """
    k = np.arange(count + 1, dtype=np.float64)
    factors = (k[:, None] - np.arange(n)) / (count - np.arange(n))
    return np.asarray(np.prod(np.clip(factors, 0.0, 1.0), axis=1))


def best_of_n(proxy: Floats, gold: Floats, weights: Floats, n: int, seed: int = 0) -> BestOfN:
    """Expected rewards of best-of-n, by the mean over all subsets of n samples: unbiased, without chance.

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
    if not 1 <= n <= count:
        raise ValueError(f"n={n!r}: allowed is 1..{count}, the number of samples a prompt")
    shares = rank_shares(count, n)
    order = np.argsort(proxy, axis=1, kind="stable")
    ranked = np.stack([np.take_along_axis(rewards, order, 1) for rewards in (proxy, gold)])  # (2, P, N)
    once = np.ones((1, count), dtype=np.int64)
    means = weights @ np.array(
        [_expected(ranked[:, prompt], once, shares)[0] for prompt in range(len(weights))]
    )
    replicates = widen(means, _replicates(ranked, shares, weights, seed), count)
    return BestOfN(
        n=n,
        proxy=interval(float(means[0]), replicates[:, 0]),
        gold=interval(float(means[1]), replicates[:, 1]),
        kl=best_of_n_kl(n),
        replicates=replicates,
    )


def _replicates(ranked: NDArray[np.float64], shares: Floats, weights: Floats, seed: int) -> Floats:
    """Both means (R, 2) with the samples of every prompt drawn anew with replacement."""
    generator = np.random.default_rng([seed, 5])
    prompts, count = ranked.shape[1:]
    total = np.zeros((RESAMPLES, 2))
    rows = np.arange(RESAMPLES)[:, None] * count
    for prompt in range(prompts):
        drawn = generator.integers(count, size=(RESAMPLES, count), dtype=np.int32)
        times = np.bincount((rows + drawn).ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
        total += weights[prompt] * _expected(ranked[:, prompt], times, shares)
    return total


def _expected(ranked: Floats, times: NDArray[np.int64], shares: Floats) -> Floats:
    """Mean proxy and gold (R, 2) of the best of n, where ranked sample i (2, N) stands `times[:, i]` times (R, N)."""
    proxy, gold = ranked
    # Samples of equal proxy form a group; which of them is chosen is chance, so a group pays the mean of its gold.
    starts = np.flatnonzero(np.append(True, proxy[1:] != proxy[:-1]))
    sizes = np.add.reduceat(times, starts, axis=1)
    below = np.concatenate([np.zeros((len(times), 1), dtype=np.int64), sizes.cumsum(1)], axis=1)
    chosen = np.diff(shares[below], axis=1)
    paid = np.add.reduceat(times * gold, starts, axis=1) / np.maximum(sizes, 1)
    return np.stack([chosen @ proxy[starts], (chosen * paid).sum(1)], axis=1)
