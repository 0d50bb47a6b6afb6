"""Policy gradients on a causal LM: play a batch, charge the KL, compute advantages, step on the loss, report."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.play import check_env
from textgym_agents.config import ActorCriticConfig, OnPolicyConfig
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.losses import Aggregation, clipped_value_loss, kl_estimate, loss_total
from textgym_agents.lm.policy import statistics
from textgym_agents.lm.rollout import MicroBatch, Rollout, collect, micro_batches, score_reference
from textgym_agents.lm.targets import Targets, make_targets, scores, token_kl
from textgym_agents.protocol import Callback, Metrics


def rollout_metrics(rollout: Any, targets: Any, beta: float, gamma: float) -> Metrics:
    """Batch means of a rollout. KL and entropy are per-sequence sums (nats), lengths in tokens.

    Scores are returns, sums of gamma^t r_t: the mean of J is "objective/rlhf_reward".
    """
    count = len(rollout.lengths)
    kl = float(targets.kl.sum()) / count
    returns = scores(rollout, gamma)
    score = float(returns.mean())
    surprise = float(-rollout.log_probs.cpu().double().sum()) / count
    return {
        "objective/kl": kl,
        "objective/entropy": surprise,
        "objective/scores": score,
        "objective/scores_std": float(returns.std()),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": score - beta * kl,
        "objective/beta": beta,
        "val/num_eos_tokens": float(rollout.stopped.sum()),
        "completion_length": float(np.mean(rollout.lengths)),
        "tokens": float(len(rollout.rows)),
    }


class UpdateMeter:
    """Token-weighted means over the optimiser steps of one update."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._sums: Tensor | None = None
        self._count = 0
        self.last_kl = 0.0

    def start(self, tokens: int) -> None:
        """Begins an optimiser step over so many tokens."""
        self._sums, self._count = None, tokens

    def add(
        self, log_ratio: Tensor, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, clip: float
    ) -> None:
        """Adds one micro-batch; every tensor is (n,)."""
        with torch.no_grad():
            ratio = log_ratio.exp()
            sums = torch.stack(
                [
                    0.5 * log_ratio.square().sum(),
                    ((ratio - 1).abs() > clip).float().sum(),
                    ratio.sum(),
                    ratio.square().sum(),
                    policy_loss.sum(),
                    value_loss.sum(),
                    entropy.sum(),
                ]
            )
        self._sums = sums if self._sums is None else self._sums + sums

    def finish(self, grad_norm: float) -> None:
        """Ends an optimiser step."""
        assert self._sums is not None
        kl, clipped, ratio, square, policy, value, entropy = (self._sums / self._count).tolist()
        self.last_kl = kl
        self._rows.append(
            {
                "policy/approxkl_avg": kl,
                "policy/clipfrac_avg": clipped,
                "val/ratio": ratio,
                "val/ratio_var": max(square - ratio * ratio, 0.0),
                "loss/policy_avg": policy,
                "loss/value_avg": value,
                "policy/entropy_avg": entropy,
                "policy/grad_norm": grad_norm,
            }
        )

    def means(self) -> Metrics:
        """Means over the steps, and the first step's ratio and clip fraction, which must be 1 and 0.

        Without any step there is nothing but their number, 0.
        """
        if not self._rows:
            return {"updates": 0.0}
        result = {key: math.fsum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        result["val/first_ratio"] = self._rows[0]["val/ratio"]
        result["val/first_clipfrac"] = self._rows[0]["policy/clipfrac_avg"]
        result["updates"] = float(len(self._rows))
        return result


class OnPolicyAgent(LMAgent):
    """The iteration that on-policy algorithms share; each supplies its targets and its policy loss."""

    config: OnPolicyConfig
    config_type: ClassVar[type[OnPolicyConfig]]
    group: int = 1
    """Episodes of a batch that answer the same prompt."""
    clip: float = math.inf
    """Range of the probability ratio outside which an action counts as clipped."""
    value_coefficient: float = 0.0
    """Weight of the value loss."""
    aggregation: Aggregation = "token"
    """What the losses of a mini-batch are summed over: see `textgym_agents.lm.losses.Aggregation`."""

    @abstractmethod
    def _targets(self, rollout: Rollout, kl: NDArray[np.float64]) -> Targets:
        """What the losses aim at, from a rollout and the penalised KL (N,) of its states, nats."""

    @abstractmethod
    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """The loss of every action (n,), from its log-probability now and when it was sampled."""

    def learn(self, env: Any, episodes: int, callback: Callback | None = None) -> None:
        """See `LMAgent.learn`. Raises: also ValueError if groups do not fit into the batch."""
        check_env(env)
        if env.num_envs % self.group:
            raise ValueError(
                f"env: {env.num_envs} sub-environments; allowed are multiples of group={self.group}"
            )
        super().learn(env, episodes, callback)

    def _iterate(self, env: Any) -> Metrics:
        config = self.config
        exact = config.kl == "exact"
        stop_ids = self.task.vocabulary.stop_ids
        reference = self.reference if self.critic else None
        rollout = collect(env, self.policy, self._seed(0), stop_ids, exact, self.group, reference)
        base = score_reference(self.reference, rollout, config.micro_batch, exact)
        targets = self._targets(rollout, token_kl(rollout, base, config.kl))
        metrics = rollout_metrics(rollout, targets, self.controller.beta, self.task.gamma)
        metrics |= self._update(rollout, targets, base)
        self.controller.update(metrics["objective/kl"], len(rollout.lengths))
        return metrics

    def _update(self, rollout: Rollout, targets: Targets, reference: Tensor) -> Metrics:
        config = self.config
        generator = np.random.default_rng([self._seed(1)])
        meter = UpdateMeter()
        trained = np.arange(len(rollout.lengths)) if targets.rows is None else targets.rows
        if not len(trained):
            return meter.means()
        for _ in range(config.epochs):
            shuffled = generator.permutation(trained)
            for rows in np.array_split(shuffled, min(config.minibatches, len(trained))):
                self._step(rollout, targets, reference, rows, meter)
                if config.stop_update_kl is not None and meter.last_kl > config.stop_update_kl:
                    return meter.means()
        return meter.means()

    def _step(
        self,
        rollout: Rollout,
        targets: Targets,
        reference: Tensor,
        rows: NDArray[np.int64],
        meter: UpdateMeter,
    ) -> None:
        meter.start(int(rollout.lengths[rows].sum()))
        total = loss_total(self.aggregation, rollout.lengths[rows], self.task.max_new_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        for part in micro_batches(rollout, rows, self.config.micro_batch):
            # Sums over what the whole mini-batch counts: the split into parts cannot change the gradient.
            loss = self._loss(part, rollout, targets, reference, meter).sum() / total
            loss.backward()
        meter.finish(self._finish_step())

    def _loss(
        self, part: MicroBatch, rollout: Rollout, targets: Targets, reference: Tensor, meter: UpdateMeter
    ) -> Tensor:
        """The loss of every state of a micro-batch (n,)."""
        config, chosen = self.config, part.states
        masks = None if rollout.masks is None else rollout.masks[chosen]
        logits, values = self.policy.states(part.input_ids, part.rows, part.columns, masks)
        exact = config.kl == "exact"
        taken, divergence, entropy = statistics(
            logits, rollout.actions[chosen], reference[chosen] if exact else None
        )
        old = rollout.log_probs[chosen]
        loss = policy_loss = self._policy_loss(taken, old, targets.advantages[chosen])
        value_loss = self._value_loss(values, targets, chosen)
        if value_loss is None:
            value_loss = torch.zeros_like(policy_loss)
        else:
            loss = loss + self.value_coefficient * value_loss
        if targets.kl_weight:
            kl = divergence if exact else kl_estimate(taken - reference[chosen], config.kl)
            loss = loss + targets.kl_weight * kl
        if config.entropy_coefficient:
            loss = loss - config.entropy_coefficient * entropy
        meter.add(taken - old, policy_loss, value_loss, entropy, self.clip)
        return loss if targets.weights is None else loss * targets.weights[chosen]

    def _value_loss(self, values: Tensor, targets: Targets, chosen: Tensor | slice) -> Tensor | None:
        """The value loss of every state (n,); None without a critic."""
        return None

    def _centre_values(self, rollout: Rollout) -> float:
        """V = offset + scale * head, by mean and spread of the first batch's returns, then kept; gives the scale.

        So learning does not depend on the reward's zero and unit.
        """
        if self.value_scale is None:
            returns = scores(rollout, self.task.gamma)
            mean, spread = float(np.mean(returns)), float(np.std(returns))
            self.value_offset = mean
            self.value_scale = spread if spread > 1e-6 * max(abs(mean), 1e-6) else 1.0
        return self.value_scale


class ActorCriticAgent(OnPolicyAgent):
    """An on-policy agent whose value head predicts returns; its advantages are GAE's."""

    config: ActorCriticConfig
    critic = True

    def __init__(self, task: Any, config: ActorCriticConfig, model: Any = None) -> None:
        super().__init__(task, config, model)
        self.value_coefficient = config.value_coefficient

    def _targets(self, rollout: Rollout, kl: NDArray[np.float64]) -> Targets:
        config = self.config
        scale = self._centre_values(rollout)
        return make_targets(
            rollout,
            kl,
            config.kl,
            self.controller.beta,
            self.task.gamma,
            config.lam,
            config.whiten,
            scale,
            self.value_offset,
        )

    def _value_loss(self, values: Tensor, targets: Targets, chosen: Tensor | slice) -> Tensor | None:
        assert targets.returns is not None
        assert targets.old_values is not None
        old, returns = targets.old_values[chosen], targets.returns[chosen]
        return clipped_value_loss(values, old, returns, self.config.value_clip)
