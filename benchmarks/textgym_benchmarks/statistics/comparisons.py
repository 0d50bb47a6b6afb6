"""Probability of improvement, performance profiles and runs.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.3; Mann and Whitney (1947).

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.2 (run-score distributions).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textgym_benchmarks.statistics.resampling import (
    CONFIDENCE,
    Floats,
    Strata,
    percentile_interval,
    resample,
    share_above,
)

REPLICATES = 2000


@dataclass(frozen=True)
class Improvement:
    """P(X > Y), ties counted half, averaged over the tasks that both agents have a run of.

    Attributes:
        value: in [0, 1]; None where they share no task.
        low, high: None where no shared task has two runs of either agent.
        tasks: shared tasks. of_tasks: all.
    """

    value: float | None
    low: float | None
    high: float | None
    tasks: int
    of_tasks: int


def wins(first: Strata, second: Strata) -> Floats:
    """(T, R, S) 1 where run r of the first beats run s of the second on a task, 0.5 for a tie, else 0.

    0 too where either run is missing. R and S are the most runs of a task.
    """
    a, b = first.matrix().T[:, :, None], second.matrix().T[:, None, :]
    # A comparison with NaN is false, so a run that is missing neither wins nor ties.
    return np.asarray((a > b) + 0.5 * (a == b))


def run_counts(strata: Strata, replicates: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """(T, B, R) how often each run is drawn in each replicate of the stratified bootstrap; 0 for a missing run."""
    most = max(int(strata.sizes.max(initial=0)), 1)
    slots = np.arange(most)
    counts = np.zeros((strata.tasks, replicates, most), dtype=np.float32)
    for task, size in enumerate(strata.sizes.tolist()):
        if size:
            drawn = generator.integers(size, size=(replicates, size), dtype=np.int32)
            counts[task] = (drawn[:, :, None] == slots).sum(1)
    return counts


def probability_of_improvement(
    first: Strata,
    second: Strata,
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
) -> Improvement:
    """P(first > second) with its interval; runs of both agents are resampled, each by itself.

    Raises: ValueError if they do not have the same number of tasks.
    """
    counts = [run_counts(strata, replicates, generator) for strata in (first, second)]
    return improvement_of_counts(first, second, counts[0], counts[1], confidence)


def improvement_of_counts(
    first: Strata,
    second: Strata,
    first_counts: NDArray[np.float32],
    second_counts: NDArray[np.float32],
    confidence: float = CONFIDENCE,
) -> Improvement:
    """The same from draws made before (`run_counts`), which all pairs of a table can share."""
    if first.tasks != second.tasks:
        raise ValueError(f"second: {second.tasks} tasks; allowed is as many as the first has ({first.tasks})")
    shared = np.flatnonzero((first.sizes > 0) & (second.sizes > 0))
    if not len(shared):
        return Improvement(None, None, None, 0, first.tasks)
    pairs = (first.sizes * second.sizes)[shared].astype(np.float64)
    won = wins(first, second)[shared]
    value = float((won.sum((1, 2)) / pairs).mean())
    if not ((first.sizes > 1) | (second.sizes > 1))[shared].any():
        return Improvement(value, None, None, len(shared), first.tasks)
    # Sum over r and s of (times r was drawn) * (r beats s) * (times s was drawn), per task and replicate.
    beaten = first_counts[shared] @ won.astype(np.float32)
    replicates = np.einsum("tbs,tbs->bt", beaten, second_counts[shared]) / pairs
    low, high = percentile_interval(replicates.mean(1), confidence)
    return Improvement(value, float(low), float(high), len(shared), first.tasks)


@dataclass(frozen=True, eq=False)
class Profile:
    """Shares in [0, 1] of the runs above each of K thresholds.

    Attributes:
        thresholds, share: (K,). low, high: (K,), or None where no task has two runs.
    """

    thresholds: Floats
    share: Floats
    low: Floats | None
    high: Floats | None


def performance_profile(
    strata: Strata,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
) -> Profile:
    """The profile of one agent; its band holds at each threshold by itself, not at all of them at once.

    Args:
        thresholds: (K,) scores.
    Raises: ValueError if there is no run, or thresholds are not a list of finite numbers.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not np.isfinite(levels).all():
        raise ValueError(f"thresholds={thresholds!r}: allowed is a list of finite numbers")
    if not len(strata.values):
        raise ValueError("strata: no task has a run; allowed is at least one run")
    share = share_above(strata.values, strata, levels)
    if not (strata.sizes > 1).any():
        return Profile(levels, share, None, None)
    drawn = strata.values[resample(strata, replicates, generator)]
    low, high = percentile_interval(share_above(drawn, strata, levels), confidence)
    return Profile(levels, share, low, high)


EXACT_UP_TO = 6
"""Runs whose resamples are enumerated: six have 462 different ones."""


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
