"""Rejection-sampling fine-tuning of a causal LM: imitate the best of several completions of each prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from textgym.checks import Floats, Ints
from textgym.task import Task, refuse_chance
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.algorithms.rloo import check_group
from textgym_agents.config import KL, OnPolicyConfig, require
from textgym_agents.lm.critic_free import action_returns, critic_free_targets, score_function_loss
from textgym_agents.lm.maths import Targets, scores
from textgym_agents.lm.rollout import Rollout


@dataclass(frozen=True)
class RejectionConfig(OnPolicyConfig):
    """Settings of rejection-sampling fine-tuning. Raises: as `LMConfig` does."""

    group: int = 8
    """Completions per prompt; batch must be a multiple of it."""
    keep: int = 1
    """Completions of each group to imitate: those with the highest R - beta log(pi / ref)."""
    threshold: float | None = None
    """Minimum return of an imitated completion, in reward units and without the KL; None: no minimum."""
    kl: KL = "k1"
    """Must be k1: the log-ratio is charged to the return by which completions are selected."""
    whiten: bool = False
    """Must be False: all imitated completions have the same weight."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self.group, self.batch)
        require("kl", self.kl, self.kl == "k1", "'k1'")
        require("whiten", self.whiten, not self.whiten, "False")
        require("keep", self.keep, 1 <= self.keep < self.group, f"1..{self.group - 1}, less than group")


class Rejection(OnPolicyAgent):
    """An LM policy trained on the best of its own completions, round after round. Args: see `LMAgent`.

    Completions are compared by R - beta log(pi / ref). At the optimum of J this is the same for all completions of a
    prompt, so there is nothing left to select by, whereas selection by R alone continues until one completion is left.

    Raises: as `A2C` does; ValueError for a task with turns in which chance has a say.
    Source: Dong et al. (2023), arXiv:2304.06767, algorithm 1 (RAFT); Gulcehre et al. (2023), arXiv:2308.08998 (ReST).
    """

    name = "rejection"
    config_type = RejectionConfig
    config: RejectionConfig
    aggregation = "constant"

    def __init__(self, task: Task, config: RejectionConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or RejectionConfig()
        refuse_chance(task, "rejection")
        super().__init__(task, config, model)
        self.group = config.group

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta = self.config, self.controller.beta
        credits = action_returns(rollout, kl, config.kl, beta, self.task.gamma)
        returns = credits[rollout.first_states]  # (B,)
        targets = critic_free_targets(rollout, kl, config.kl, beta, np.ones(len(rollout.rows)), False)
        rows = best_rows(returns, config.group, config.keep)
        if config.threshold is not None:  # of what was paid alone: what was learned before is charged more
            rows = rows[scores(rollout, self.task.gamma)[rows] >= config.threshold - 1e-9]
        return replace(targets, rows=rows)

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return score_function_loss(log_probs, advantages)


def best_rows(returns: Floats, group: int, keep: int) -> Ints:
    """Return the rows (n,) to imitate: of each group the `keep` with the highest returns, of equals the earlier ones.

    Args: returns: (B,) of consecutive groups, reward units.
    """
    by_group = returns.reshape(-1, group)
    best = np.argsort(-by_group, axis=1, kind="stable")[:, :keep]
    return np.sort((best + np.arange(len(by_group))[:, None] * group).ravel())
