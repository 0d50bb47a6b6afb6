"""RLOO on a causal LM: several completions per prompt, each compared with the mean return of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from textgym.checks import Floats, Ints
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.config import KL, OnPolicyConfig, at_least_one, only_with, positive, require
from textgym_agents.lm.critic_free import Resampled, action_returns, critic_free_targets, leave_one_out
from textgym_agents.lm.maths import Targets, clipped_policy_loss, scores
from textgym_agents.lm.metrics import varied
from textgym_agents.lm.rollout import Rollout
from textgym_agents.protocol import Metrics


@dataclass(frozen=True)
class GroupConfig(OnPolicyConfig):
    """Settings of agents that compare a prompt's completions with each other. Raises: as `LMConfig` does."""

    group: int = 4
    """Completions per prompt; batch must be a multiple of it."""
    kl: KL = "k1"
    """k1, exact: as for other agents; the compared returns include the KL. k1 adds no noise to them near the optimum,
    where reward and log-ratio cancel. k3: in the loss only; its gradient is that of the opposite KL, KL(ref || pi) in
    each state, not that of J. k3-ratio: in the loss only; its gradient is that of KL(pi || ref) in each state
    (DeepSeek-V3.2, eq. 7)."""
    equal_groups: Literal["keep", "drop", "resample"] = "keep"
    """Treatment of groups whose rewards are all equal. keep: train on them. drop: exclude them from the loss, its KL
    and its averages. resample: the same, and play further batches until there are as many other groups as in one batch
    (DAPO's dynamic sampling, arXiv:2503.14476, section 3.2)."""
    most_rounds: int = 10
    """Maximum number of batches per iteration, with equal_groups=resample. All of them count as episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self.group, self.batch)
        check_sequence_kl(self.kl)
        at_least_one(self, "most_rounds")
        only_with(self, "most_rounds", self.equal_groups == "resample", "equal_groups='resample'")


class GroupAgent(OnPolicyAgent):
    """An on-policy agent that compares a prompt's completions with each other. Args: see `LMAgent`."""

    config: GroupConfig

    def __init__(self, task: Task, config: GroupConfig, model: nn.Module | None = None) -> None:
        super().__init__(task, config, model)
        self.group = config.group
        if config.equal_groups == "resample":
            self._collect = Resampled(self._collect, task.gamma, config.most_rounds)

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        metrics = super()._iterate(env)
        return metrics | ({"val/rounds": float(self.rounds)} if self.config.equal_groups == "resample" else {})

    def _trained(self, rollout: Rollout, targets: Targets) -> Ints:
        rows = super()._trained(rollout, targets)
        if self.config.equal_groups == "keep":
            return rows
        chosen = self._unequal(rollout)[:, None] * self.group + np.arange(self.group)  # (M, group)
        return chosen[np.isin(chosen, rows)]

    def _unequal(self, rollout: Rollout) -> Ints:
        """Return the groups (M,) whose rewards differ, in the order of play, as many as one batch has at most."""
        differs = varied(scores(rollout, self.task.gamma), self.group)
        # Each rank's rounds lie together; what is trained on must not depend on how many ranks there are.
        played = np.arange(len(differs)).reshape(self.devices.world, rollout.rounds, -1).swapaxes(0, 1)
        return played[differs[played]][: len(differs) // rollout.rounds]


@dataclass(frozen=True)
class RLOOConfig(GroupConfig):
    """Settings of RLOO. Raises: as `LMConfig` does."""

    clip: float = 0.2
    """Clip range of the probability ratio. The ratio is 1 in the first step of an update, which is a REINFORCE step."""
    whiten: bool = True
    """Divide advantages and beta by the standard deviation of the batch's advantages; no mean is subtracted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "clip")


class RLOO(GroupAgent):
    """An LM policy trained by REINFORCE leave-one-out. Args: see `LMAgent`.

    A completion is one action: all its tokens are credited with the return of the whole sequence, including the KL.

    Raises: as `A2C` does.
    Source: Ahmadian et al. (2024), arXiv:2402.14740, section 3.2; Kool et al. (2019), Buy 4 REINFORCE samples, get a
        baseline for free.
    """

    name = "rloo"
    config_type = RLOOConfig
    config: RLOOConfig
    aggregation = "constant"

    def __init__(self, task: Task, config: RLOOConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or RLOOConfig()
        super().__init__(task, config, model)
        self.clip = config.clip

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta = self.config, self.controller.beta
        credits = action_returns(rollout, kl, config.kl, beta, self.task.gamma)
        returns = credits[rollout.first_states].reshape(-1, self.group)  # (B / group, group)
        advantages = leave_one_out(returns).ravel()[rollout.rows]
        return critic_free_targets(rollout, kl, config.kl, beta, advantages, config.whiten)

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return clipped_policy_loss(log_probs - old_log_probs, advantages, self.clip)


def check_group(group: int, batch: int | None) -> None:
    """Raise ValueError unless there are groups of two or more, and any batch is made of whole ones."""
    require("group", group, group >= 2, "an integer >= 2")
    require("group", group, batch is not None or 256 % group == 0, "a divisor of 256 without a batch")
    require("batch", batch, (batch or 0) % group == 0, f"a multiple of group={group}")


def check_sequence_kl(kl: KL) -> None:
    """Raise ValueError for a KL that one return for the whole sequence cannot be charged with.

    With k2 an action's own log-ratio is differentiated in the loss, so it may not be in the action's return as well.
    """
    require("kl", kl, kl != "k2", "'exact', 'k1', 'k3' or 'k3-ratio' where all tokens share one return")
