"""Stratified bootstrap of aggregates of scores.

Every function takes values (..., N): the scores of one agent, its runs in the order of their tasks, and the strata
that say which run is of which task. Every task that has a run weighs the same, however many of its runs there are: a
task is not made lighter by the runs that failed on it. With as many runs on every task, the definitions are those of
rliable.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.

Where every task has n runs, the intervals are too narrow by about sqrt((n - 1) / n), as rliable's are: by 18% with
three runs. Of a single task with three runs the interval is the range from the least to the greatest, which holds
the true mean about three times in four, not 95 in 100. Tasks are fixed: an interval says what other seeds would give
on the same tasks, not what other tasks would give.

Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13; Agarwal et al. (2021),
arXiv:2108.13264, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Strata:
    """Runs in the order of their tasks.

    A run that failed has no score and is never given one silently: its place is left out here, and every aggregate
    tells how many tasks and runs it stands on. Who wants failures to count gives them a score before.

    Attributes:
        values: (N,) scores, finite.
        sizes: (T,) runs of each task that have a score; 0 for a task without any. Sums to N.
        expected: (T,) runs that there should be, at least `sizes`.
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
        if not np.isfinite(self.values).all():
            raise ValueError(f"values: {_first_bad(self.values)} is no score; allowed are finite numbers")
        if self.expected.shape != self.sizes.shape or (self.expected < self.sizes).any():
            raise ValueError(
                f"expected={self.expected.tolist()}: allowed are counts >= {self.sizes.tolist()}"
            )

    @cached_property
    def present(self) -> Ints:
        """(T',) indices of the tasks that have a run."""
        return np.flatnonzero(self.sizes)

    @cached_property
    def starts(self) -> Ints:
        """(T',) index of the first run of each task that has one."""
        ends = np.cumsum(self.sizes)
        return np.asarray((ends - self.sizes)[self.present], dtype=np.intp)

    @cached_property
    def weights(self) -> Floats:
        """(N,) weight of each run: every task that has a run weighs the same. Sums to 1."""
        sizes = np.repeat(self.sizes, self.sizes)
        return np.asarray(1.0 / (sizes * max(len(self.present), 1)))

    @cached_property
    def balanced(self) -> bool:
        """Whether all tasks that have a run have the same number."""
        return len(set(self.sizes[self.present].tolist())) <= 1

    @property
    def runs(self) -> int:
        """N: runs that have a score."""
        return len(self.values)

    @property
    def of_runs(self) -> int:
        """Runs that there should be."""
        return int(self.expected.sum())

    @property
    def tasks(self) -> int:
        """T: tasks, those without a run included."""
        return len(self.sizes)

    def matrix(self) -> Floats:
        """(R, T) scores, NaN where there is no run; R = the most runs of a task, at least 1."""
        result = np.full((max(self.sizes.max(initial=0), 1), self.tasks), np.nan)
        result.T[np.arange(result.shape[0]) < self.sizes[:, None]] = self.values
        return result


def strata_of(groups: Sequence[Sequence[float]], expected: Sequence[int] | None = None) -> Strata:
    """Strata of T lists of scores, one per task; lists may be of any length, empty ones included.

    Args:
        expected: (T,) runs that there should be; None: as many as there are.
    Raises: ValueError for no task, a score that is not finite, or fewer runs expected than there are.
    """
    if not len(groups):
        raise ValueError("groups=[]: allowed is at least one task")
    sizes = np.array([len(group) for group in groups], dtype=np.intp)
    values = np.array([score for group in groups for score in group], dtype=np.float64)
    wanted = sizes if expected is None else np.array(expected, dtype=np.intp)
    return Strata(values, sizes, wanted)


