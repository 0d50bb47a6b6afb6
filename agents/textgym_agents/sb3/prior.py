"""How likely the reference finds each rank: where a policy over ranks starts."""

from __future__ import annotations

import numpy as np

from textgym.checks import Floats, Ints
from textgym.lm.reference import restricted
from textgym.play import Turn, play_batch
from textgym.rewards.scorer import scorers_restored
from textgym.task import Task
from textgym.vector import batch_env
from textgym.wrappers.actions import TopKTokens

_ROWS = 64
_LEAST = np.log(1e-4)  # a rank that is never written is not put out of reach


def rank_prior(task: Task, table: TopKTokens) -> Floats:
    """Return logarithms of the reference's mean probabilities by rank, along its likeliest texts of 64 prompts.

    Args:
        table: the ranks of the task's reference.
    Returns: (k,) float64, nats.
    """
    total = np.zeros(table.size)

    def choose(turn: Turn) -> Ints:
        seen = turn.seen()
        tokens, legal = table.tokens(seen, turn.masks)
        logs = restricted(np.asarray(table.reference.log_probs(seen), dtype=np.float64), turn.masks)
        total[:] += np.where(legal, np.exp(np.take_along_axis(logs, tokens, axis=1)), 0.0).sum(0)
        return tokens[:, 0]

    with scorers_restored(task.scorer):
        env = batch_env(task, _ROWS, "train")
        played = play_batch(env, env.reset(seed=0)[0], choose)
    return np.asarray(np.maximum(np.log(np.maximum(total / len(played.rows), 1e-30)), _LEAST))
