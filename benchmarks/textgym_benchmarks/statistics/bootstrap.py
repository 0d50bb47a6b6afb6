"""The stratified bootstrap: runs drawn with replacement within every task, and percentile intervals of what follows.

Where every task has n runs, the intervals are too narrow by about sqrt((n - 1) / n), as rliable's are: by 18% with
three runs. Of a single task with three runs the interval is the range from the least to the greatest, which holds
the true mean about three times in four, not 95 in 100. Tasks are fixed: an interval says what other seeds would give
on the same tasks, not what other tasks would give.

Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13; Agarwal et al. (2021),
arXiv:2108.13264, section 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from textgym_benchmarks.statistics.strata import Floats, Ints, Strata

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
