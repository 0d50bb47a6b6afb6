"""PPO on a causal LM with a KL penalty to its frozen start: the third stage of RLHF."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.losses import clipped_policy_loss
from textgym_agents.lm.on_policy import ActorCriticAgent


class LMPPO(ActorCriticAgent):
    """An LM policy with value head, trained by PPO. Args: see `LMAgent`.

    Source: Schulman et al. (2017), arXiv:1707.06347; Ziegler et al. (2019), arXiv:1909.08593; Ouyang et al. (2022),
        arXiv:2203.02155.
    """

    name = "lm-ppo"
    config_type = LMPPOConfig

    def __init__(self, task: Any, config: LMPPOConfig | None = None, model: Any = None) -> None:
        config = config or LMPPOConfig()
        super().__init__(task, config, model)
        self.clip = config.clip

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return clipped_policy_loss(log_probs - old_log_probs, advantages, self.clip)
