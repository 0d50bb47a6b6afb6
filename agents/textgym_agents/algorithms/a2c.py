"""A2C on a causal LM: one step per batch along grad log pi times the advantage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from textgym.task import Task
from textgym_agents.algorithms.ppo import ActorCriticAgent
from textgym_agents.config import ActorCriticConfig
from textgym_agents.lm.critic_free import score_function_loss


@dataclass(frozen=True)
class A2CConfig(ActorCriticConfig):
    """Settings of A2C. Raises: as `LMConfig` does."""

    batch: int = 64
    """Episodes per iteration (sub-environments)."""
    epochs: int = 1
    """Passes over a batch. Later passes are not corrected for the change of the policy since sampling."""
    minibatches: int = 1
    """Optimiser steps per pass."""


class A2C(ActorCriticAgent):
    """An LM policy with a value head, trained by advantage actor-critic. Args: see `LMAgent`.

    Raises: as `LMAgent` does; ValueError for a `sampler` without LoRA.
    Source: Mnih et al. (2016), arXiv:1602.01783, section 4 (its synchronous form, with whole episodes as n steps).
    """

    name = "a2c"
    config_type = A2CConfig
    aggregation = "constant"

    def __init__(self, task: Task, config: A2CConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or A2CConfig(), model)

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return score_function_loss(log_probs, advantages)
