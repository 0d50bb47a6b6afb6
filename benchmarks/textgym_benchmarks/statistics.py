"""Statistics of the scores of agents: aggregates, profiles and comparisons, with intervals from a stratified bootstrap.

Functions of scores take values (..., N), the runs of one agent in the order of their tasks, and the strata that say
which run is of which task. Every task that has a run weighs the same, however many of its runs there are: a task is not
made lighter by the runs that failed on it. With as many runs on every task, the definitions are those of rliable.

Where every task has n runs, the intervals are too narrow by about sqrt((n - 1) / n), as rliable's are: by 18% with
three runs. The interval of a single task with three runs is the range from the least to the greatest, which holds the
true mean about three times in four, not 95 in 100. Tasks are fixed: an interval says what other seeds would give on the
same tasks, not what other tasks would give.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4; Efron and Tibshirani (1993), An Introduction to the
Bootstrap, chapters 6, 8 and 13; Mann and Whitney (1947).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations_with_replacement
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textgym.checks import Floats, Ints

REPLICATES = 10_000
"""Draws of the bootstrap for aggregates."""
COMPARED_REPLICATES = 2000
"""Draws for profiles, probabilities of improvement and means of runs."""
CONFIDENCE = 0.95
EXACT_UP_TO = 6
"""Runs whose resamples are enumerated: six have 462 different ones."""


@dataclass(frozen=True, eq=False)
class Strata:
    """Runs in the order of their tasks.

    A run that failed has no score: its place is left out, and every aggregate tells how many tasks and runs it stands
    on. To count failures, give them a score first.

    Attributes:
        values: (N,) scores, finite.
        sizes: (T,) runs of each task that have a score; 0 for a task without any. Sums to N.
        expected: (T,) runs that there should be, at least `sizes`.
    Raises: ValueError for other shapes, a score that is not finite, or fewer runs expected than there are.
    """

    values: Floats
    sizes: Ints
    expected: Ints

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.sizes.ndim != 1 or self.values.size != self.sizes.sum():
            raise ValueError(
                f"values={self.values.shape}, sizes={self.sizes.tolist()}: allowed are (N,) scores of tasks "
                "whose sizes sum to N"
            )
        bad = self.values[~np.isfinite(self.values)]
        if bad.size:
            raise ValueError(f"values: {bad[0]} is no score; allowed are finite numbers")
        if self.expected.shape != self.sizes.shape or (self.expected < self.sizes).any():
            raise ValueError(f"expected={self.expected.tolist()}: allowed are counts >= {self.sizes.tolist()}")

    @cached_property
    def present(self) -> Ints:
        """(T',) indices of the tasks that have a run."""
        return np.flatnonzero(self.sizes).astype(np.int64)

    @cached_property
    def starts(self) -> Ints:
        """(T',) index of the first run of each task that has one."""
        return np.asarray((np.cumsum(self.sizes) - self.sizes)[self.present])

    @cached_property
    def weights(self) -> Floats:
        """(N,) weight of each run: every task that has a run weighs the same. Sums to 1."""
        sizes = np.repeat(self.sizes, self.sizes)
        return np.asarray(1.0 / (sizes * max(len(self.present), 1)))

    @property
    def runs(self) -> int:
        """N: runs that have a score."""
        return len(self.values)

    @property
    def tasks(self) -> int:
        """T: tasks, those without a run included."""
        return len(self.sizes)

    def matrix(self) -> Floats:
        """Return (R, T) scores, NaN where there is no run; R = the most runs of a task, at least 1."""
        result = np.full((max(self.sizes.max(initial=0), 1), self.tasks), np.nan)
        result.T[np.arange(result.shape[0]) < self.sizes[:, None]] = self.values
        return result


def strata_of(groups: Sequence[Sequence[float]], expected: Sequence[int] | None = None) -> Strata:
    """Return the strata of T lists of scores, one per task; lists may be of any length, empty ones included.

    Args:
        expected: (T,) runs that there should be; None: as many as there are.
    Raises: ValueError for no task, or as `Strata` does.
    """
    if not len(groups):
        raise ValueError("groups=[]: allowed is at least one task")
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    values = np.array([score for group in groups for score in group], dtype=np.float64)
    return Strata(values, sizes, sizes if expected is None else np.array(expected, dtype=np.int64))


def task_means(values: Floats, strata: Strata) -> Floats:
    """Return (..., T') the mean score of each task that has a run."""
    if not len(strata.present):
        return np.empty((*values.shape[:-1], 0))
    sums = np.add.reduceat(values, strata.starts, axis=-1)
    return np.asarray(sums / strata.sizes[strata.present])


def mean(values: Floats, strata: Strata) -> Floats:
    """Return (...,) the mean over tasks of the mean over runs."""
    return np.asarray(values @ strata.weights)


def median(values: Floats, strata: Strata) -> Floats:
    """Return (...,) the median over tasks of the mean over runs."""
    return np.asarray(np.median(task_means(values, strata), axis=-1))


def interquartile_mean(values: Floats, strata: Strata) -> Floats:
    """Return (...,) the mean of the middle half of all runs of all tasks.

    With as many runs on every task it is `scipy.stats.trim_mean(scores, 0.25, axis=None)`. Otherwise the same share is
    cut from the weighted distribution of the runs, and the run that a cut goes through counts in part.
    """
    count = values.shape[-1]
    cut = count // 4
    if len(set(strata.sizes[strata.present].tolist())) <= 1:
        return np.asarray(np.sort(values, axis=-1)[..., cut : count - cut].mean(-1))
    order = np.argsort(values, axis=-1)
    weights = strata.weights[order]
    ends = np.cumsum(weights, axis=-1)
    trim = cut / count
    kept = np.maximum(np.minimum(ends, 1.0 - trim) - np.maximum(ends - weights, trim), 0.0)
    return np.asarray((np.take_along_axis(values, order, -1) * kept).sum(-1) / kept.sum(-1))


def optimality_gap(values: Floats, strata: Strata, target: float = 1.0) -> Floats:
    """Return (...,) target less the mean of min(score, target): how far the runs stay below it. 0 is best."""
    return np.asarray(target - np.minimum(values, target) @ strata.weights)


def share_above(values: Floats, strata: Strata, thresholds: Floats) -> Floats:
    """Return (..., K) the share of the runs above each of the thresholds (K,), every task weighing the same.

    This is the run-score distribution, whose graph over the thresholds is a performance profile.
    """
    columns = [np.asarray((values > threshold) @ strata.weights) for threshold in thresholds]
    return np.stack(columns, axis=-1)


Statistic = Callable[[Floats, Strata], Floats]


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval; None where nothing tells it, or its spread."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Aggregate(Interval):
    """A statistic over tasks with its interval, and what it stands on.

    Attributes:
        value: None where there is no run at all. low, high: None where no task has two runs.
        runs, tasks: with a score. of_runs, of_tasks: that there should be.
    """

    runs: int
    of_runs: int
    tasks: int
    of_tasks: int


def resample(strata: Strata, replicates: int, generator: np.random.Generator) -> Ints:
    """Draw indices (B, N) of runs with replacement, each within the task whose place it takes.

    Raises: ValueError for fewer than one replicate.
    """
    if replicates < 1:
        raise ValueError(f"replicates={replicates!r}: allowed is an int >= 1")
    sizes = strata.sizes[strata.present]
    starts, counts = np.repeat(strata.starts, sizes), np.repeat(sizes, sizes)
    drawn = generator.random((replicates, len(strata.values)))
    drawn *= counts
    return np.asarray(starts + drawn.astype(np.int64))


def percentile_interval(replicates: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Return the ends (...,) of the percentile interval of replicates (B, ...).

    Raises: ValueError unless 0 < confidence < 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence!r}: allowed is a number between 0 and 1")
    low, high = np.quantile(replicates, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0], axis=0)
    return np.asarray(low), np.asarray(high)


