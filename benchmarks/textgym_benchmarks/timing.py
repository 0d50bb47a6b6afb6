"""Timing two things in turn, so that a noisy machine slows both."""

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


def time_once(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_pair(first: Callable[[], object], second: Callable[[], object], rounds: int) -> Pair:
    """Runs both once to warm up, then `rounds` times in turn."""
    first()
    second()
    rows = [(time_once(first), time_once(second)) for _ in range(rounds)]
    return Pair(median(a for a, _ in rows), median(b for _, b in rows), median(a / b for a, b in rows))
