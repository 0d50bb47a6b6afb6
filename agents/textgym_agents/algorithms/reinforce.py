"""REINFORCE on a causal LM: the gradient of log pi times the return, with or without a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from textgym.checks import Floats
from textgym.play import check_env
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.algorithms.rloo import check_sequence_kl
from textgym_agents.config import OnPolicyConfig, not_negative, only_with, require
from textgym_agents.lm.critic_free import action_returns, critic_free_targets, leave_one_out, score_function_loss
from textgym_agents.lm.maths import Targets, make_targets, scores
from textgym_agents.lm.rollout import Rollout
from textgym_agents.protocol import Callback


@dataclass(frozen=True)
class ReinforceConfig(OnPolicyConfig):
    """Settings of REINFORCE. Raises: as `LMConfig` does."""

    batch: int = 64
    """Episodes per iteration (sub-environments)."""
    epochs: int = 1
    """Passes over a batch. Later passes are not corrected for the change of the policy since sampling."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    baseline: Literal["none", "batch", "value"] = "none"
    """Baseline subtracted from returns. none; batch: the mean return of the other episodes in the batch; value: the
    value head's V(s)."""
    reward_to_go: bool = True
    """Credit an action with the rewards after it; False: with the return of the whole sequence, for baseline none or
    batch."""
    whiten: bool = True
    """Divide advantages and beta by the standard deviation of the batch's advantages; no mean is subtracted."""
    value_coefficient: float = 0.01
    """Weight of the value loss, with baseline=value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.baseline == "value" and not self.reward_to_go
        if not self.reward_to_go:
            check_sequence_kl(self.kl)
        require("reward_to_go", self.reward_to_go, not whole, "True with baseline='value'")
        alone = self.baseline == "batch" and self.batch < 2
        require("batch", self.batch, not alone, "an integer >= 2 with baseline='batch'")
        not_negative(self, "value_coefficient")
        only_with(self, "value_coefficient", self.baseline == "value", "baseline='value'")


class Reinforce(OnPolicyAgent):
    """An LM policy trained by REINFORCE. Args: see `LMAgent`.

    The expected gradient is that of J for every baseline; whitening multiplies it by a positive number.

    Raises: as `A2C` does.
    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
    """

    name = "reinforce"
    config_type = ReinforceConfig
    config: ReinforceConfig
    aggregation = "constant"

    def __init__(self, task: Task, config: ReinforceConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or ReinforceConfig()
        super().__init__(task, config, model)
        self.critic = config.baseline == "value"
        self.value_coefficient = config.value_coefficient

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """See `OnPolicyAgent.learn`. Raises: also ValueError if the batch is the baseline and has one episode."""
        check_env(env)
        if self.config.baseline == "batch" and env.num_envs < 2:
            raise ValueError(f"env: {env.num_envs} sub-environments; allowed are 2 or more with baseline='batch'")
        super().learn(env, episodes, callback)

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta, gamma = self.config, self.controller.beta, self.task.gamma
        if self.critic:
            scale, offset = self._centre_values(scores(rollout, gamma))
            # With lambda = 1 the advantages of GAE are the returns to go less V(s).
            return make_targets(rollout, kl, config.kl, beta, gamma, 1.0, config.whiten, scale, offset, centre=False)
        credits = action_returns(rollout, kl, config.kl, beta, gamma)
        whole = credits[rollout.first_states]
        if not config.reward_to_go:
            credits = whole[rollout.rows]
        if config.baseline == "batch":
            credits = credits - (whole - leave_one_out(whole[None])[0])[rollout.rows]
        return critic_free_targets(rollout, kl, config.kl, beta, credits, config.whiten)

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return score_function_loss(log_probs, advantages)

    def _value_loss(self, values: Tensor, targets: Targets, chosen: Tensor) -> Tensor:
        if targets.returns is None:
            return super()._value_loss(values, targets, chosen)
        return 0.5 * (values - targets.returns[chosen]).square()
