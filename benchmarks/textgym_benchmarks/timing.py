"""Timing two things in turn, so that a noisy machine slows both.

What runs in this process is timed in CPU seconds, which other processes disturb less; at one thread they are what a
quiet machine's clock shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Pair:
    """Median seconds of two functions run in turn, and the median of their ratios first / second."""

    first: float
    second: float
    ratio: float


def time_once(function: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds that one call takes."""
    start = clock()
    function()
    return clock() - start


def time_pair(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> Pair:
    """Runs both once to warm up, then `rounds` times in turn.

    Args:
        clock: `time.perf_counter` for functions that start processes.
    """
    first()
    second()
    rows = [(time_once(first, clock), time_once(second, clock)) for _ in range(rounds)]
    return Pair(median(a for a, _ in rows), median(b for _, b in rows), median(a / b for a, b in rows))
