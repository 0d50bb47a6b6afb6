"""VinePPO on a causal LM: PPO whose values are mean returns of completions from the same states; no critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from textgym.checks import Floats
from textgym.solver import PrefixTree, prefix_tree
from textgym.state import TokenState
from textgym.task import Task, refuse_seeds
from textgym.vector import TokenVectorEnv
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.algorithms.rloo import check_sequence_kl
from textgym_agents.config import OnPolicyConfig, at_least_one, only_with, positive, require, share
from textgym_agents.exact.objective import torch_values, values_of
from textgym_agents.lm.critic_free import Continuation, critic_free_targets, segment_advantages, segment_states
from textgym_agents.lm.maths import IN_LOSS_ALONE, Targets, clipped_policy_loss, discounted
from textgym_agents.lm.rollout import Rollout
from textgym_agents.protocol import Metrics
from textgym_agents.training.ranks import refuse_ranks


@dataclass(frozen=True)
class VinePPOConfig(OnPolicyConfig):
    """Settings of VinePPO. Raises: as `LMConfig` does."""

    batch: int = 64
    """Episodes per iteration to train on (sub-environments)."""
    values: Literal["rollouts", "exact"] = "rollouts"
    """Source of V(s). rollouts: the mean return of completions that the policy writes from s. exact: V of the policy,
    by enumeration, for tasks that can be solved: the best that a critic can be."""
    rollouts: int = 2
    """Completions from each state to average for its value. Each counts as an episode."""
    stride: int = 4
    """Tokens between states with a value; the tokens in between share an advantage."""
    lam: float = 0.0
    """GAE's lambda, per segment of `stride` tokens. It causes no bias, since the values are right on average."""
    clip: float = 0.2
    """Clip range of the probability ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rollouts", "stride")
        share(self, "lam")
        positive(self, "clip")
        check_sequence_kl(self.kl)
        only_with(self, "rollouts", self.values == "rollouts", "values='rollouts'")


class VinePPO(OnPolicyAgent):
    """An LM policy trained by PPO with values estimated from completions of its states. Args: see `LMAgent`.

    An episode is a completion that is played, whether it is trained on or gives a state its value: an iteration plays
    one per sub-environment and `rollouts` per state. The latter are written below all wrappers, and metrics count them.
    Raises: as `A2C` does; ValueError for an environment that hides a seed, a reward that compares completions, or
        several processes.
    Source: Kazemnejad et al. (2024), arXiv:2410.01679, section 4.
    """

    name = "vine-ppo"
    config_type = VinePPOConfig
    config: VinePPOConfig
    aggregation = "constant"

    def __init__(self, task: Task, config: VinePPOConfig | None = None, model: nn.Module | None = None) -> None:
        refuse_ranks("agent 'vine-ppo'")
        refuse_seeds(task)
        require("reward", task.scorer.name, task.scorer.pay != "together", "one that scores each completion by itself")
        super().__init__(task, config or VinePPOConfig(), model)
        self.clip, self.extra_tokens = self.config.clip, 0
        self._tree: PrefixTree | None = None

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        self._env, before = env.unwrapped, self.episodes
        metrics = super()._iterate(env)
        return metrics | {"vine/rollouts": float(self.episodes - before), "vine/tokens": float(self.extra_tokens)}

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta = self.config, self.controller.beta
        charged = 0.0 if config.kl in IN_LOSS_ALONE else beta
        values = self._values(segment_states(self._env, rollout, config.stride), charged)
        rewards = discounted(rollout, self.task.gamma) - charged * kl
        advantages = segment_advantages(rollout, rewards, values, config.stride, config.lam)
        return critic_free_targets(rollout, kl, config.kl, beta, advantages, config.whiten)

    def _values(self, states: list[TokenState], beta: float) -> Floats:
        """Return V of n running states (n,), the KL of the state itself included, reward units at time 0."""
        task, before = self._env.task, self._env.task.scorer.tokens
        if self.config.values == "exact":
            if self._tree is None or (self._tree.task, self._tree.split) != (task, self._env.split):
                self._tree = prefix_tree(self._env)
            return values_of(torch_values(self._tree, self.policy, self.reference, beta=beta)[1], states)
        writer = Continuation(task, self._env.split, self.policy, self.reference, self.config.kl, beta)
        returns = writer.returns(states * self.config.rollouts, self._seed(2))
        self.episodes, self.extra_tokens = self.episodes + len(returns), task.scorer.tokens - before
        return np.asarray(returns.reshape(-1, len(states)).mean(0))

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return clipped_policy_loss(log_probs - old_log_probs, advantages, self.clip)
