"""The settings of LM PPO: validated, saved as JSON, and shown as command-line flags. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

KL = Literal["exact", "k1", "k2", "k3"]

_AT_LEAST_ONE = ("batch", "epochs", "minibatches", "micro_batch", "kl_horizon")
_POSITIVE = ("adam_epsilon", "max_grad_norm", "temperature", "clip", "value_clip")
_SHARES = ("lam", "warmup")
_NOT_NEGATIVE = ("value_coefficient", "entropy_coefficient")


@dataclass(frozen=True)
class LMPPOConfig:
    """Settings of LM PPO.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    model: str | None = None
    """Folder or hub id of the causal LM; None takes the task's reference. It is the start and the reference."""
    batch: int = 256
    """Episodes per iteration (sub-environments)."""
    epochs: int = 2
    """Passes over a batch."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    micro_batch: int = 64
    """Episodes per forward and backward pass; changes memory and speed, never the gradient."""
    learning_rate: float | None = None
    """Adam's step size at its peak; None takes 5e-4, or 3e-3 where the start is a tiny model made for the task."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls over the budget; linear and cosine end at a tenth of the peak."""
    warmup: float = 0.0
    """Share of the budget over which the learning rate rises from 0."""
    adam_epsilon: float = 1e-5
    """Adam's epsilon."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    clip: float = 0.2
    """Range of the probability ratio."""
    value_clip: float = 0.2
    """Range of a value's change per batch, in units of the first batch's reward spread."""
    value_coefficient: float = 0.01
    """Weight of the value loss. Its gradient reaches the trunk that value and policy share, where a large weight costs
    what the model knows about prompts it is not trained on."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus, in units of the standardised advantage per nat."""
    lam: float = 0.95
    """GAE's lambda, per token."""
    whiten: bool = True
    """Standardise advantages over the batch's real tokens; the KL term in the loss is scaled with them."""
    beta: float | None = None
    """KL coefficient, reward units per nat; None takes the task's."""
    kl: KL = "exact"
    """exact: over the whole vocabulary at each state, its own gradient in the loss and that of later states in the
    return. k1: sampled log-ratio in the reward. k2: half its square in the loss and k1 of later tokens in the return.
    k3: in the loss alone, as GRPO does (its gradient is that of the opposite KL)."""
    kl_target: float | None = None
    """Nats per sequence that an adaptive beta steers to; None keeps beta fixed."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive beta moves."""
    stop_update_kl: float | None = None
    """An update ends early when the policy is this far (nats per token) from the one that sampled."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, for sampling and scoring alike."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the models under autocast; parameters stay float32."""
    seed: int = 0
    """Seeds prompts, sampling and mini-batches."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "an integer >= 1")
        for name in _POSITIVE:
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a finite number > 0")
        for name in _SHARES:
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        for name in _NOT_NEGATIVE:
            _require(name, getattr(self, name), getattr(self, name) >= 0, "a number >= 0")
        _require(
            "minibatches", self.minibatches, self.minibatches <= self.batch, f"at most batch={self.batch}"
        )
        _require("beta", self.beta, self.beta is None or self.beta >= 0, "None or a number >= 0")
        _require(
            "kl_target", self.kl_target, self.kl_target is None or self.kl_target > 0, "None or a number > 0"
        )
        limit = self.stop_update_kl
        _require("stop_update_kl", limit, limit is None or limit > 0, "None or a number > 0")
        _require("kl", self.kl, self.kl in ("exact", "k1", "k2", "k3"), "'exact', 'k1', 'k2', 'k3'")
        schedules = ("constant", "linear", "cosine")
        _require("schedule", self.schedule, self.schedule in schedules, str(schedules))
        precisions = ("float32", "bfloat16")
        _require("precision", self.precision, self.precision in precisions, str(precisions))
        _require("seed", self.seed, self.seed >= 0, "an integer >= 0")


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: allowed is {allowed}")
