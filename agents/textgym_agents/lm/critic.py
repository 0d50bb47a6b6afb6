"""The value function of an agent, asked apart from the cache by which the agent acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.protocol import Observation, as_agent

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Critic = Callable[[Observation, Bools | None], Floats]
"""From B states, and the tokens (B, V) that a grammar allows in them, to V (B,)."""


def uncharged(agent: Any) -> float:
    """Beta of the KL of a state itself, where an agent's `values` leave that out; reward units per nat.

    Where the KL of a state is differentiated in the loss (`kl` "exact" and "k2"), the value head is taught what comes
    after it. 0 for all others, alphazero among them: its outcomes are charged every log-ratio.
    """
    if not isinstance(agent, LMAgent) or agent.name == "alphazero" or agent.config.kl not in ("exact", "k2"):
        return 0.0
    return float(agent.controller.beta)


def critic_of(agent: Any) -> Critic:
    """V(s) of J of an agent's policy (B,), reward units at time 0.

    What `uncharged` says that the value head leaves out is charged here. With `kl` "k3" no KL was charged at all, and V
    is of the return.

    Raises: ValueError for an agent without a critic.
    """
    if not isinstance(agent, LMAgent):
        if not as_agent(agent).critic or not callable(getattr(agent, "log_probs", None)):
            raise ValueError(
                f"guide: {type(agent).__name__} has no values; allowed is an agent with log_probs and values"
            )
        return _given(agent)
    if not agent.critic:
        raise ValueError(
            f"guide: agent {agent.name!r} has no trained critic; allowed are such as lm-ppo and a2c"
        )
    return _of_lm_agent(agent)


def _given(agent: Any) -> Critic:
    return lambda observation, masks: np.asarray(agent.values(observation), dtype=np.float64)


def _of_lm_agent(agent: LMAgent) -> Critic:
    size = 4 * agent.config.micro_batch  # nothing is kept for a gradient

    def values(observation: Observation, masks: Bools | None) -> Floats:
        single = np.count_nonzero(observation["attention_mask"], axis=1) == 1
        found = np.empty(len(single))
        for rows in (np.flatnonzero(~single), np.flatnonzero(single)):
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                seen = {name: array[part] for name, array in observation.items()}
                found[part] = _values(agent, seen, None if masks is None else masks[part])
        return found

    return values


@torch.inference_mode()
def _values(agent: LMAgent, observation: Observation, masks: Bools | None) -> Floats:
    """V (B,) in states that are all of one token, or all of more."""
    ask = _question(observation, masks, agent.policy.device)
    logits, head = ask(agent.policy)
    found = agent.value_offset + (agent.value_scale or 1.0) * head.double()
    beta = uncharged(agent)
    if beta:
        own, reference = torch.log_softmax(logits, -1), torch.log_softmax(ask(agent.reference)[0], -1)
        found -= beta * torch.linalg.vecdot(own.exp(), own - reference).double()
    return np.asarray(found.cpu().numpy())


def _question(
    observation: Observation, masks: Bools | None, device: torch.device
) -> Callable[[LMPolicy], tuple[Tensor, Tensor]]:
    """From a policy to its logits (B, V) and values (B,) in B states: all of one token, or all of more."""
    legal = None if masks is None else torch.tensor(masks, device=device)
    if observation["attention_mask"][0].sum() > 1:
        move = _from_parents(observation, device)
        return lambda policy: policy.branch(*move, legal)
    # A single token has nothing before it.
    ids = torch.tensor(observation["input_ids"][:, :1], device=device)
    rows = torch.arange(len(ids), device=device)
    return lambda policy: policy.states(ids, rows, torch.zeros_like(rows), legal)


def _from_parents(observation: Observation, device: torch.device) -> tuple[Observation, Tensor, Tensor]:
    """States as single tokens after what came before them, which siblings share: parents, their rows, tokens."""
    ids, rows = observation["input_ids"], np.arange(len(observation["input_ids"]))
    last = np.count_nonzero(observation["attention_mask"], axis=1) - 1
    mask = (np.arange(ids.shape[1]) < last[:, None]).astype(np.int8)
    keys = np.concatenate([np.where(mask, ids, 0), last[:, None]], axis=1)
    _, first, parent = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    parents = {"input_ids": ids[first], "attention_mask": mask[first]}
    tokens = torch.tensor(ids[rows, last], device=device)
    return parents, torch.tensor(parent.reshape(-1), device=device), tokens
