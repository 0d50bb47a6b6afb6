"""What an agent may offer beside the five methods, so that its training can be looked into.

An agent offers hooks by a method `conformance_hooks() -> Mapping[str, Callable]` with any of

- `"values"`: `values(observation) -> (B,)`, V(s) in reward units at time 0: the sum to come of gamma^t r_t, less beta
  times the KL that returns are charged, undiscounted; a method `values` of the agent counts as well, unless its
  attribute `critic` is False;
- `"batch"`: `batch(env) -> TrainingBatch`, what the agent would train on in its next iteration: it plays one episode in
  every sub-environment. The agent itself need not be changed by it;
- `"gradient"`: `gradient(env, seed) -> LossGradient`, of the first optimiser step of an iteration. Offering it says
  that the step follows the gradient of J. Another seed plays other episodes, and the agent is not changed. For an agent
  derived from `LMAgent` it is one line: `lambda env, seed: record_gradient(self, env, seed)`, see `recorder.py`;
- `"surrogate"`: `surrogate(log_ratios (n,), advantages (n,)) -> (n,)`, the policy loss of actions whose probability has
  changed by a factor since they were sampled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textgym_agents.conformance.findings import NotAsked
from textgym_agents.protocol import Observation

Floats = NDArray[np.floating[Any]]


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

    input_ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    actions: NDArray[np.int64]
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
    def last(self) -> NDArray[np.bool_]:
        """(N,) whether a state is the last one of its row."""
        return np.append(self.rows[1:] != self.rows[:-1], True)

    @property
    def first(self) -> NDArray[np.bool_]:
        """(N,) whether a state is the first one of its row."""
        return np.append(True, self.rows[1:] != self.rows[:-1])

    def observation(self) -> Observation:
        """The observations (N, L) of all states."""
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
    """

    input_ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    logits: Floats
    beta: float
    entropy: float = 0.0
    values: Floats | None = None
    estimator: Estimator | None = None


def hooks_of(agent: Any) -> dict[str, Callable[..., Any]]:
    """The hooks that an agent offers; those of on-policy agents on an LM are made here from their parts."""
    hooks: dict[str, Callable[..., Any]] = {}
    if callable(getattr(agent, "values", None)) and getattr(agent, "critic", True):
        hooks["values"] = agent.values
    if callable(getattr(agent, "conformance_hooks", None)):
        offered: Mapping[str, Callable[..., Any]] = agent.conformance_hooks()
        return hooks | dict(offered)
    # An agent of this kind has imported the module; for any other one torch need not be there.
    module = sys.modules.get("textgym_agents.on_policy")
    if module is not None and isinstance(agent, module.OnPolicyAgent):
        from textgym_agents.conformance.on_policy_hooks import training_batch
        from textgym_agents.conformance.recorder import policy_gradient_hooks

        hooks["batch"] = lambda env: training_batch(agent, env)
        hooks |= policy_gradient_hooks(agent)
    return hooks


def hook(agent: Any, name: str) -> Callable[..., Any]:
    """One hook of an agent. Raises: NotAsked if it does not offer it."""
    offered = hooks_of(agent)
    if name not in offered:
        raise NotAsked(f"the agent offers no hook {name!r}")
    return offered[name]
