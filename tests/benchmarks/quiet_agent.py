"""An agent of a user's own that gives no probabilities, draws from the global generator and can be broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class QuietAgent:
    """Writes allowed tokens at random, from the global generator; learning draws from it too."""

    def __init__(self, task: Any) -> None:
        self.tokens = np.flatnonzero(task.vocabulary.allowed)
        self.favourite = int(self.tokens[0])

    def learn(self, env: Any, episodes: int, callback: Any = None) -> None:
        for _ in range(episodes // env.num_envs):
            env.reset(seed=0)
            env.step(np.full(env.num_envs, self.favourite))
            self.favourite = int(np.random.choice(self.tokens))  # noqa: NPY002
            if callback is not None and callback({}):
                return

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        return np.full(len(observation["input_ids"]), self.favourite)

    def log_probs(self, observation: Any) -> None:
        return None

    def save(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "favourite").write_text(str(self.favourite))

    @classmethod
    def load(cls, path: str | Path, env: Any) -> QuietAgent:
        agent = cls(env.unwrapped.task)
        agent.favourite = int((Path(path) / "favourite").read_text())
        return agent
