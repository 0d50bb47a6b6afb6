"""How likely the reference finds each rank: where a policy over ranks starts."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym.lm.reference import restricted
from textgym.vector import TokenVectorEnv

_ROWS = 64
_LEAST = np.log(1e-4)  # a rank that is never written is not put out of reach


def rank_prior(task: Any, table: Any) -> NDArray[np.float64]:
    """Logarithms of the reference's mean probabilities by rank, along its likeliest texts of 64 prompts.

    Args:
        task: what `env.unwrapped.task` holds. table: `TopKTokens` of its reference.
    Returns: (k,) float64, nats.
    """
    env = TokenVectorEnv(task, _ROWS, autoreset_mode=AutoresetMode.DISABLED)
    observation, _ = env.reset(seed=0)
    running, total, count = np.ones(_ROWS, dtype=np.bool_), np.zeros(table.size), 0
    while running.any():
        masks = None if task.mask is None else env.action_masks()
        tokens, legal = table.tokens(observation, masks)
        logs = restricted(np.asarray(table.reference.log_probs(observation), dtype=np.float64), masks)
        probabilities = np.where(legal, np.exp(np.take_along_axis(logs, tokens, axis=1)), 0.0)
        total += probabilities[running].sum(0)
        count += int(running.sum())
        observation, _, terminated, truncated, _ = env.step(tokens[:, 0])
        running &= ~(terminated | truncated)
    return np.asarray(np.maximum(np.log(np.maximum(total / count, 1e-30)), _LEAST))
