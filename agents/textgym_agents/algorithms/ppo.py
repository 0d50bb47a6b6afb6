"""PPO on a causal LM with a KL penalty to its frozen start, the third stage of RLHF, from batch to optimiser step.

`LMAgent.learn` calls `_iterate` until the budget is spent; docs/lm_ppo.md walks through it with the papers' equations.
The other policy gradients on an LM derive from `OnPolicyAgent` too, and differ in `_targets` and `_policy_loss`.
B is the episodes of a batch, N the states in which the policy acted, V the tokens; b and n are those of a part of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Floats, Ints
from textgym.lm.categorical import chunks, statistics
from textgym.task import Task, has_language_model
from textgym.vector import TokenVectorEnv
from textgym_agents.config import ActorCriticConfig, LMPPOConfig, OnPolicyConfig
from textgym_agents.lm import maths
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.gathered import gathered
from textgym_agents.lm.http_sampler import sampling
from textgym_agents.lm.maths import Aggregation, Targets
from textgym_agents.lm.metrics import EntropyController, UpdateMeter, rollout_metrics, warning_signs
from textgym_agents.lm.nlpo import follow, log_ratios_within_cut
from textgym_agents.lm.rates import settle
from textgym_agents.lm.rollout import MicroBatch, Rollout, micro_batches, score_reference, token_kl
from textgym_agents.protocol import Metrics


class OnPolicyAgent(LMAgent):
    """The iteration that on-policy algorithms share; each supplies its targets and its policy loss."""

    config: OnPolicyConfig
    config_type: ClassVar[type[OnPolicyConfig]]
    entropy: EntropyController
    clip: float = math.inf  # how far the probability ratio may be from 1
    clip_range: tuple[float, float] | None = None  # outside of it a ratio counts as clipped; None: by `clip`
    value_coefficient: float = 0.0  # of the value loss
    aggregation: Aggregation = "token"  # what the losses of a mini-batch are averaged over

    def __init__(self, task: Task, config: OnPolicyConfig, model: nn.Module | None = None) -> None:
        super().__init__(task, config, model)
        self._collect = sampling(task, config, self.policy)
        self.entropy = EntropyController(config.entropy_coefficient, config.entropy_target, config.entropy_step)
        self.settles = config.learning_rate is None and (config.model is not None or has_language_model(task))
        self.first_rate = self.learning_rate = self.learning_rate / (4 if self.settles else 1)

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        config, exact, gamma = self.config, self.config.kl == "exact", self.task.gamma
        end_ids, behind = self.task.end_ids, self.reference if self.critic else None
        rollout = self._collect(env, self.policy, self._seed(0), end_ids, exact, self.group, behind, self.devices)
        scored = score_reference(self.reference, rollout, config.micro_batch, exact)  # (N, F) or (N,)
        kl = token_kl(rollout, self.policy, self.reference, scored, config.kl)  # (N,)
        if self.settles:
            moved = lambda: log_ratios_within_cut(rollout, self.policy, self.reference, scored, kl, config)  # noqa: E731
            settle(self, config, None if self.objective_tokens == 0 else gamma, rollout, moved)
            self._set_learning_rate()
        rollout, scored, kl = gathered(self.devices, rollout, scored, kl)
        targets, self.rounds = self._targets(rollout, kl), rollout.rounds
        metrics = rollout_metrics(rollout, kl, self.controller.beta, gamma)
        metrics |= self.entropy.follow(metrics)
        metrics |= self._update(rollout, targets, scored) | warning_signs(rollout, targets, self.task, self.group)
        self.controller.update(metrics["objective/kl"], len(rollout.lengths))
        follow(self.policy, self.iteration + 1, config.mask_every)
        return metrics

    @abstractmethod
    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        """Return what the losses aim at, from a rollout and the penalised KL (N,) of its states, nats."""

    def _update(self, rollout: Rollout, targets: Targets, scored: Tensor) -> Metrics:
        """Step on every mini-batch of every epoch, until the policy is too far from the one that sampled."""
        config, meter = self.config, UpdateMeter(self.devices, self.config.max_grad_norm)
        trained, generator = self._trained(rollout, targets), np.random.default_rng([self._seed(1)])
        for _ in range(config.epochs if len(trained) else 0):
            for rows in np.array_split(generator.permutation(trained), min(config.minibatches, len(trained))):
                self._step(rollout, targets, scored, rows, meter)
                if config.stop_update_kl is not None and meter.last_kl > config.stop_update_kl:
                    return meter.means()
        return meter.means()

    def _trained(self, rollout: Rollout, targets: Targets) -> Ints:
        """Return the episodes (b,) that are trained on."""
        rows = np.arange(len(rollout.lengths)) if targets.rows is None else targets.rows
        ended = rollout.stopped | rollout.truncated | (not self.task.end_ids)  # (B,)
        return rows if self.config.overlong == "keep" else rows[ended[rows]]

    def _step(self, rollout: Rollout, targets: Targets, scored: Tensor, rows: Ints, meter: UpdateMeter) -> None:
        """Take one optimiser step on the mini-batch of these rows (b,)."""
        lengths = rollout.lengths[rows]
        meter.start(int(lengths.sum()))
        total = maths.loss_total(self.aggregation, lengths, self.task.max_new_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        for part in micro_batches(rollout, self.devices.own(rows, len(rollout.lengths)), self.config.micro_batch):
            self._add_gradient(part, rollout, targets, scored, meter, total)
        meter.finish(self._finish_step())

    def _add_gradient(
        self, part: MicroBatch, rollout: Rollout, targets: Targets, scored: Tensor, meter: UpdateMeter, total: float
    ) -> None:
        """Add the gradient of the loss of a micro-batch's m states, over `total`.

        The heads run on a few states at a time and go backward at once: logits of all of them (m, V) never exist.
        """
        features = self.policy.features(part.input_ids, part.rows, part.columns)  # (m, F)
        gradients = []
        for at in chunks(features, self.policy.backbone.vocab_size):
            leaf = features[at].detach().requires_grad_()  # (n, F)
            # Sums over what the whole mini-batch counts: the split into parts cannot change the gradient.
            loss = self._loss(leaf, part.states[at], rollout, targets, scored, meter).sum() / total
            loss.backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        if features.requires_grad:  # not where the heads alone are trained
            features.backward(torch.cat(gradients))

    def _loss(
        self, features: Tensor, chosen: Tensor, rollout: Rollout, targets: Targets, scored: Tensor, meter: UpdateMeter
    ) -> Tensor:
        """Return the loss of some states (n,), from the policy's features of them (n, F)."""
        kind, exact = self.config.kl, self.config.kl == "exact"
        logits, values = self.policy.heads(features, rollout.kept_of(chosen))  # (n, V), (n,)
        base, old = scored[chosen], rollout.log_probs[chosen]  # (n, F) or (n,), (n,)
        if exact:
            base = self.reference.distribution(base, rollout.masks_of(chosen))  # (n, V)
        taken, kl, entropy = statistics(logits, rollout.actions[chosen], base if exact else None)  # (n,) each
        weights = 1.0 if rollout.importance is None else rollout.importance[chosen]  # (n,)
        rho = taken - old  # (n,) logs of the ratios
        policy_loss = weights * self._policy_loss(taken, old, targets.advantages[chosen])  # (n,)
        value_loss = self._value_loss(values, targets, chosen)  # (n,)
        loss = policy_loss + self.value_coefficient * value_loss
        if targets.kl_weight:
            loss = loss + targets.kl_weight * (kl if exact else weights * maths.kl_estimate(taken - base, kind, rho))
        if self.entropy.weight:
            loss = loss - self.entropy.weight * entropy
        meter.add(rho, policy_loss, value_loss, entropy, self.clip_range or (1 - self.clip, 1 + self.clip))
        return loss if targets.weights is None else loss * targets.weights[chosen]

    @abstractmethod
    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        """Return the loss of every action (n,), from its log-probability now and when it was sampled."""

    def _value_loss(self, values: Tensor, targets: Targets, chosen: Tensor) -> Tensor:
        """Return the value loss of every state (n,); 0 without a critic."""
        return torch.zeros_like(values)


