"""What rows of a run's metrics tell: series, means of a few, and J with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final

Row = Mapping[str, float | None]
"""Metrics of an iteration by name; None, as a log has it, for a number that is not finite."""
FEW: Final = 3  # rows whose mean is looked at: one alone may be an accident


def series(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric in the rows that have it; NaN for None."""
    found = (row[name] for row in rows if name in row)
    return [math.nan if value is None else float(value) for value in found]


def recent(rows: Sequence[Row], name: str, count: int = FEW) -> float | None:
    """Return the mean of a metric's last `count` values; None where there are fewer."""
    values = series(rows, name)
    return fmean(values[-count:]) if len(values) >= count else None


def objectives(rows: Sequence[Row]) -> list[float]:
    """Return J of every batch, reward less beta times the KL; the reward alone where the KL is not measured."""
    return series(rows, "objective/rlhf_reward") or series(rows, "objective/scores")


def error_of(rows: Sequence[Row]) -> float:
    """Return the standard error of the mean score of `FEW` batches; a thousandth of the largest score at least.

    It follows from the spread of the scores and the episodes of a batch, or else from the successive differences of the
    batches' means: for normal noise their median is 0.954 standard deviations.
    """
    scores, spreads = series(rows, "objective/scores"), series(rows, "objective/scores_std")
    batches = [after - before for before, after in pairwise(series(rows, "episode"))]
    if spreads and batches and batches[-1] > 0:
        noise = fmean(spreads) / math.sqrt(batches[-1])
    else:
        noise = median([abs(after - before) for before, after in pairwise(scores)] or [0.0]) / 0.954
    return max(noise / math.sqrt(FEW), 1e-3 * max(map(abs, scores), default=0.0))


def pays(rows: Sequence[Row]) -> bool:
    """Return whether J of the last few rows lies above the first, and not below the best few.

    Above by 2 standard errors of the difference, and below by 4, as the best few are the luckiest of many.
    """
    values = objectives(rows)
    if len(values) <= FEW:
        return False
    error, now = error_of(rows), fmean(values[-FEW:])
    return now > values[0] + 2 * error * math.sqrt(1 + FEW) and now > best_few(values) - 4 * error * math.sqrt(2)


def best_few(values: Sequence[float]) -> float:
    """Return the largest mean of `FEW` values that follow each other; of all, where there are fewer."""
    return max(fmean(values[at : at + FEW]) for at in range(max(len(values) - FEW, 0) + 1))