def aggregates(
    strata: Strata,
    statistics: Mapping[str, Statistic],
    generator: np.random.Generator,
    replicates: int = REPLICATES,
) -> dict[str, Aggregate]:
    """Return statistics of one agent with their intervals, all from the same draws.

    Args:
        statistics: name -> function of values (..., N) and strata that gives (...,).
        replicates: B, draws of the bootstrap.
    """
    drawn = None
    if (strata.sizes > 1).any():
        drawn = strata.values[resample(strata, replicates, generator)]
    runs, of_runs, tasks = strata.runs, int(strata.expected.sum()), len(strata.present)
    found = {}
    for name, statistic in statistics.items():
        value = float(statistic(strata.values, strata)) if strata.runs else None
        low = high = None
        if drawn is not None:
            low, high = (float(end) for end in percentile_interval(statistic(drawn, strata)))
        found[name] = Aggregate(value, low, high, runs, of_runs, tasks, strata.tasks)
    return found


@dataclass(frozen=True)
class Improvement(Interval):
    """P(X > Y), ties counted half, averaged over the tasks that both agents have a run of.

    Attributes:
        value: in [0, 1]; None where they share no task.
        low, high: None where no shared task has two runs of either agent.
        tasks: shared tasks. of_tasks: all.
    """

    tasks: int
    of_tasks: int


