"""Scores of one agent, grouped by task: any number of runs per task, none included."""

from __future__ import annotations

from collections.abc import Sequence
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
