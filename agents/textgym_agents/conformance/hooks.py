"""The hooks that an agent may offer beside the five methods, to show its training.

An agent offers hooks by a method `conformance_hooks() -> Mapping[str, Callable]` with any of

- `"values"`: `values(observation) -> (B,)`, V(s) in reward units at time 0: the sum to come of gamma^t r_t, less beta
  times the KL that returns are charged, undiscounted; where `critic` is True and `plans`
  False, the agent's method `values` is asked;
- `"batch"`: `batch(env) -> TrainingBatch`, what the agent would train on in its next iteration: it plays one episode in
  every sub-environment. The agent itself need not be changed by it;
- `"gradient"`: `gradient(env, seed) -> LossGradient`, of the first optimiser step of an iteration. Offering it says
  that the step follows the gradient of J. Another seed plays other episodes, and the agent is not changed. For an agent
  derived from `LMAgent` it is one line: `lambda env, seed: record_gradient(self, env, seed)`;
- `"surrogate"`: `surrogate(log_ratios (n,), advantages (n,)) -> (n,)`, the policy loss of actions whose probability has
  changed by a factor since they were sampled.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from textgym import TokenVectorEnv
from textgym.checks import Bools, Floats, Ints
from textgym_agents.algorithms.ppo import ActorCriticAgent, OnPolicyAgent
from textgym_agents.algorithms.rejection import Rejection
from textgym_agents.conformance.under_test import NotAsked
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.maths import IN_LOSS_ALONE, Targets, discounted, penalties
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import Rollout, micro_batches
from textgym_agents.protocol import Agent, Metrics, Observation

Hooks = Mapping[str, Callable[..., Any]]
"""The functions that an agent offers, by the names above."""


@dataclass(frozen=True)
class TrainingBatch:
    """B finished episodes and the N states in which the agent acted, row by row and in order.

    Attributes:
        input_ids: (B, L) int64, right-padded prompts and completions.
        rows, columns: (N,) int64; state n is input_ids[rows[n], : columns[n] + 1].
        actions: (N,) int64.
        log_probs: (N,) those of the actions under the sampling policy, nats.
        rewards: (N,) what the environment paid, r_t, reward units.
        penalties: (N,) the KL charged to the return of each action, nats, before the factor beta.
        token_rewards: (N,) what returns are sums of, reward units at time 0: gamma^t r_t - beta times the penalty.
        beta, gamma, lam: of the iteration, lam that of GAE.
        values: (N,) V(s) of the sampling policy, reward units at time 0; None without a critic.
        advantages: (N,) GAE before any standardising, reward units at time 0; None without a critic.
        weights: (N,) the advantages as the loss takes them, standardised or not, and with the factor that the loss of
            their row has where rows have different ones; None without them.
        logit_gradient: (N, V) gradient with respect to the logits of the policy loss without its KL and entropy terms,
            summed over states, in the first step; None where the agent cannot say.
    """

    input_ids: Ints
    rows: Ints
    columns: Ints
    actions: Ints
    log_probs: Floats
    rewards: Floats
    penalties: Floats
    token_rewards: Floats
    beta: float
    gamma: float
    lam: float
    values: Floats | None = None
    advantages: Floats | None = None
    weights: Floats | None = None
    logit_gradient: Floats | None = None

    @property
    def last(self) -> Bools:
        """(N,) whether a state is the last one of its row."""
        return np.append(self.rows[1:] != self.rows[:-1], True)

    @property
    def first(self) -> Bools:
        """(N,) whether a state is the first one of its row."""
        return np.append(True, self.rows[1:] != self.rows[:-1])

    def observation(self) -> Observation:
        """Return the observations (N, L) of all states."""
        ids = self.input_ids[self.rows]
        mask = (np.arange(ids.shape[1]) <= self.columns[:, None]).astype(np.int8)
        return {"input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True)
class Estimator:
    """How a policy gradient estimates the advantage of an action, as far as its variance depends on it.

    Attributes:
        baseline: what is subtracted from returns: nothing, V(s), or the mean return of the other completions of the
            group or of all other episodes of the batch.
        group: consecutive episodes that answer the same prompt.
        to_go: an action is credited with what comes after it; False: with the whole episode.
        kl: "k1": every log-ratio is part of the reward. "exact": the loss holds the KL of every state, the reward that
            of the next one.
    """

    baseline: Literal["none", "value", "group", "batch"] = "none"
    group: int = 1
    to_go: bool = True
    kl: Literal["k1", "exact"] = "k1"


@dataclass(frozen=True)
class LossGradient:
    """The gradient of the loss of one optimiser step on a batch of episodes, with respect to the policy's outputs.

    Attributes:
        input_ids: (B, L) int64, right-padded prompts and completions.
        rows, columns: (N,) int64; output n belongs to the state input_ids[rows[n], : columns[n] + 1].
        logits: (N, V) gradient with respect to the logits, the loss's divisor and all of its terms included.
        beta: of the step, reward units per nat.
        entropy: coefficient of an entropy bonus, reward units per nat, as the agent logs it.
        values: (N,) gradient with respect to V(s), in any unit; None without a critic.
        estimator: None: not said, and the variance is not judged.
        extra_tokens: of completions that the agent had scored beside the batch.
    """

    input_ids: Ints
    rows: Ints
    columns: Ints
    logits: Floats
    beta: float
    entropy: float = 0.0
    values: Floats | None = None
    estimator: Estimator | None = None
    extra_tokens: int = 0


def hooks_of(agent: Agent) -> Hooks:
    """Return the hooks that an agent offers; those of on-policy agents on an LM are made here from their parts."""
    own: Hooks = {"values": agent.values} if agent.critic and not agent.plans else {}
    offered = agent.conformance_hooks()
    if offered:
        return {**own, **offered}
    if isinstance(agent, OnPolicyAgent):
        batch = {"batch": lambda env: training_batch(agent, env)}
        return {**own, **batch, **policy_gradient_hooks(agent)}
    return own


def hook(agent: Agent, name: str) -> Callable[..., Any]:
    """Return a hook of an agent. Raises: NotAsked if it does not offer it."""
    offered = hooks_of(agent)
    if name not in offered:
        raise NotAsked(f"the agent offers no hook {name!r}")
    return offered[name]


def training_batch(agent: OnPolicyAgent, env: TokenVectorEnv) -> TrainingBatch:
    """Return what `agent` would train on in its next iteration on `env`; the agent is not changed."""
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
    values = advantages = None
    if targets.old_values is not None and targets.returns is not None:
        values = shadow.value_offset + _array(rollout.values) * scale
        advantages = _array(targets.returns - targets.old_values) * scale
    credits_actions = agent.objective_tokens != 0
    factors = torch.ones_like(targets.advantages) if targets.weights is None else targets.weights
    charged = penalties(targets.kl, rollout, agent.config.kl)
    return TrainingBatch(
        input_ids=rollout.input_ids.cpu().numpy(),
        rows=rollout.rows,
        columns=rollout.columns,
        actions=rollout.actions.cpu().numpy(),
        log_probs=_array(rollout.log_probs),
        rewards=rollout.rewards,
        penalties=charged,
        token_rewards=discounted(rollout, agent.task.gamma) - beta * charged,
        beta=beta,
        gamma=agent.task.gamma,
        lam=agent.config.lam if isinstance(agent, ActorCriticAgent) else 1.0,
        values=values,
        advantages=advantages,
        weights=_array(targets.advantages * factors) if credits_actions else None,
        logit_gradient=_logit_gradient(shadow, rollout, targets, reference) if credits_actions else None,
    )


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().double().cpu().numpy()
    return array


@dataclass(frozen=True)
class _Outputs:
    """What one call of `policy.heads` made of states (n,), and where these are in the ids."""

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    logits: Tensor
    values: Tensor


def _watch_outputs(agent: LMAgent) -> list[_Outputs]:
    """Keep the differentiable outputs of an agent's policy, with their gradients. The agent is a copy that is changed.

    Returns: the list that they are appended to.
    """
    features, heads = agent.policy.features, agent.policy.heads
    last: list[Tensor] = []
    outputs: list[_Outputs] = []

    def watched_features(input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        last[:] = input_ids, rows, columns, features(input_ids, rows, columns)
        return last[3]

    def watched_heads(found: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, values = heads(found, masks)
        if logits.requires_grad:
            logits.retain_grad()
            values.retain_grad()
            at = _place(found, last[3])
            outputs.append(_Outputs(last[0], last[1][at], last[2][at], logits, values))
        return logits, values

    # Attributes of this one copy.
    setattr(agent.policy, "features", watched_features)  # noqa: B010
    setattr(agent.policy, "heads", watched_heads)  # noqa: B010
    return outputs


def _place(part: Tensor, whole: Tensor) -> slice:
    """Return which rows of `whole` a view of some of them is. Raises: RuntimeError if it is none."""
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        raise RuntimeError("policy.heads: allowed are what policy.features returned last, and slices of it")
    start = (part.storage_offset() - whole.storage_offset()) // max(whole.stride(0), 1)
    return slice(start, start + len(part))


def _logit_gradient(shadow: OnPolicyAgent, rollout: Rollout, targets: Targets, reference: Tensor) -> Floats:
    """Return the gradient (N, V) of the summed policy loss, from the loss that the agent itself computes."""
    alone, shadow.entropy.weight = replace(targets, kl_weight=0.0), 0.0
    outputs = _watch_outputs(shadow)
    rows = np.arange(len(rollout.lengths))
    (part,) = micro_batches(rollout, rows, len(rows), by_length=False)
    with torch.enable_grad():
        shadow._add_gradient(part, rollout, alone, reference, UpdateMeter(), 1.0)
    return _gradients([output.logits for output in outputs])


class _FirstStepDone(Exception):  # noqa: N818  (it is no error)
    """Ends the iteration that is recorded."""


def record_gradient(
    agent: LMAgent, env: TokenVectorEnv, seed: int, entropy: float = 0.0, estimator: Estimator | None = None
) -> LossGradient:
    """Return the gradient of the first step of an iteration, from the loss that the agent itself computes.

    A copy of the agent plays and goes back to the outputs of `policy.heads`, whatever its `_iterate` makes of them, up
    to `_finish_step`.

    Args:
        agent: is not changed. env: vector environment in DISABLED mode.
        seed: which iteration it is counted as; others play other episodes.
        entropy, estimator: see `LossGradient`.
    Raises: RuntimeError if no loss was differentiated.
    """
    shadow = copy.deepcopy(agent)
    shadow.iteration += seed
    outputs = _watch_outputs(shadow)

    def stop() -> float:
        raise _FirstStepDone

    setattr(shadow, "_finish_step", stop)  # noqa: B010  (an attribute of this one copy)
    with contextlib.suppress(_FirstStepDone):
        shadow._iterate(env)
    used = [output for output in outputs if output.logits.grad is not None]
    if not used:
        raise RuntimeError(f"agent {agent.name!r}: its iteration differentiated no output of policy.heads")
    width = max(output.input_ids.shape[1] for output in used)
    ids = [torch.nn.functional.pad(o.input_ids, (0, width - o.input_ids.shape[1])) for o in used]
    offsets = np.cumsum([0, *(len(part) for part in ids)]).tolist()
    return LossGradient(
        input_ids=torch.cat(ids).cpu().numpy(),
        rows=torch.cat([o.rows + first for o, first in zip(used, offsets, strict=False)]).cpu().numpy(),
        columns=torch.cat([output.columns for output in used]).cpu().numpy(),
        logits=_gradients([output.logits for output in used]),
        beta=float(shadow.controller.beta),
        entropy=entropy,
        values=_gradients([output.values for output in used]) if shadow.critic else None,
        estimator=estimator,
        extra_tokens=getattr(shadow, "extra_tokens", 0),
    )


def policy_gradient_hooks(agent: OnPolicyAgent) -> Hooks:
    """Return the hooks "gradient" and "surrogate" of an on-policy agent, where its steps follow the gradient of J."""
    hooks: dict[str, Callable[..., Any]] = {}
    if isinstance(agent, Rejection) or agent.objective_tokens == 0:
        return hooks
    # k3 has the gradient of the opposite KL; k3-ratio lacks that of the states visited.
    if agent.config.kl not in IN_LOSS_ALONE:
        hooks["gradient"] = lambda env, seed: record_gradient(
            agent, env, seed, agent.entropy.coefficient, _estimator(agent)
        )
    if np.isfinite(agent.clip):
        hooks["surrogate"] = lambda log_ratios, advantages: _surrogate(agent, log_ratios, advantages)
    return hooks


def _estimator(agent: OnPolicyAgent) -> Estimator | None:
    config = agent.config
    if hasattr(agent, "extra_tokens"):  # its values scatter, too
        return None
    kl: Literal["exact", "k1"] = (
        "exact" if config.kl == "exact" else "k1"
    )  # with k2 the loss and the return add up to k1
    if isinstance(agent, ActorCriticAgent):
        return Estimator("value", 1, True, kl)
    if agent.group > 1:
        return Estimator("group", agent.group, False, kl)
    return Estimator(getattr(config, "baseline", "none"), 1, getattr(config, "reward_to_go", True), kl)


def _surrogate(agent: OnPolicyAgent, log_ratios: Floats, advantages: Floats) -> Floats:
    new, weights = (torch.tensor(array, dtype=torch.float64) for array in (log_ratios, advantages))
    return _array(agent._policy_loss(new, torch.zeros_like(new), weights))


def _gradients(outputs: list[Tensor]) -> Floats:
    """Return the gradients of these outputs, one after the other; 0 where nothing was differentiated."""
    parts = [torch.zeros_like(output) if output.grad is None else output.grad for output in outputs]
    return _array(torch.cat(parts))
