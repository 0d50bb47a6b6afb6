"""GRPO on a causal LM: advantages relative to the group of a prompt's completions, with several papers' variants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Floats
from textgym.lm.categorical import chunks
from textgym.task import Task
from textgym_agents.algorithms.rloo import GroupAgent, GroupConfig
from textgym_agents.config import only_with, positive, require
from textgym_agents.lm.critic_free import (
    action_returns,
    centred,
    critic_free_targets,
    over_mean,
    score_function_loss,
    sequence_weights,
    standardised,
)
from textgym_agents.lm.maths import Aggregation, Targets, clipped_policy_loss, on_device
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import MicroBatch, Rollout

_AGGREGATIONS = ("token", "sequence", "constant")
_SURROGATES = ("clip", "cispo", "gspo")


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """Settings of GRPO.

    The defaults are those of Dr. GRPO with the KL of J; the expected gradient is then that of J. docs/algorithms.md
    lists the settings of other papers.

    Raises: as `LMConfig` does.
    """

    group: int = 8
    """Completions per prompt; batch must be a multiple of it."""
    divide_by_mean: bool = False
    """Divide a group's advantages by its mean return, and set them to 0 if that is not positive. With rewards of 0 and
    1, rarely solved prompts then count more (MaxRL, arXiv:2602.02710), and the gradient is not that of J. beta in the
    loss is divided by the mean of the groups' means."""
    divide_by_std: bool = False
    """Divide a group's advantages by its standard deviation, so that prompts with similar returns count as much as
    others; the gradient is then not that of J. beta in the loss is divided by the batch mean of these deviations, so
    that it stays in reward units per nat; in the paper it is in units of the divided advantages."""
    aggregation: Aggregation = "constant"
    """token: mean over the tokens of a mini-batch. sequence: mean over each completion's tokens, then over completions.
    constant: sum over tokens, divided by completions times max_new_tokens. Only constant keeps the gradient of J: with
    sequence, tokens of long completions count less; with token, all tokens in a batch of long completions do. From
    arXiv:2503.14476, section 3.3; arXiv:2402.03300, eq. 3; and arXiv:2503.20783, section 3.2."""
    clip_low: float = 0.2
    """Maximum decrease of the probability ratio below 1."""
    clip_high: float = 0.2
    """Maximum increase of the probability ratio above 1."""
    surrogate: Literal["clip", "cispo", "gspo"] = "clip"
    """Surrogate objective. clip: PPO's, per token. cispo: log pi, weighted by the token's ratio, which is capped at 1 +
    clip_high and not differentiated, so that no token is dropped (arXiv:2506.13585, eq. 4). gspo: PPO's, with the
    geometric mean of a completion's ratios; needs aggregation=sequence (arXiv:2507.18071, eq. 5)."""
    whiten: bool = True
    """Divide advantages and beta by the standard deviation of the batch's advantages; no mean is subtracted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("aggregation", self.aggregation, self.aggregation in _AGGREGATIONS, str(_AGGREGATIONS))
        require("surrogate", self.surrogate, self.surrogate in _SURROGATES, str(_SURROGATES))
        whole = self.surrogate != "gspo" or self.aggregation == "sequence"
        require("aggregation", self.aggregation, whole, "'sequence' with surrogate='gspo'")
        both = self.divide_by_mean and self.divide_by_std
        require("divide_by_mean", self.divide_by_mean, not both, "False with divide_by_std=True")
        positive(self, "clip_low", "clip_high")
        only_with(self, "clip_low", self.surrogate != "cispo", "surrogate='clip' or 'gspo'")


class GRPO(GroupAgent):
    """An LM policy trained by group relative policy optimisation. Args: see `LMAgent`.

    Raises: as `A2C` does.
    Source: Shao et al. (2024), arXiv:2402.03300, eq. 3; Liu et al. (2025), arXiv:2503.20783 (Dr. GRPO); Yu et al.
        (2025), arXiv:2503.14476 (DAPO); Zheng et al. (2025), arXiv:2507.18071 (GSPO); MiniMax (2025), arXiv:2506.13585
        (CISPO); Tajwar et al. (2026), arXiv:2602.02710 (MaxRL).
    """

    name = "grpo"
    config_type = GRPOConfig
    config: GRPOConfig

    def __init__(self, task: Task, config: GRPOConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or GRPOConfig()
        super().__init__(task, config, model)
        self.aggregation = config.aggregation
        self.clip, low, high = config.clip_low, 1 - config.clip_low, 1 + config.clip_high
        # gspo clips whole completions.
        self.clip_range = {"clip": (low, high), "cispo": (0.0, high), "gspo": (0.0, np.inf)}[config.surrogate]

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta = self.config, self.controller.beta
        credits = action_returns(rollout, kl, config.kl, beta, self.task.gamma)
        returns = credits[rollout.first_states].reshape(-1, self.group)  # (B / group, group)
        # A mean that holds the completion itself shrinks the expected gradient by (n - 1) / n; beta goes with it.
        beta *= (self.group - 1) / self.group
        unequal = self._unequal(rollout)
        counted = returns[unequal] if config.equal_groups != "keep" and len(unequal) else returns
        if config.divide_by_std:
            spread = float(counted.std(1, ddof=1).mean())
            beta = beta / spread if spread > 1e-8 else beta
        advantages = standardised(returns) if config.divide_by_std else centred(returns)
        if config.divide_by_mean:
            level = float(np.maximum(counted.mean(1), 0.0).mean())
            advantages, beta = over_mean(returns), beta / level if level > 1e-8 else beta
        advantages = advantages.ravel()[rollout.rows]
        targets = critic_free_targets(rollout, kl, config.kl, beta, advantages, config.whiten)
        if config.aggregation != "sequence":
            return targets
        return replace(targets, weights=on_device(sequence_weights(rollout.lengths), rollout))

    def _add_gradient(
        self, part: MicroBatch, rollout: Rollout, targets: Targets, scored: Tensor, meter: UpdateMeter, total: float
    ) -> None:
        """See `OnPolicyAgent`; the ratio of a whole completion is known before its tokens' losses are taken."""
        clipped = None
        if self.config.surrogate == "gspo":
            advantages, clipped = self._weighted(part, rollout, targets.advantages)
            targets = replace(targets, advantages=advantages)
        super()._add_gradient(part, rollout, targets, scored, meter, total)
        if clipped is not None:
            meter.add_clipped(clipped)

    @torch.no_grad()
    def _weighted(self, part: MicroBatch, rollout: Rollout, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Return the advantages (N,) times the ratio of their completion, 0 where that is clipped; how many are out."""
        config, states = self.config, part.states
        features = self.policy.features(part.input_ids, part.rows, part.columns)  # (m, F)
        taken = torch.cat(
            [
                self.policy.distribution(features[at], rollout.kept_of(states[at]))
                .gather(1, rollout.actions[states[at]][:, None])
                .squeeze(1)
                for at in chunks(features, self.policy.backbone.vocab_size)
            ]
        )  # (m,)
        count = int(part.rows.max()) + 1
        sums = torch.zeros(2, count, device=taken.device).index_add_(
            1, part.rows, torch.stack([taken - rollout.log_probs[states], torch.ones_like(taken)])
        )
        ratio = (sums[0] / sums[1]).exp()[part.rows]  # (m,)
        own = advantages[states]
        kept = torch.where(own > 0, ratio <= 1 + config.clip_high, ratio >= 1 - config.clip_low)
        out = (ratio > 1 + config.clip_high) | (ratio < 1 - config.clip_low)
        return advantages.index_copy(0, states, ratio * own * kept), out.sum()

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        config, log_ratio = self.config, log_probs - old_log_probs
        if config.surrogate == "gspo":
            return score_function_loss(log_probs, advantages)
        if config.surrogate == "cispo":
            weights = log_ratio.detach().exp().clamp(max=1 + config.clip_high)
            return score_function_loss(log_probs, weights * advantages)
        return clipped_policy_loss(log_ratio, advantages, config.clip_low, config.clip_high)
