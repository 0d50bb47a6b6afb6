"""Aggregates over tasks, on the scores themselves or on any number of bootstrap replicates of them at once.

Every function takes values (..., N): the scores of one agent, its runs in the order of their tasks, and the strata
that say which run is of which task. Every task that has a run weighs the same, however many of its runs there are: a
task is not made lighter by the runs that failed on it. With as many runs on every task, the definitions are those of
rliable.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.
"""

from __future__ import annotations

import numpy as np

from textgym_benchmarks.statistics.strata import Floats, Strata

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
