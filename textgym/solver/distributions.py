"""A policy's log-probabilities on every edge of a prefix tree."""

from __future__ import annotations

from typing import Any

import numpy as np

from textgym.solver.tree import Floats, Level, PrefixTree, per_edge, per_state


def edge_log_probs(tree: PrefixTree, policy: Any, argument: str = "policy") -> tuple[Floats, ...]:
    """The log-probability of every edge, normalised over the legal actions of its state.

    Normalising is what a masked policy does: probability that a policy gives to illegal tokens is shared out among
    the legal ones in proportion. It also takes out the rounding of policies that compute in float32.

    Args:
        policy: anything with `log_probs(observation)`.
        argument: its name in messages.
    Returns: one array per level, aligned with `tree.levels[t + 1]`, nats; -inf throughout a state where the policy
        gives no legal action any probability.

    Raises:
        TypeError: it has no log-probabilities.
        ValueError: they have the wrong shape, or are NaN or +inf.
    """
    result = []
    for depth in range(len(tree.levels) - 1):
        level = tree.levels[depth]
        logs = np.empty(len(tree.levels[depth + 1].parent))
        for rows in tree.batches(depth):
            table = _ask(policy, tree.observations(depth, rows), tree.task.vocabulary.size, argument)
            where, place = tree.edges(depth, rows)
            logs[where] = table[place, tree.levels[depth + 1].action[where]]
        if np.isnan(logs).any() or (logs == np.inf).any():
            raise ValueError(f"{argument}: log_probs holds NaN or +inf, allowed are numbers <= 0 and -inf")
        result.append(normalised(logs, level))
    return tuple(result)


def normalised(logs: Floats, level: Level) -> Floats:
    """Subtract from each edge (m,) the log-sum-exp of its state; a state that is -inf throughout stays so."""
    total = log_sum(logs, level)
    return np.asarray(logs - per_edge(np.where(np.isneginf(total), 0.0, total), level))


def log_sum(logs: Floats, level: Level) -> Floats:
    """The log-sum-exp of the edges of each running state; -inf where all of them are."""
    top = per_state(logs, level, np.maximum)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(per_state(np.exp(logs - per_edge(shift, level)), level, np.add)))


def _ask(policy: Any, observation: Any, size: int, argument: str) -> Floats:
    method = getattr(policy, "log_probs", None)
    table = None if method is None else method(observation)
    if table is None:
        raise TypeError(
            f"{argument}={policy!r:.80} gives no log-probabilities; needed is log_probs(observation) -> (B, V)"
        )
    table = np.asarray(table)
    shape = (len(observation["input_ids"]), size)
    if table.shape != shape:
        raise ValueError(f"{argument}: log_probs returned shape {table.shape}, allowed is {shape}")
    return table
