"""One episode in every sub-environment, for the agent with the planted bugs: flat arrays, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("rows", "columns", "actions", "log_probs", "values", "rewards")


def play(agent: Any, env: Any, generator: Any) -> tuple[dict[str, Any], Any]:
    """The fields of a `TrainingBatch` that come from acting, and V (B,) where a row was cut off, else 0."""
    observation, _ = env.reset(seed=int(generator.integers(2**31)))
    active = np.ones(env.num_envs, dtype=bool)
    bootstrap = np.zeros(env.num_envs)
    parts: list[tuple[Any, ...]] = []
    while active.any():
        rows = np.flatnonzero(active)
        seen = {name: array[rows].copy() for name, array in observation.items()}
        logs = agent.log_probs(seen)
        tokens = agent.draw(logs, generator)
        actions = np.zeros(env.num_envs, dtype=np.int64)
        actions[rows] = tokens
        columns = np.count_nonzero(seen["attention_mask"], axis=1) - 1
        observation, paid, ended, cut, _ = env.step(actions)
        own = logs[np.arange(len(rows)), tokens]
        parts.append((rows, columns, tokens, own, agent.values(seen), np.array(paid, float)[rows]))
        cut = active & cut & ~ended
        bootstrap[cut] = agent.values(observation)[cut]
        active &= ~(ended | cut)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    joined = dict(zip(NAMES, columns, strict=True))
    order = np.lexsort((joined["columns"], joined["rows"]))
    raw = {name: array[order] for name, array in joined.items()}
    return raw | {"input_ids": observation["input_ids"].copy()}, bootstrap
