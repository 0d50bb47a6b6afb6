"""Performance profiles: the share of runs above each score, with a band.

Source: Agarwal et al. (2021), arXiv:2108.13264, section 4.2 (run-score distributions).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from textgym_benchmarks.statistics.aggregates import share_above
from textgym_benchmarks.statistics.bootstrap import CONFIDENCE, percentile_interval, resample
from textgym_benchmarks.statistics.strata import Floats, Strata

REPLICATES = 2000


@dataclass(frozen=True, eq=False)
class Profile:
    """Shares in [0, 1] of the runs above each of K thresholds.

    Attributes:
        thresholds, share: (K,). low, high: (K,), or None where no task has two runs.
    """

    thresholds: Floats
    share: Floats
    low: Floats | None
    high: Floats | None


def performance_profile(
    strata: Strata,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
) -> Profile:
    """The profile of one agent; its band holds at each threshold by itself, not at all of them at once.

    Args:
        thresholds: (K,) scores.
    Raises: ValueError if there is no run, or thresholds are not a list of finite numbers.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not np.isfinite(levels).all():
        raise ValueError(f"thresholds={thresholds!r}: allowed is a list of finite numbers")
    if not len(strata.values):
        raise ValueError("strata: no task has a run; allowed is at least one run")
    share = share_above(strata.values, strata, levels)
    if not (strata.sizes > 1).any():
        return Profile(levels, share, None, None)
    drawn = strata.values[resample(strata, replicates, generator)]
    low, high = percentile_interval(share_above(drawn, strata, levels), confidence)
    return Profile(levels, share, low, high)
