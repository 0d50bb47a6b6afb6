"""Records the gradient of an LM agent's own loss on the outputs of its policy: one iteration on a copy, cut short."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgym_agents.conformance.hooks import Estimator, Floats, LossGradient
from textgym_agents.lm_agent import LMAgent
from textgym_agents.on_policy import ActorCriticAgent, OnPolicyAgent
from textgym_agents.rejection import Rejection


class _FirstStepDone(Exception):  # noqa: N818  (it is no error)
    """Ends the iteration that is recorded."""


def record_gradient(
    agent: LMAgent, env: Any, seed: int, entropy: float = 0.0, estimator: Estimator | None = None
) -> LossGradient:
    """Return the gradient of the first step of an iteration, from the loss that the agent itself computes.

    A copy of the agent plays and goes back to the outputs of `policy.states`, whatever its `_iterate` makes of them, up
    to `_finish_step`.

    Args:
        agent: is not changed. env: vector environment in DISABLED mode.
        seed: which iteration it is counted as; others play other episodes.
        entropy, estimator: see `LossGradient`.
    Raises: RuntimeError if no loss was differentiated.
    """
    shadow = copy.deepcopy(agent)
    shadow.iteration += seed
    states = shadow.policy.states
    outputs: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def watched(
        input_ids: Tensor, rows: Tensor, columns: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits, values = states(input_ids, rows, columns, masks)
        if logits.requires_grad:
            logits.retain_grad()
            values.retain_grad()
            outputs.append((input_ids, rows, columns, logits, values))
        return logits, values

    def stop() -> float:
        raise _FirstStepDone

    # Attributes of this one copy, in place of its methods.
    setattr(shadow.policy, "states", watched)  # noqa: B010
    setattr(shadow, "_finish_step", stop)  # noqa: B010
    with contextlib.suppress(_FirstStepDone):
        shadow._iterate(env)
    used = [parts for parts in outputs if parts[3].grad is not None]
    if not used:
        raise RuntimeError(f"agent {agent.name!r}: its iteration differentiated no output of policy.states")
    width = max(ids.shape[1] for ids, *_ in used)
    offsets = np.cumsum([0, *(len(ids) for ids, *_ in used)])
    return LossGradient(
        input_ids=np.concatenate(
            [np.pad(ids.cpu().numpy(), ((0, 0), (0, width - ids.shape[1]))) for ids, *_ in used]
        ),
        rows=np.concatenate(
            [rows.cpu().numpy() + first for (_, rows, *_), first in zip(used, offsets, strict=False)]
        ),
        columns=np.concatenate([columns.cpu().numpy() for _, _, columns, *_ in used]),
        logits=_gradients([parts[3] for parts in used]),
        beta=float(shadow.controller.beta),
        entropy=entropy,
        values=_gradients([parts[4] for parts in used]) if shadow.critic else None,
        estimator=estimator,
    )


def policy_gradient_hooks(agent: OnPolicyAgent) -> dict[str, Callable[..., Any]]:
    """The hooks "gradient" and "surrogate" of an on-policy agent, where its steps follow the gradient of J."""
    hooks: dict[str, Callable[..., Any]] = {}
    if isinstance(agent, Rejection):
        return hooks
    if agent.config.kl != "k3":  # which has the gradient of the opposite KL
        hooks["gradient"] = lambda env, seed: record_gradient(
            agent, env, seed, agent.config.entropy_coefficient, _estimator(agent)
        )
    if np.isfinite(agent.clip):
        hooks["surrogate"] = lambda log_ratios, advantages: _surrogate(agent, log_ratios, advantages)
    return hooks


def _estimator(agent: OnPolicyAgent) -> Estimator:
    config = agent.config
    kl: Any = "exact" if config.kl == "exact" else "k1"  # with k2 the loss and the return add up to k1
    if isinstance(agent, ActorCriticAgent):
        return Estimator("value", 1, True, kl)
    if agent.group > 1:
        return Estimator("group", agent.group, False, kl)
    return Estimator(getattr(config, "baseline", "none"), 1, getattr(config, "reward_to_go", True), kl)


def _surrogate(agent: OnPolicyAgent, log_ratios: Floats, advantages: Floats) -> Any:
    new, weights = (torch.tensor(array, dtype=torch.float64) for array in (log_ratios, advantages))
    return agent._policy_loss(new, torch.zeros_like(new), weights).numpy()


def _gradients(outputs: list[Tensor]) -> Any:
    """The gradients of these outputs, one after the other; 0 where nothing was differentiated."""
    parts = [torch.zeros_like(output) if output.grad is None else output.grad for output in outputs]
    return torch.cat(parts).double().cpu().numpy()
