"""Probability of improvement: how often a run of one agent beats a run of another on the same task.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.3; Mann and Whitney (1947).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textgym_benchmarks.statistics.bootstrap import CONFIDENCE, percentile_interval
from textgym_benchmarks.statistics.strata import Floats, Strata

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
