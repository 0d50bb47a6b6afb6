"""The value function of an agent, asked apart from the cache by which the agent acts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym_agents.lm_agent import LMAgent
from textgym_agents.protocol import Observation

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Critic = Callable[[Observation, Bools | None], Floats]
"""From B states, and the tokens (B, V) that a grammar allows in them, to V (B,)."""


def critic_of(agent: Any) -> Critic:
    """V(s) of J of an agent's policy, for states in which something was written (B,), reward units at the state's time.

    Where the KL of a state is differentiated in the loss (`kl` "exact" and "k2"), its value head was taught what comes
    after that KL; it is charged here, so that V is that of J. With "k3" no KL was charged, and V is of the return.

    Raises: ValueError for an agent without a critic.
    """
    if not isinstance(agent, LMAgent):
        if not callable(getattr(agent, "values", None)) or not callable(getattr(agent, "log_probs", None)):
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
    config = agent.config
    charged = agent.controller.beta if config.kl in ("exact", "k2") and agent.name != "alphazero" else 0.0

    def values(observation: Observation, masks: Bools | None) -> Floats:
        count = len(observation["input_ids"])
        parts = []
        for start in range(0, count, 4 * config.micro_batch):  # nothing is kept for a gradient
            part = slice(start, start + 4 * config.micro_batch)
            seen = {name: array[part] for name, array in observation.items()}
            move = _from_parents(seen, agent.policy.device)
            legal = None if masks is None else torch.tensor(masks[part], device=agent.policy.device)
            logits, head = agent.policy.branch(*move, legal)
            found = agent.value_offset + (agent.value_scale or 1.0) * head.double()
            if charged:
                own = torch.log_softmax(logits, -1)
                reference = torch.log_softmax(agent.reference.branch(*move, legal)[0], -1)
                found -= charged * torch.linalg.vecdot(own.exp(), own - reference).double()
            parts.append(found.cpu().numpy())
        return np.concatenate(parts)

    return values


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