def strata_of_matrix(scores: ArrayLike) -> Strata:
    """Strata of scores (R, T) as rliable takes them: runs by tasks, NaN where a run has no score.

    Raises: ValueError for another shape or an infinite score.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"scores of shape {matrix.shape}: allowed is (runs, tasks) with at least one task")
    there = ~np.isnan(matrix)
    sizes = there.sum(0).astype(np.intp)
    return Strata(matrix.T[there.T], sizes, np.full(len(sizes), len(matrix), dtype=np.intp))


def _first_bad(values: Floats) -> float:
    return float(values[~np.isfinite(values)][0])


TRIM = 0.25


def task_means(values: Floats, strata: Strata) -> Floats:
    """(..., T') mean score of each task that has a run."""
    if not len(strata.present):
        return np.empty((*values.shape[:-1], 0))
    sums = np.add.reduceat(values, strata.starts, axis=-1)
    return np.asarray(sums / strata.sizes[strata.present])


def mean(values: Floats, strata: Strata) -> Floats:
    """(...,) mean over tasks of the mean over runs."""
    return np.asarray(values @ strata.weights)


def median(values: Floats, strata: Strata) -> Floats:
    """(...,) median over tasks of the mean over runs."""
    return np.asarray(np.median(task_means(values, strata), axis=-1))


def interquartile_mean(values: Floats, strata: Strata) -> Floats:
    """(...,) mean of the middle half of all runs of all tasks.

    With as many runs on every task it is `scipy.stats.trim_mean(scores, 0.25, axis=None)`: the floor(N / 4) lowest
    and as many of the highest are left out. Otherwise the same share is cut from the weighted distribution of the runs
    and the run that a cut goes through counts in part.
    """
    count = values.shape[-1]
    cut = int(TRIM * count)
    if strata.balanced:
        return np.asarray(np.sort(values, axis=-1)[..., cut : count - cut].mean(-1))
    order = np.argsort(values, axis=-1)
    weights = strata.weights[order]
    ends = np.cumsum(weights, axis=-1)
    trim = cut / count
    kept = np.maximum(np.minimum(ends, 1.0 - trim) - np.maximum(ends - weights, trim), 0.0)
    return np.asarray((np.take_along_axis(values, order, -1) * kept).sum(-1) / kept.sum(-1))


def optimality_gap(values: Floats, strata: Strata, target: float = 1.0) -> Floats:
    """(...,) target less the mean of min(score, target): how far the runs stay below it. 0 is best."""
    return np.asarray(target - np.minimum(values, target) @ strata.weights)


def share_above(values: Floats, strata: Strata, thresholds: Floats) -> Floats:
    """(..., K) share of the runs whose score is above each of the thresholds (K,), every task weighing the same.

    The run-score distribution, whose graph over the thresholds is a performance profile.
    """
    columns = [np.asarray((values > threshold) @ strata.weights) for threshold in thresholds]
    return np.stack(columns, axis=-1)


REPLICATES = 10_000
CONFIDENCE = 0.95
Statistic = Callable[[Floats, Strata], Floats]


@dataclass(frozen=True)
class Aggregate:
    """A statistic over tasks with its interval, and what it stands on.

    Attributes:
        value: None where there is no run at all.
        low, high: ends of the interval; None where no task has two runs, since nothing is known of the spread.
        runs, tasks: with a score. of_runs, of_tasks: that there should be.
        single: tasks with one run, which add nothing to the interval.
    """

    value: float | None
    low: float | None
    high: float | None
    runs: int
    of_runs: int
    tasks: int
    of_tasks: int
    single: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.runs == self.of_runs and self.tasks == self.of_tasks


def resample(strata: Strata, replicates: int, generator: np.random.Generator) -> Ints:
    """Indices (B, N) of runs drawn with replacement, each within the task whose place it takes."""
    if replicates < 1:
        raise ValueError(f"replicates={replicates!r}: allowed is an int >= 1")
    sizes = strata.sizes[strata.present]
    starts, counts = np.repeat(strata.starts, sizes), np.repeat(sizes, sizes)
    drawn = generator.random((replicates, len(strata.values)))
    drawn *= counts
    return np.asarray(starts + drawn.astype(np.intp))


def percentile_interval(replicates: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Ends (...,) of the percentile interval of replicates (B, ...)."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence!r}: allowed is a number between 0 and 1")
    low, high = np.quantile(replicates, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0], axis=0)
    return np.asarray(low), np.asarray(high)


def aggregates(
    strata: Strata,
    statistics: Mapping[str, Statistic],
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
) -> dict[str, Aggregate]:
    """Statistics of one agent with intervals, all from the same draws.

    Args:
        statistics: name -> function of values (..., N) and strata that gives (...,).
        replicates: B, draws of the bootstrap.
    """
    if not len(strata.values):
        return {name: _aggregate(strata, None, None, None) for name in statistics}
    spread = bool((strata.sizes > 1).any())
    drawn = strata.values[resample(strata, replicates, generator)] if spread else None
    found = {}
    for name, statistic in statistics.items():
        low = high = None
        if drawn is not None:
            low, high = (float(end) for end in percentile_interval(statistic(drawn, strata), confidence))
        found[name] = _aggregate(strata, float(statistic(strata.values, strata)), low, high)
    return found


def _aggregate(strata: Strata, value: float | None, low: float | None, high: float | None) -> Aggregate:
    return Aggregate(
        value=value,
        low=low,
        high=high,
        runs=strata.runs,
        of_runs=strata.of_runs,
        tasks=len(strata.present),
        of_tasks=strata.tasks,
        single=int((strata.sizes == 1).sum()),
    )
