"""The losses of policy-gradient methods on tokens: pure functions of per-token tensors (N,), no reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from textgym_agents.config import KL


def clipped_policy_loss(log_ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_ratio).

    Source: Schulman et al. (2017), arXiv:1707.06347, eq. 7.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


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
