"""RMSNorm, SwiGLU and rotary heads whose backward passes keep only what they need.

Outside of gradients (acting) the same functions run without autograd's bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


class _RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps), without the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, scale = _normalise(x, eps)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        (gradient,) = gradients
        along = torch.linalg.vecdot(gradient, y).unsqueeze(-1) / y.shape[-1]
        return torch.addcmul(gradient, y, along, value=-1).mul_(scale), None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        activated = F.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, activated = ctx.saved_tensors
        (gradient,) = gradients
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * activated


class _Heads(torch.autograd.Function):
    """Splits (B, T, (A + 2 K) D) into rotated queries (B, T, A, D), rotated keys and values (B, T, K, D).

    `phases` (T, 1, D / 2) are unit complex numbers: a rotary embedding of interleaved pairs is their product.
    """

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, phases: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(phases)
        ctx.sizes = sizes
        query, key, value = mixed.view(*mixed.shape[:2], sum(sizes), -1).split(sizes, 2)
        return rotate(query, phases), rotate(key, phases), value.contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (phases,) = ctx.saved_tensors
        batch, width, _, size = gradients[0].shape
        result = gradients[0].new_empty((batch, width, sum(ctx.sizes), size))
        back = phases.conj()
        for part, gradient in zip(result.split(ctx.sizes, 2)[:2], gradients[:2], strict=True):
            pairs = torch.view_as_complex(gradient.contiguous().unflatten(-1, (-1, 2)))
            torch.mul(pairs, back, out=torch.view_as_complex(part.unflatten(-1, (-1, 2))))
        result[:, :, -ctx.sizes[2] :] = gradients[2]
        return result.flatten(2), None, None


_rms_norm_with_gradient: Callable[[Tensor, float], Tensor] = _RMSNorm.apply
_swiglu_with_gradient: Callable[[Tensor, Tensor], Tensor] = _SwiGLU.apply
split_heads: Callable[[Tensor, Tensor, tuple[int, int, int]], tuple[Tensor, ...]] = _Heads.apply


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) over the last axis, without a weight. Source: Zhang and Sennrich (2019), eq. 4."""
    return _rms_norm_with_gradient(x, eps) if torch.is_grad_enabled() else _normalise(x, eps)[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Source: Shazeer (2020), arXiv:2002.05202, eq. 6."""
    return _swiglu_with_gradient(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs (..., D) by unit complex `phases` (..., D / 2)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * phases).flatten(-2)
