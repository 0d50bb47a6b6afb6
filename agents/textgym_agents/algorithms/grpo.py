"""GRPO on a causal LM: completions of a prompt measured against their group, and the choices that papers differ in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from textgym.checks import Floats
from textgym.task import Task
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.algorithms.rloo import check_group, check_sequence_kl
from textgym_agents.config import KL, OnPolicyConfig, positive, require
from textgym_agents.lm.critic_free import action_returns, centred, critic_free_targets, sequence_weights, standardised
from textgym_agents.lm.maths import Aggregation, Targets, clipped_policy_loss, on_device
from textgym_agents.lm.rollout import Rollout

_AGGREGATIONS = ("token", "sequence", "constant")


@dataclass(frozen=True)
class GRPOConfig(OnPolicyConfig):
    """Settings of GRPO.

    The defaults are Dr. GRPO's with the KL of J, whose expected gradient is that of J. The first paper's are kl=k3,
    divide_by_std=True, aggregation=sequence and whiten=False; DAPO's losses are aggregation=token with clip_high=0.28.
    """

    group: int = 8
    """Completions of each prompt; batch is a multiple of it."""
    divide_by_std: bool = False
    """Divide a group's advantages by its standard deviation, which gives prompts whose returns differ little as much
    weight as others: not the gradient of J. beta in the loss is divided by the mean of these deviations over the
    batch, so that it stays in reward units per nat; the paper's counts in units of the divided advantages."""
    aggregation: Aggregation = "constant"
    """token: mean over the tokens of a mini-batch. sequence: mean over the tokens of each completion, then over
    completions. constant: sum over tokens, over completions times max_new_tokens. Only constant leaves the gradient as
    it is: with sequence the tokens of long completions count less, with token all do in a batch of long ones. They are
    those of arXiv:2503.14476, section 3.3; arXiv:2402.03300, eq. 3; and arXiv:2503.20783, section 3.2."""
    clip_low: float = 0.2
    """How far the probability ratio may fall below 1."""
    clip_high: float = 0.2
    """How far the probability ratio may rise above 1."""
    kl: KL = "exact"
    """exact, k1: as for the other agents, and then the return that a group compares has the KL in it. k3: in the loss
    alone, as in the paper; its gradient is that of the opposite KL, KL(ref || pi) in each state, not that of J."""
    whiten: bool = True
    """Divide all advantages, and beta with them, by their standard deviation over the batch. Nothing is subtracted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self.group, self.batch)
        check_sequence_kl(self.kl)
        require("aggregation", self.aggregation, self.aggregation in _AGGREGATIONS, str(_AGGREGATIONS))
        positive(self, "clip_low", "clip_high")


class GRPO(OnPolicyAgent):
    """An LM policy trained by group relative policy optimisation. Args: see `LMAgent`.

    Source: Shao et al. (2024), arXiv:2402.03300, eq. 3; Liu et al. (2025), arXiv:2503.20783 (Dr. GRPO); Yu et al.
        (2025), arXiv:2503.14476 (DAPO).
    """

    name = "grpo"
    config_type = GRPOConfig
    config: GRPOConfig

    def __init__(self, task: Task, config: GRPOConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or GRPOConfig()
        super().__init__(task, config, model)
        self.group, self.aggregation = config.group, config.aggregation
        self.clip = min(config.clip_low, config.clip_high)

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta = self.config, self.controller.beta
        credits = action_returns(rollout, kl, config.kl, beta, self.task.gamma)
        returns = credits[rollout.first_states].reshape(-1, self.group)  # (B / group, group)
        # A mean that holds the completion itself shrinks the expected gradient by (n - 1) / n; beta goes with it.
        beta *= (self.group - 1) / self.group
        if config.divide_by_std:
            spread = float(returns.std(1, ddof=1).mean())
            beta = beta / spread if spread > 1e-8 else beta
        advantages = standardised(returns) if config.divide_by_std else centred(returns)
        advantages = advantages.ravel()[rollout.rows]
        targets = critic_free_targets(rollout, kl, config.kl, beta, advantages, config.whiten)
        if config.aggregation != "sequence":
            return targets
        return replace(targets, weights=on_device(sequence_weights(rollout.lengths), rollout))

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        config = self.config
        return clipped_policy_loss(log_probs - old_log_probs, advantages, config.clip_low, config.clip_high)
