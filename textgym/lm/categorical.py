"""The distribution over next tokens: what losses need of its logits, with a gradient of their own, and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Divergence = Literal["reverse", "forward", "jsd"]
ON_CPU, ELSEWHERE = 2**23, 2**26
"""Most logits at once, by device."""


def statistics(logits: Tensor, actions: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi(a), KL(pi || reference) and the entropy of pi, (N,) each, in nats; differentiable in `logits`.

    Args:
        logits: (N, V) float; tokens that are not allowed hold a large negative finite number.
        actions: (N,) int64.
        reference: (N, V) log-probabilities of the reference, or None (the KL is then 0).
    """
    found: tuple[Tensor, Tensor, Tensor] = _Statistics.apply(logits, actions, reference)  # type: ignore[no-untyped-call]
    return found


class _Statistics(torch.autograd.Function):
    """One pass each way for all three, where autograd would keep several arrays (N, V)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, actions: Tensor, reference: Tensor | None) -> tuple[Tensor, ...]:
        log_probs = torch.log_softmax(logits, -1)
        probs = log_probs.exp()
        taken = log_probs.gather(-1, actions[:, None]).squeeze(-1)
        entropy = -torch.linalg.vecdot(probs, log_probs)
        cross = -entropy if reference is None else torch.linalg.vecdot(probs, reference)
        divergence = -entropy - cross
        ctx.save_for_backward(log_probs, probs, actions, reference, entropy, divergence)
        return taken, divergence, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_probs, probs, actions, reference, entropy, divergence = ctx.saved_tensors
        for_taken, for_divergence, for_entropy = (gradient[:, None] for gradient in gradients)
        # d log pi(a) = [j = a] - p_j;  d H = -p_j (log p_j + H);  d KL = p_j (log p_j - log q_j - KL)
        if reference is None:  # the KL is identically 0
            weight = log_probs * -for_entropy
        else:
            weight = (log_probs * (for_divergence - for_entropy)).addcmul_(reference, for_divergence, value=-1)
        weight.sub_(for_taken + for_divergence * divergence[:, None] + for_entropy * entropy[:, None])
        result = weight.mul_(probs)
        result.scatter_add_(1, actions[:, None], for_taken)
        return result, None, None


def divergence(policy: Tensor, teacher: Tensor, kind: Divergence, mix: float = 0.5) -> Tensor:
    """Return a divergence of two distributions over next tokens in each of N states (N,), nats; differentiable.

    Args:
        policy, teacher: (N, V) log-probabilities, large negative finite numbers where there is no probability.
        kind: reverse is KL(policy || teacher), forward KL(teacher || policy). jsd is mix KL(teacher || M) + (1 - mix)
            KL(policy || M), with M = mix teacher + (1 - mix) policy: over mix it tends to forward as mix tends to 0,
            and over 1 - mix to reverse as mix tends to 1.
    Source: Agarwal et al. (2024), arXiv:2306.13649, eq. 1, whose beta is `mix`.
    """
    if kind == "reverse":
        return _kl(policy, teacher)
    if kind == "forward":
        return _kl(teacher, policy)
    between = torch.logaddexp(teacher + math.log(mix), policy + math.log1p(-mix))
    return mix * _kl(teacher, between) + (1 - mix) * _kl(policy, between)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vecdot(one.exp(), one - other)
    return found


def states_at_once(device: str, vocab_size: int) -> int:
    """Return of how many states logits are made at once: what they take is little beside everything else there is."""
    return max(1, (ON_CPU if device == "cpu" else ELSEWHERE) // vocab_size)


def chunks(states: Tensor, vocab_size: int) -> list[slice]:
    """Cut N states into parts of which logits (n, V) are made at once."""
    size = states_at_once(states.device.type, vocab_size)
    return [slice(start, min(start + size, len(states))) for start in range(0, len(states), size)]


def streamed(
    function: Callable[..., tuple[Tensor, ...]], features: Tensor, vocab_size: int, *columns: Tensor
) -> tuple[Tensor, ...]:
    """Return function(features, *columns), made of a few states at a time: what is as large as logits never exists.

    Differentiable; for the gradient every part runs again.

    Args:
        function: makes one number of every state (n,), or several, from its features (n, F) and its entries of columns.
        features: (N, F). columns: (N,) each.
    """
    parts = chunks(features, vocab_size)
    if len(parts) <= 1:
        return function(features, *columns)
    found = []
    for at in parts:
        inputs = [each[at] for each in (features, *columns)]
        again = torch.is_grad_enabled()
        found.append(checkpoint(function, *inputs, use_reentrant=False) if again else function(*inputs))
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        log_probs: (N, V) float32.
        uniforms: (N,) float32 in [0, 1]; 1 is what float32 makes of a number close under it.
    Returns: (N,) int64; never a token of probability 0.
    """
    cumulative = log_probs.exp().cumsum(-1)
    # Just under the total, so that rounding cannot point behind the last token.
    targets = uniforms[:, None] * cumulative[:, -1:] * (1 - 1e-6)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
