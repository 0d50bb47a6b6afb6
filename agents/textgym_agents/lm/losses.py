"""The losses of policy-gradient methods on tokens: pure functions of per-token tensors (N,), and how to sum them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym_agents.config import KL

Aggregation = Literal["token", "sequence", "constant"]
"""Every token alike, whatever sequence it is in; every sequence alike, by the mean over its own tokens; the sum over
each sequence, over a constant."""


def loss_total(aggregation: Aggregation, lengths: NDArray[np.integer[Any]], longest: int) -> float:
    """What the summed token losses of a mini-batch are divided by; for "sequence" see `sequence_weights`.

    Only "constant" leaves the policy gradient as it is: the other two divide by lengths that depend on what was
    sampled.

    Args:
        lengths: (b,) tokens of its sequences. longest: tokens that a sequence may have.
    Source: Shao et al. (2024), arXiv:2402.03300, eq. 3 (sequence); Yu et al. (2025), arXiv:2503.14476, section 3.3
        (token); Liu et al. (2025), arXiv:2503.20783, section 3.2 (constant).
    """
    if aggregation == "token":
        return float(lengths.sum())
    return float(len(lengths) * (longest if aggregation == "constant" else 1))


def sequence_weights(lengths: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(N,) for every token, row by row: one over the length of its sequence."""
    return np.asarray(np.repeat(1.0 / lengths, lengths))


def score_function_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-log pi(a) A, whose gradient is minus REINFORCE's where `log_probs` are those of the policy that sampled.

    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
    """
    return -log_probs * advantages


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_ratio).

    Args:
        clip: how far the ratio may fall, and rise where there is no `clip_high`. clip_high: how far it may rise.
    Source: Schulman et al. (2017), arXiv:1707.06347, eq. 7; Yu et al. (2025), arXiv:2503.14476, section 3.1, for two
        ranges.
    """
    ratio = log_ratio.exp()
    kept = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, kept * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error, or that of the value kept within `clip` of its old value, whichever is larger.

    Source: Schulman et al. (2016), arXiv:1506.02438, section 5, as PPO implementations use it.
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (kept - returns).square())


def kl_estimate(log_ratio: Tensor, kind: KL) -> Tensor:
    """Single-sample estimates of KL(pi || ref) from log pi(a) - log ref(a), a drawn from pi.

    k1 is unbiased and may be negative; k2 is half its square; k3 is unbiased and >= 0. As losses: the expected
    on-policy gradient of k1 is 0, that of k2 is the gradient of KL(pi || ref), that of k3 the gradient of
    KL(ref || pi).

    Source: Schulman (2020), Approximating KL Divergence.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kind={kind!r}: no single-sample estimate; allowed: 'k1', 'k2', 'k3'")
