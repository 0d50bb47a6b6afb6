"""Gradient checkpointing: layers keep their inputs alone and run again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class _Recomputed:
    """A layer's forward that runs again for the gradient."""

    forward: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **options)
        return checkpoint(self.forward, *args, use_reentrant=False, **options)


def recompute_layers(model: Any) -> None:
    """Make every layer of a Hugging Face model run again in the backward pass; the gradient stays the same.

    transformers' own switch works in training mode only, in which dropout would make acting and scoring two different
    policies.

    Raises: ValueError if the model has no layers that can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient_checkpointing=True: {type(model).__name__} has no layers that can run again; allowed is False"
        )
    for layer in layers:
        if not isinstance(layer.forward, _Recomputed):
            layer.forward = _Recomputed(layer.forward)


def recomputes(model: Any) -> bool:
    """Whether layers run again, by `recompute_layers` or because transformers' own switch asks for it."""
    return any(
        isinstance(getattr(module, "forward", None), _Recomputed)
        or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )
