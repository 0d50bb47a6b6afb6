"""Counts episodes and what they paid, before any wrapper changes the reward."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import VectorWrapper

from textgym_agents.protocol import Metrics


class Tally(VectorWrapper):
    """Counts the episodes that end, and notes the first one of every row since `begin`.

    Later episodes of a row end within a rollout only if they are short: a mean over them would be one of short texts.

    Args:
        env: a vector environment in SAME_STEP or DISABLED mode, whose ended rows are reset at once.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.begin()

    def begin(self) -> None:
        """Forgets what was counted."""
        self.episodes = 0
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._first = np.zeros(self.num_envs, dtype=np.bool_)

    def step(self, actions: Any) -> Any:
        """See `TokenVectorEnv.step`."""
        result = self.env.step(actions)
        _, rewards, terminations, truncations, _ = result
        running = ~self._first
        gamma = self.env.unwrapped.task.gamma  # type: ignore[attr-defined]
        self._returns += np.where(running, np.asarray(rewards) * gamma**self._lengths, 0.0)
        self._lengths += running
        ended = np.asarray(terminations | truncations)
        self.episodes += int(ended.sum())
        self._first |= ended
        return result

    def metrics(self, scores: str) -> Metrics:
        """Means over the first episodes: returns under the name `scores`, and lengths in tokens."""
        if not self._first.any():
            return {}
        return {
            scores: float(self._returns[self._first].mean()),
            "completion_length": float(self._lengths[self._first].mean()),
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)
