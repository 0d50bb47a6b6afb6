"""An optimiser step on the mean loss of many items, computed part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from textgym_agents.protocol import Metrics


def accumulate(
    optimizer: torch.optim.Optimizer, parts: Iterable[tuple[Tensor, Metrics]], items: int
) -> Metrics:
    """Set the gradient to that of the mean loss of a step's items, whatever its parts are.

    Args:
        optimizer: of the parameters; older gradients are dropped.
        parts: the losses of some of the items, summed where there are several (a tensor of any shape), and what is
            reported of them, summed over the same items. A part is computed when it is asked for.
        items: in all parts together.
    Returns: the means over all items of what the parts report.
    """
    sums: Metrics = {}
    optimizer.zero_grad(set_to_none=True)
    for losses, reported in parts:
        (losses.sum() / items).backward()
        sums = {name: sums.get(name, 0.0) + value for name, value in reported.items()}
    return {name: value / items for name, value in sums.items()}


def apply_gradient(optimizer: torch.optim.Optimizer, max_grad_norm: float, when: str) -> float:
    """Scale the gradient down to a norm, and take the optimiser's step.

    Args:
        max_grad_norm: a longer gradient has this norm afterwards.
        when: begins the message of the error, such as "step 3".
    Returns: the gradient's norm before.
    Raises: FloatingPointError if it is not finite; the parameters are as before then.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"{when}: the gradient is not finite; lower learning_rate={optimizer.param_groups[0]['lr']!r} "
            f"or max_grad_norm={max_grad_norm!r}"
        )
    optimizer.step()
    return norm
