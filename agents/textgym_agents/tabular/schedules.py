"""How exploration falls over the budget, and how far a value moves towards its target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textgym_agents.tabular.config import Schedule, StepSize


def scheduled(kind: Schedule, start: float, end: float, progress: float) -> float:
    """A number between `start` and `end`, both > 0 if `kind` is "exponential".

    Args:
        progress: share of the way, at least 0; from 1 on it is `end`, or `start` if `kind` is "constant".
    """
    share = min(progress, 1.0)
    if kind == "constant" or start == end:
        return start
    if kind == "linear":
        return start + (end - start) * share
    return float(start * (end / start) ** share)


def update_weight(
    kind: StepSize, rate: float, before: NDArray[np.int64], repeats: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What n updates one after the other leave of the old value, subtracted from 1: Q <- Q + weight * (target - Q).

    For a constant rate that is 1 - (1 - rate)^n. For steps 1 / (k + 1), ..., 1 / (k + n) it is n / (k + n), which
    makes Q the mean of all its targets.

    Args:
        before: (m,) k, updates that each value had. repeats: (m,) n, how many there are now.
    """
    if kind == "harmonic":
        return np.asarray(repeats / (before + repeats))
    return np.asarray(1.0 - (1.0 - rate) ** repeats)