class ActorCriticAgent(OnPolicyAgent):
    """An on-policy agent whose value head predicts returns; its advantages are GAE's."""

    config: ActorCriticConfig
    critic = True

    def __init__(self, task: Task, config: ActorCriticConfig, model: nn.Module | None = None) -> None:
        super().__init__(task, config, model)
        self.value_coefficient = config.value_coefficient
        bias, weight = (self.optimizer.param_groups[0]["params"].pop() for _ in range(2))  # the head's come last
        self.optimizer.add_param_group({"params": [weight, bias], "multiple": config.value_rate})

    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        config, beta, gamma = self.config, self.controller.beta, self.task.gamma
        scale, offset = self._centre_values(maths.scores(rollout, gamma))
        return maths.make_targets(rollout, kl, config.kl, beta, gamma, config.lam, config.whiten, scale, offset)

    def _value_loss(self, values: Tensor, targets: Targets, chosen: Tensor) -> Tensor:
        old, returns = targets.old_values, targets.returns
        assert old is not None and returns is not None  # noqa: PT018
        return maths.clipped_value_loss(values, old[chosen], returns[chosen], self.config.value_clip)


class LMPPO(ActorCriticAgent):
    """An LM policy with value head, trained by PPO. Args: see `LMAgent`.
    Raises: as `A2C` does.
    Source: Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, 1909.08593; Ouyang et al. 2022, 2203.02155.
    """

    name = "lm-ppo"
    config_type = LMPPOConfig

    def __init__(self, task: Task, config: LMPPOConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or LMPPOConfig()
        super().__init__(task, config, model)
        self.clip = config.clip

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return maths.clipped_policy_loss(log_probs - old_log_probs, advantages, self.clip)
