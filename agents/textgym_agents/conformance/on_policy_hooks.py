"""The training batch of an on-policy agent: one iteration of its own code on a copy, stopped before it updates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgym_agents.conformance.hooks import TrainingBatch
from textgym_agents.metrics import UpdateMeter
from textgym_agents.on_policy import ActorCriticAgent, OnPolicyAgent
from textgym_agents.protocol import Metrics
from textgym_agents.rollout import Rollout, micro_batches
from textgym_agents.targets import Targets, discounted, penalties


def training_batch(agent: OnPolicyAgent, env: Any) -> TrainingBatch:
    """What `agent` would train on in its next iteration on `env`; the agent is not changed."""
    shadow = copy.deepcopy(agent)
    caught: list[tuple[Rollout, Targets, Tensor]] = []

    def catch(rollout: Rollout, targets: Targets, reference: Tensor) -> Metrics:
        caught.append((rollout, targets, reference))
        return {}

    beta = shadow.controller.beta
    # An attribute of this one copy, in place of the method that would change the parameters.
    setattr(shadow, "_update", catch)  # noqa: B010
    shadow._iterate(env)
    ((rollout, targets, reference),) = caught
    scale = shadow.value_scale or 1.0
    critic = targets.old_values is not None and targets.returns is not None
    factors = torch.ones_like(targets.advantages) if targets.weights is None else targets.weights
    charged = penalties(targets.kl, rollout, agent.config.kl)
    return TrainingBatch(
        input_ids=rollout.input_ids.cpu().numpy(),
        rows=rollout.rows,
        columns=rollout.columns,
        actions=rollout.actions.cpu().numpy(),
        log_probs=rollout.log_probs.double().cpu().numpy(),
        rewards=rollout.rewards,
        penalties=charged,
        token_rewards=discounted(rollout, agent.task.gamma) - beta * charged,
        beta=beta,
        gamma=agent.task.gamma,
        lam=agent.config.lam if isinstance(agent, ActorCriticAgent) else 1.0,
        values=shadow.value_offset + rollout.values.double().cpu().numpy() * scale if critic else None,
        advantages=_difference(targets.returns, targets.old_values) * scale if critic else None,
        weights=(targets.advantages * factors).double().cpu().numpy(),
        logit_gradient=_logit_gradient(shadow, rollout, targets, reference),
    )


def _difference(one: Any, other: Any) -> Any:
    return (one - other).double().cpu().numpy()


class _Recorder:
    """Stands in for a policy and keeps the logits that a loss is made of."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.logits: Tensor

    def states(
        self, input_ids: Tensor, rows: Tensor, columns: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.logits, values = self._policy.states(input_ids, rows, columns, masks)
        self.logits.retain_grad()
        return self.logits, values.detach()


def _logit_gradient(shadow: OnPolicyAgent, rollout: Rollout, targets: Targets, reference: Tensor) -> Any:
    """(N, V) gradient of the summed policy loss, from the loss that the agent itself computes."""
    without_kl = replace(targets, kl_weight=0.0)
    shadow.config = replace(shadow.config, entropy_coefficient=0.0)
    recorder: Any = _Recorder(shadow.policy)
    shadow.policy = recorder
    rows = np.arange(len(rollout.lengths))
    (part,) = micro_batches(rollout, rows, len(rows), by_length=False)
    with torch.enable_grad():
        shadow._loss(part, rollout, without_kl, reference, UpdateMeter()).sum().backward()
    gradient = recorder.logits.grad
    assert gradient is not None
    return gradient.double().cpu().numpy()
