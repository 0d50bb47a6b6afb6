"""Agents on a language model with one planted bug each, that only the update itself shows; and two clean strangers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.reinforce import Reinforce
from textgym_agents.algorithms.rloo import RLOO, RLOOConfig
from textgym_agents.config import KL, LMConfig
from textgym_agents.conformance.hooks import Estimator, record_gradient
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.critic_free import action_returns, critic_free_targets
from textgym_agents.lm.rollout import collect, micro_batches, score_reference

from textgym.lm.categorical import statistics


@dataclass(frozen=True)
class ExactConfig(RLOOConfig):
    kl: KL = "exact"


class BaselineHoldsItself(RLOO):
    """The mean that is subtracted holds the completion itself, and beta of the exact KL does not know."""

    config_type = ExactConfig

    def _targets(self, rollout: Any, kl: Any) -> Any:
        targets = super()._targets(rollout, kl)
        return replace(targets, advantages=targets.advantages * (self.group - 1) / self.group)


class DividesByOwnLength(RLOO):
    """The loss of a completion is its mean over tokens."""

    def _targets(self, rollout: Any, kl: Any) -> Any:
        weights = torch.tensor(np.repeat(1 / rollout.lengths, rollout.lengths), dtype=torch.float32)
        return replace(super()._targets(rollout, kl), weights=weights)


class HiddenEntropy(Reinforce):
    """An entropy bonus that no setting holds."""

    def _loss(self, features: Any, chosen: Any, rollout: Any, *rest: Any) -> Any:
        logits, _ = self.policy.heads(features)
        entropy = statistics(logits, rollout.actions[chosen])[2]
        return super()._loss(features, chosen, rollout, *rest) - 0.1 * entropy


class MaskOnlyWhenSampling(RLOO):
    """Scores its actions as if the grammar allowed everything."""

    def _loss(self, features: Any, chosen: Any, rollout: Any, *rest: Any) -> Any:
        return super()._loss(features, chosen, replace(rollout, masks=None), *rest)


class IgnoresGamma(RLOO):
    """Takes every reward at its face value."""

    def _targets(self, rollout: Any, kl: Any) -> Any:
        gamma = self.task.gamma
        # Whoever discounts it gets back what was paid.
        paid = rollout.rewards / gamma**rollout.steps
        return super()._targets(replace(rollout, rewards=paid), kl)


class ClipTakesTheMaximum(LMPPO):
    """The larger of the two surrogates, which promises more than there is."""

    def _policy_loss(self, log_probs: Any, old_log_probs: Any, advantages: Any) -> Any:
        ratio = (log_probs - old_log_probs).exp()
        kept = ratio.clamp(1 - self.clip, 1 + self.clip)
        return -torch.maximum(ratio * advantages, kept * advantages)


class MeanOverPadding(RLOO):
    """Every micro-batch is a mean over its rectangle, padding included."""

    def _step(self, rollout: Any, targets: Any, reference: Any, rows: Any, meter: Any) -> None:
        meter.start(int(rollout.lengths[rows].sum()))
        self.optimizer.zero_grad(set_to_none=True)
        parts = micro_batches(rollout, rows, self.config.micro_batch)
        for part in parts:
            longest = np.bincount(part.rows.numpy()).max()
            count = int(part.rows.max()) + 1
            total = float(count * longest * len(parts))
            self._add_gradient(part, rollout, targets, reference, meter, total)
        meter.finish(self._finish_step())


class ThrowsHalfAway(RLOO):
    """Trains on every second group."""

    def _targets(self, rollout: Any, kl: Any) -> Any:
        rows = np.arange(len(rollout.lengths))
        return replace(super()._targets(rollout, kl), rows=rows[rows // self.group % 2 == 0])


class HidesHalf(RLOO):
    """Trains on every second group, and lets the others pass through the loss with the weight 0."""

    def _targets(self, rollout: Any, kl: Any) -> Any:
        kept = (np.arange(len(rollout.lengths)) // self.group % 2 == 0)[rollout.rows]
        return replace(super()._targets(rollout, kl), weights=2.0 * torch.tensor(kept).float())


class MixesPrompts(RLOO):
    """Compares completions with those of other prompts."""

    def _targets(self, rollout: Any, kl: Any) -> Any:
        config, beta = self.config, self.controller.beta
        credits = action_returns(rollout, kl, config.kl, beta, self.task.gamma)[rollout.first_states]
        # Row i of a group is now of one prompt, its neighbours of others.
        groups = credits.reshape(self.group, -1).T
        others = (groups.sum(1, keepdims=True) - groups) / (self.group - 1)
        advantages = (groups - others).T.ravel()[rollout.rows]
        return critic_free_targets(rollout, kl, config.kl, beta, advantages, config.whiten)


UPDATE_MUTANTS: dict[str, tuple[type, set[str]]] = {
    "RLOO baseline holds itself": (BaselineHoldsItself, {"gradient of J"}),
    "divides by own length": (DividesByOwnLength, {"gradient of J"}),
    "hidden entropy": (HiddenEntropy, {"gradient of J"}),
    "mask only when sampling": (MaskOnlyWhenSampling, {"gradient under a grammar", "ratio under a grammar"}),
    "ignores gamma": (IgnoresGamma, {"gradient with a discount"}),
    "clip takes the maximum": (ClipTakesTheMaximum, {"clipping"}),
    "mean over padding": (MeanOverPadding, {"gradient of J"}),
    "throws half away": (ThrowsHalfAway, {"states used"}),
    "hides half": (HidesHalf, {"states used", "variance"}),
    "mixes prompts": (MixesPrompts, {"variance"}),
}

HOOKLESS_BUGS = {
    "halves the KL in the reward": {"gradient of J"},
    "V off by one": {"value alignment", "gradient of J"},
    "whitens with padding": {"whitening"},
    "pads in the value loss": {"states used"},
}


@dataclass(frozen=True)
class HandWrittenConfig(LMConfig):
    """Settings."""

    batch: int = 128
    """Episodes."""
    bug: str = ""
    """One of HOOKLESS_BUGS; empty for none."""
    hooks: bool = True
    """Whether its update can be looked into."""


class HandWritten(LMAgent):
    """REINFORCE with V as baseline, written from the paper: the reward to go less beta times the log-ratios."""

    name = "hand-written"
    config_type = HandWrittenConfig
    config: HandWrittenConfig
    critic = True

    def __init__(self, task: Any, config: HandWrittenConfig | None = None, model: Any = None) -> None:
        super().__init__(task, config or HandWrittenConfig(), model)

    def conformance_hooks(self) -> dict[str, Any]:
        estimator = Estimator("value", 1, True, "k1")
        record = {"gradient": lambda env, seed: record_gradient(self, env, seed, estimator=estimator)}
        return record if self.config.hooks else {}

    def _iterate(self, env: Any) -> dict[str, float]:
        bug, count = self.config.bug, env.num_envs
        batch = collect(env, self.policy, self._seed(0), self.task.vocabulary.stop_ids)
        kl = (batch.log_probs - score_reference(self.reference, batch, 64, False)).double().numpy()
        charged = 0.5 * kl if bug == "halves the KL in the reward" else kl
        shape = (count, int(batch.lengths.max()))
        rewards, values = np.zeros(shape), np.zeros(shape)
        rewards[batch.rows, batch.steps] = batch.rewards * self.task.gamma**batch.steps - self.controller.beta * charged
        values[batch.rows, batch.steps] = batch.values.numpy()
        to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
        if bug == "V off by one":
            values = np.append(values[:, 1:], np.zeros((count, 1)), axis=1)
        advantages = to_go - values
        if bug == "whitens with padding":
            advantages = (advantages - advantages.mean()) / advantages.std()
        rows, columns, steps = (torch.tensor(array) for array in (batch.rows, batch.columns, batch.steps))
        if bug == "pads in the value loss":
            starts = (columns - steps)[torch.tensor(batch.first_states)]
            rows = torch.arange(count).repeat_interleave(shape[1])
            steps = torch.arange(shape[1]).repeat(count)
            columns = starts[rows] + steps
        logits, own = self.policy.states(batch.input_ids, rows, columns, self._masks(batch, rows))
        played = steps < torch.tensor(batch.lengths)[rows]
        logs = logits[played].log_softmax(-1).gather(1, batch.actions[:, None]).squeeze(1)
        loss = -(logs * logs.new_tensor(advantages[batch.rows, batch.steps])).sum()
        loss = loss + 0.5 * (own - own.new_tensor(to_go[rows, steps])).square().sum()
        self.optimizer.zero_grad()
        (loss / count).backward()
        self._finish_step()
        scores = np.bincount(batch.rows, batch.rewards * self.task.gamma**batch.steps)
        return {"objective/scores": scores.mean(), "objective/kl": kl.sum() / count}

    def _masks(self, batch: Any, rows: Any) -> Any:
        return batch.masks_of(slice(None)) if len(rows) == len(batch.rows) else None
