"""What rows of a run's metrics tell: series, means of a few, and J with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import Final

Row = Mapping[str, float]
"""Metrics of an iteration by name, finite numbers."""
FEW: Final = 3  # rows whose mean is looked at: one alone may be an accident


def series(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric in the rows that have it."""
    return [row[name] for row in rows if name in row]


def recent(rows: Sequence[Row], name: str, count: int = FEW) -> float | None:
    """Return the mean of a metric's last `count` values; None where there are fewer."""
    values = series(rows, name)
    return fmean(values[-count:]) if len(values) >= count else None


def objectives(rows: Sequence[Row]) -> list[float]:
    """Return J of every batch, reward less beta times the KL; the reward alone where the KL is not measured."""
    return series(rows, "objective/rlhf_reward") or series(rows, "objective/scores")


def span(values: Sequence[float]) -> float:
    """Return how far values lie apart; 0 for none."""
    return max(values, default=0.0) - min(values, default=0.0)


def rounding(rows: Sequence[Row]) -> float:
    """Return by how much the means of equal rewards may differ in float32."""
    return 1e-6 * max([1.0, *map(abs, series(rows, "objective/scores"))])


def batch_of(rows: Sequence[Row]) -> float:
    """Return the episodes that a batch learns from, without those by which VinePPO values a state; infinite if unknown.

    It is the least between two rows, as others may be left out.
    """
    known = pairwise(row for row in rows if "episode" in row)
    sizes = (after["episode"] - before["episode"] - after.get("vine/rollouts", 0.0) for before, after in known)
    return min((size for size in sizes if size > 0), default=math.inf)


def unbroken(rows: Sequence[Row], counter: str, count: int) -> list[int]:
    """Return the places from which `count` rows follow each other in the run, by a number that they may have."""
    numbers = [row.get(counter, place) for place, row in enumerate(rows)]
    return [at for at in range(len(rows) - count + 1) if numbers[at + count - 1] - numbers[at] == count - 1]


def error_of(rows: Sequence[Row]) -> float:
    """Return the standard error of the mean score of `FEW` batches; a thousandth of the largest score at least.

    It follows from the spread of the scores and the episodes of a batch, or else from the successive differences of the
    batches' means: for normal noise their median is 0.954 standard deviations.
    """
    scores, spreads, batch = series(rows, "objective/scores"), series(rows, "objective/scores_std"), batch_of(rows)
    if spreads and batch < math.inf:
        noise = fmean(spreads) / math.sqrt(batch)
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
    return max(means(values, min(FEW, len(values))))


def means(values: Sequence[float], count: int) -> list[float]:
    """Return the mean of every `count` values that follow each other; none where there are fewer."""
    return [fmean(values[at : at + count]) for at in range(len(values) - count + 1)]


def half_width(row: Row, name: str) -> float:
    """Return half the 95% interval `name_low` to `name_high` of a metric; 0 where it has none."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return 0.0 if low is None or high is None else (high - low) / 2


def deviations(rows: Sequence[Row], name: str) -> list[float]:
    """Return the standard deviation of a metric's noise in each of the rows, which all have it.

    It follows from the 95% intervals where every row has one. Otherwise it is the same in all rows: from the mean size
    of successive differences, which for normal noise is 2 / sqrt(pi) deviations, and 1 + 4 / D times that, as D
    differences tell it roughly; three thousandths of the largest value at least.
    """
    widths = [half_width(row, name) for row in rows]
    if min(widths, default=0.0) > 0:
        return [width / 1.96 for width in widths]
    values = series(rows, name)
    steps = [abs(after - before) for before, after in pairwise(values)] or [0.0]
    spread = fmean(steps) * math.sqrt(math.pi) / 2 * (1 + 4 / len(steps))
    return [max(spread, 3e-3 * max(map(abs, values), default=0.0))] * len(rows)


def moved(rows: Sequence[Row], name: str, at: int, count: int) -> tuple[float, float]:
    """Return by how much a metric's mean of the last `count` rows lies above that of as many from `at` on, in errors.

    Returns: the change, and the change in standard errors; all rows have the metric.
    """
    values, noise = series(rows, name), deviations(rows, name)
    change = fmean(values[-count:]) - fmean(values[at : at + count])
    error = math.hypot(*noise[at : at + count], *noise[-count:]) / count
    return change, change / max(error, 1e-12)