def run_counts(strata: Strata, replicates: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return (T, B, R) how often the stratified bootstrap draws each run in each replicate; 0 for a missing run."""
    most = max(int(strata.sizes.max(initial=0)), 1)
    counts = np.zeros((strata.tasks, replicates, most), dtype=np.float32)
    for task, size in enumerate(strata.sizes.tolist()):
        if size:
            drawn = generator.integers(size, size=(replicates, size), dtype=np.int32)
            counts[task] = (drawn[:, :, None] == np.arange(most)).sum(1)
    return counts


def probability_of_improvement(
    first: Strata, second: Strata, generator: np.random.Generator, replicates: int = COMPARED_REPLICATES
) -> Improvement:
    """Return P(first > second) with its interval; runs of both agents are resampled, each by itself.

    Raises: ValueError if they do not have the same number of tasks.
    """
    counts = [run_counts(strata, replicates, generator) for strata in (first, second)]
    return improvement_of_counts(first, second, *counts)


def improvement_of_counts(
    first: Strata, second: Strata, first_counts: NDArray[np.float32], second_counts: NDArray[np.float32]
) -> Improvement:
    """Return the same from draws made before (`run_counts`), which all pairs of a table can share."""
    if first.tasks != second.tasks:
        raise ValueError(f"second: {second.tasks} tasks; allowed is as many as the first has ({first.tasks})")
    shared = np.flatnonzero((first.sizes > 0) & (second.sizes > 0))
    if not len(shared):
        return Improvement(None, None, None, 0, first.tasks)
    pairs = (first.sizes * second.sizes)[shared].astype(np.float64)
    # (T', R, S). A comparison with NaN is false: a missing run neither wins nor ties.
    a, b = first.matrix().T[shared, :, None], second.matrix().T[shared, None, :]
    won = (a > b) + 0.5 * (a == b)
    value = float((won.sum((1, 2)) / pairs).mean())
    if not ((first.sizes > 1) | (second.sizes > 1))[shared].any():
        return Improvement(value, None, None, len(shared), first.tasks)
    # Sum over r and s of (times r was drawn) * (r beats s) * (times s was drawn), per task and replicate.
    beaten = first_counts[shared] @ won.astype(np.float32)
    replicates = np.einsum("tbs,tbs->bt", beaten, second_counts[shared]) / pairs
    low, high = percentile_interval(replicates.mean(1))
    return Improvement(value, float(low), float(high), len(shared), first.tasks)


def performance_profile(
    strata: Strata,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    replicates: int = COMPARED_REPLICATES,
) -> tuple[Floats, Floats | None, Floats | None]:
    """Return the performance profile of one agent with a band that holds at each threshold by itself.

    Args:
        thresholds: (K,) scores.
    Returns: share, low, high, each (K,) in [0, 1]; no ends where no task has two runs.
    Raises: ValueError if there is no run, or thresholds are not a list of finite numbers.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not np.isfinite(levels).all():
        raise ValueError(f"thresholds={thresholds!r}: allowed is a list of finite numbers")
    if not strata.runs:
        raise ValueError("strata: no task has a run; allowed is at least one run")
    share = share_above(strata.values, strata, levels)
    if not (strata.sizes > 1).any():
        return share, None, None
    drawn = strata.values[resample(strata, replicates, generator)]
    return share, *percentile_interval(share_above(drawn, strata, levels))


def mean_of_runs(
    values: Floats, generator: np.random.Generator, replicates: int = COMPARED_REPLICATES
) -> tuple[Floats, Floats, Floats]:
    """Return the mean over runs and its percentile bootstrap interval, at every point by itself.

    The resamples of few runs are enumerated: their interval is exact, and the generator is left alone.

    Args:
        values: (R, K) K numbers of R runs; NaN where a run has none.
        replicates: drawn where there are more than `EXACT_UP_TO` runs.
    Returns: mean, low, high, each (K,). The mean is over the runs that have a number; NaN where none has. The ends are
        NaN where fewer than two have.
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
        tail = (1.0 - CONFIDENCE) / 2.0
        low[columns] = runs[0] + _quantile(shifts, probabilities, tail)
        high[columns] = runs[0] - _quantile(-shifts, probabilities, tail)
    return mean, low, high


@cache
def enumerated_resamples(count: int) -> tuple[Floats, Floats]:
    """Return the different resamples of `count` runs: how often each run is in it (M, count), and its probability."""
    rows = [np.bincount(r, minlength=count) for r in combinations_with_replacement(range(count), count)]
    ways = [factorial(count) / prod(factorial(times) for times in row.tolist()) for row in rows]
    return np.array(rows, dtype=np.float64), np.array(ways) / float(count**count)


def _quantile(values: Floats, probabilities: Floats, level: float) -> Floats:
    """Return (K,) the least of the values (M, K) that at least `level` of the probability is at or below."""
    order = np.argsort(values, axis=0, kind="stable")
    # Sums of probabilities carry rounding: a value that reaches the level exactly must count as reaching it.
    reached = np.cumsum(probabilities[order], axis=0) >= level - 1e-12
    first = np.argmax(reached, axis=0)[None]
    return np.asarray(np.take_along_axis(np.take_along_axis(values, order, 0), first, 0)[0])


def leads(own: Floats, other: Floats, confidence: float = CONFIDENCE) -> Floats:
    """Return by how much the mean of some runs is above that of others, and the ends of its interval.

    Args: own, other: (S, M) and (S', M) M numbers of two runs at least. confidence: of the interval, below 1.
    Returns: (3, M); the interval is Welch's, which takes runs for draws from normal distributions.
    Source: Welch (1947), The generalization of "Student's" problem.
    """
    from scipy.stats import t  # type: ignore[import-untyped]  # slow to import

    ahead = own.mean(0) - other.mean(0)
    first, second = (runs.var(0, ddof=1) / len(runs) for runs in (own, other))
    error = first + second
    with np.errstate(invalid="ignore"):  # numbers that never vary
        freedom = error**2 / (first**2 / (len(own) - 1) + second**2 / (len(other) - 1))
    half = np.where(error > 0, t.ppf((1 + confidence) / 2, freedom) * np.sqrt(error), 0.0)
    return np.stack([ahead, ahead - half, ahead + half])
