"""An agent for tests of everything around agents: it counts its iterations and favours one token more with each."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CountingConfig:
    """Settings."""

    batch: int = 4
    """Episodes per iteration."""
    step: float = 0.5
    """How much the favourite token's logit rises per iteration."""
    stop_after: int = 0
    """Learning ends by itself after so many iterations; 0: never."""
    silent: bool = False
    """It plays, and reports nothing."""


class CountingAgent:
    """See the module."""

    def __init__(self, task: Any, config: CountingConfig | None = None) -> None:
        self.task, self.config, self.count = task, config or CountingConfig(), 0

    def learn(self, env: Any, episodes: int, callback: Any = None) -> None:
        done = 0
        while done < episodes:
            done += env.num_envs
            self.count += 1
            if self.config.silent:
                env.reset(seed=self.count)
                env.step(np.full(env.num_envs, np.flatnonzero(self.task.vocabulary.allowed)[0]))
            elif callback is not None and callback({"objective/scores": float(self.count)}):
                return
            if self.count == self.config.stop_after:
                return

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        return self.log_probs(observation).argmax(1)

    def log_probs(self, observation: Any) -> Any:
        allowed = self.task.vocabulary.allowed
        logits = np.where(allowed, 0.0, -np.inf)
        logits[np.flatnonzero(allowed)[0]] += self.config.step * self.count
        row = logits - np.log(np.exp(logits).sum())
        return np.tile(row, (len(observation["input_ids"]), 1))

    def save(self, path: str | Path) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        state = {"agent": "counting", "count": self.count, "config": asdict(self.config)}
        (Path(path) / "agent.json").write_text(json.dumps(state))

    @classmethod
    def load(cls, path: str | Path, env: Any) -> CountingAgent:
        state = json.loads((Path(path) / "agent.json").read_text())
        agent = cls(env.unwrapped.task, CountingConfig(**state["config"]))
        agent.count = state["count"]
        return agent


class NoAgent:
    """Lacks most of what an agent needs."""

    def learn(self) -> None:
        """Nothing."""


async def luck(prompt: str, completion: str) -> float:
    """A score that is another one each time, as a judge's may be."""
    return random.random()
