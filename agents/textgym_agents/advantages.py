"""Returns and advantages of finished episodes, as pure functions over padded numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

_EPSILON = 1e-4


def gae(
    rewards: Array,
    values: Array,
    lengths: NDArray[np.integer[Any]],
    lam: float,
    bootstrap: Array | None = None,
) -> NDArray[np.float64]:
    """GAE(lambda) advantages of a batch of episodes: sums of lam^k delta, delta = r_t + V(s_{t+1}) - V(s_t).

    A discount is in the units: of time 0 are the rewards gamma^t r_t and the values V(s_t), the sum of those to come.

    Args:
        rewards, values: (B, T), reward units at time 0; values[i, t] is V(s_t) when it was sampled. Columns at or after
            lengths[i] are padding and are not read.
        lengths: (B,) actions per row.
        lam: per token, in [0, 1].
        bootstrap: (B,) V(s_T) of rows that were truncated, 0 for rows that ended; None means all ended.
    Returns: (B, T), reward units at time 0; 0 in the padding.
    Raises: ValueError if the shapes differ.
    Source: Schulman et al. (2016), arXiv:1506.02438, eq. 16, times gamma^t.
    """
    if rewards.shape != values.shape or lengths.shape != rewards.shape[:1]:
        raise ValueError(
            f"shapes differ: rewards {rewards.shape}, values {values.shape}, lengths {lengths.shape}"
        )
    batch, width = rewards.shape
    valid = np.arange(width) < lengths[:, None]
    rewards, values = np.where(valid, rewards, 0.0), np.where(valid, values, 0.0)
    following = np.zeros((batch, width))
    following[:, :-1] = values[:, 1:]
    if bootstrap is not None and batch:
        following[np.arange(batch), lengths - 1] = bootstrap
    deltas = rewards + following - values
    advantages = np.zeros((batch, width))
    running = np.zeros(batch)
    for step in range(width - 1, -1, -1):
        running = np.where(valid[:, step], deltas[:, step] + lam * running, 0.0)
        advantages[:, step] = running
    return advantages


def standardise(values: Array, centre: bool = True) -> tuple[NDArray[np.float64], float]:
    """Divides valid entries (N,) by their standard deviation and, if `centre`, subtracts their mean first.

    Returns: the result (N,) and the standard deviation; 1.0 where it is (nearly) 0, so that nothing explodes.
    """
    spread = float(np.std(values))
    scale = spread if spread > 1e-8 else 1.0
    shifted = np.asarray(values, dtype=np.float64) - (float(np.mean(values)) if centre else 0.0)
    return shifted / scale, scale


def leave_one_out(returns: Array) -> NDArray[np.float64]:
    """RLOO: each return less the mean of the others, (M, n). Source: Ahmadian et al. (2024), arXiv:2402.14740."""
    count = returns.shape[1]
    return np.asarray(centred(returns) * (count / (count - 1)))


def centred(returns: Array) -> NDArray[np.float64]:
    """Each return less the mean of its group, itself included, (M, n). Source: Liu et al. (2025), arXiv:2503.20783."""
    return np.asarray(returns - returns.mean(1, keepdims=True), dtype=np.float64)


def standardised(returns: Array) -> NDArray[np.float64]:
    """GRPO: centred, over the standard deviation + 1e-4, (M, n). Source: Shao et al. (2024), arXiv:2402.03300."""
    return np.asarray(centred(returns) / (returns.std(1, ddof=1, keepdims=True) + _EPSILON))


def scatter(
    flat: Array, rows: NDArray[np.integer[Any]], steps: NDArray[np.integer[Any]], shape: tuple[int, int]
) -> Array:
    """Puts entries (N,) at (rows, steps) of zeros (B, T)."""
    result = np.zeros(shape, dtype=np.float64)
    result[rows, steps] = flat
    return result
