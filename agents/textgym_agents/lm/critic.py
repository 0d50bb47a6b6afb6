"""The value function of an agent, computed apart from the cache by which the agent acts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Bools, Floats, token_counts
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.protocol import Agent, Observation, as_agent

Critic = Callable[[Observation, Bools | None], Floats]
"""From B states, and the tokens (B, V) that a grammar allows in them, to V (B,)."""


def uncharged(agent: object) -> float:
    """Return beta of the KL of a state itself where an agent's `values` leave that out, reward units per nat; else 0.

    Where the KL of a state is differentiated in the loss (`kl` "exact" and "k2"), the value head is taught what comes
    after it. 0 for all others, alphazero among them: its outcomes are charged every log-ratio.
    """
    if not isinstance(agent, LMAgent) or agent.name == "alphazero" or agent.config.kl not in ("exact", "k2"):
        return 0.0
    return float(agent.controller.valued)


def critic_of(agent: Agent) -> Critic:
    """Return V(s) of J of an agent's policy (B,), reward units at time 0.

    What `uncharged` says that the value head leaves out is charged here. With `kl` "k3" and "k3-ratio" no KL was
    charged at all, and V is of the return.

    Raises: ValueError for an agent without a critic.
    """
    if not as_agent(agent).critic or not callable(getattr(agent, "log_probs", None)):
        raise ValueError(
            f"guide: agent {(agent.name or type(agent).__name__)!r} has no trained critic; "
            "allowed are agents with log_probs and values, such as lm-ppo and a2c"
        )
    if isinstance(agent, LMAgent):
        return _of_lm_agent(agent)
    return lambda observation, masks: np.asarray(agent.values(observation), dtype=np.float64)


def _of_lm_agent(agent: LMAgent) -> Critic:
    size = 4 * agent.config.micro_batch  # nothing is kept for a gradient

    def values(observation: Observation, masks: Bools | None) -> Floats:
        single = token_counts(observation) == 1
        single |= agent.policy.backbone.prompt_end is not None  # nothing stands before a prompt that is read whole
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
    """Return V (B,) in states that are all of one token, or all of more."""
    ask = _question(observation, masks, agent.policy)
    logits, head = ask(agent.policy)
    found = agent.value_offset + (agent.value_scale or 1.0) * head.double()
    beta = uncharged(agent)
    if beta:
        logits = logits if agent.policy.cut is None else agent.policy.cut(logits, observation, masked=True)
        own, reference = torch.log_softmax(logits, -1), torch.log_softmax(ask(agent.reference)[0], -1)
        found -= beta * torch.linalg.vecdot(own.exp(), own - reference).double()
    return np.asarray(found.cpu().numpy())


def _question(
    observation: Observation, masks: Bools | None, asked: LMPolicy
) -> Callable[[LMPolicy], tuple[Tensor, Tensor]]:
    """Return a function from a policy to logits (B, V) and values (B,) in B states, all of one token or all of more."""
    device = asked.device
    legal = None if masks is None else torch.tensor(masks, device=device)
    lengths = torch.tensor(token_counts(observation), device=device)
    if lengths[0] > 1 and asked.backbone.prompt_end is None:
        move = _from_parents(observation, device)
        return lambda policy: branch(policy, *move, legal)
    # A single token has nothing before it.
    ids = torch.tensor(observation["input_ids"][:, : int(lengths.max())], device=device)
    rows = torch.arange(len(ids), device=device)
    return lambda policy: policy.states(ids, rows, lengths - 1, legal)


@torch.inference_mode()
def branch(
    policy: LMPolicy, observation: Observation, rows: Tensor, tokens: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `policy.states` gives in the states that M single tokens lead to, logits (M, V) and values (M,).

    Each state is read once, whatever number of tokens is tried in it; the cache by which the policy acts is left
    alone.

    Args:
        observation: of B states. rows: (M,) int64, which state. tokens: (M,) int64, what is appended to it.
        masks: (M, V) bool, the tokens that the task's grammar allows afterwards; None: all.
    """
    lengths = token_counts(observation)
    ids = torch.tensor(observation["input_ids"][:, : lengths.max()], device=policy.device)
    with policy.precision():
        cache = policy.backbone.open(ids, torch.tensor(lengths, device=policy.device), 1)[0]
        features = policy.backbone.extend(
            policy.backbone.select(cache, rows.to(policy.device)), tokens.to(policy.device)
        )
    return policy.heads(features, masks)


def _from_parents(observation: Observation, device: torch.device) -> tuple[Observation, Tensor, Tensor]:
    """Return states as single tokens after what came before them, which siblings share: parents, their rows, tokens."""
    ids, rows = observation["input_ids"], np.arange(len(observation["input_ids"]))
    last = token_counts(observation) - 1
    mask = (np.arange(ids.shape[1]) < last[:, None]).astype(np.int8)
    keys = np.concatenate([np.where(mask, ids, 0), last[:, None]], axis=1)
    _, first, parent = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    parents = {"input_ids": ids[first], "attention_mask": mask[first]}
    tokens = torch.tensor(ids[rows, last], device=device)
    return parents, torch.tensor(parent.reshape(-1), device=device), tokens
