"""Means over the runs of one cell, with intervals; of a number or of a whole curve."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np

from textgym_benchmarks.statistics.bootstrap import CONFIDENCE
from textgym_benchmarks.statistics.strata import Floats

EXACT_UP_TO = 6
"""Runs whose resamples are enumerated: six have 462 different ones."""
REPLICATES = 2000


def mean_of_runs(
    values: Floats,
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
) -> tuple[Floats, Floats, Floats]:
    """Mean over runs and its percentile bootstrap interval, at every point by itself.

    The resamples of few runs are enumerated, so that their interval is exact and the generator is left alone.

    Args:
        values: (R, K) K numbers of R runs; NaN where a run has none.
        replicates: drawn where there are more than `EXACT_UP_TO` runs.
    Returns: mean, low, high, each (K,). The mean is over the runs that have a number; NaN where none has. The ends are
        NaN where fewer than two have.
    Source: Efron and Tibshirani (1993), chapter 13; of the ideal bootstrap, chapter 6.
    """
    if values.ndim != 2:
        raise ValueError(f"values of shape {values.shape}: allowed is (runs, points)")
    there = ~np.isnan(values)
    count = there.sum(0)
    mean, low, high = (np.full(values.shape[1], np.nan) for _ in range(3))
    mean[count > 0] = np.where(there, values, 0.0).sum(0)[count > 0] / count[count > 0]
    for pattern in {tuple(column) for column in there[:, count > 1].T.tolist()}:
        columns = (there == np.array(pattern)[:, None]).all(0)
        runs = values[np.array(pattern)][:, columns]
        if len(runs) <= EXACT_UP_TO:
            times, probabilities = enumerated_resamples(len(runs))
        else:
            drawn = generator.integers(len(runs), size=(replicates, len(runs)))
            times = (drawn[:, :, None] == np.arange(len(runs))).sum(1).astype(np.float64)
            probabilities = np.full(replicates, 1.0 / replicates)
        # Deviations from the first run: equal runs have an interval of exactly no width.
        shifts = times @ (runs - runs[0]) / len(runs)
        tail = (1.0 - confidence) / 2.0
        low[columns] = runs[0] + _quantile(shifts, probabilities, tail)
        high[columns] = runs[0] - _quantile(-shifts, probabilities, tail)
    return mean, low, high


@cache
def enumerated_resamples(count: int) -> tuple[Floats, Floats]:
    """The different resamples of `count` runs: how often each run is in it (M, count), and its probability (M,)."""
    rows = [np.bincount(r, minlength=count) for r in combinations_with_replacement(range(count), count)]
    ways = [factorial(count) / prod(factorial(times) for times in row.tolist()) for row in rows]
    return np.array(rows, dtype=np.float64), np.array(ways) / float(count**count)


def _quantile(values: Floats, probabilities: Floats, level: float) -> Floats:
    """(K,) the least of the values (M, K) that at least `level` of the probability is at or below."""
    order = np.argsort(values, axis=0, kind="stable")
    # Sums of probabilities carry rounding: a value that reaches the level exactly must count as reaching it.
    reached = np.cumsum(probabilities[order], axis=0) >= level - 1e-12
    first = np.argmax(reached, axis=0)[None]
    return np.asarray(np.take_along_axis(np.take_along_axis(values, order, 0), first, 0)[0])
