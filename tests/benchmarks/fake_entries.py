"""An agent for tests of the leaderboard: it learns Bandit at a speed that can be set, and breaks rules when told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from textgym_agents.protocol import Agent

from textgym.files import make_folder, write_json
from textgym.rewards.scorer import scorers_restored


@dataclass(frozen=True)
class TiltConfig:
    seed: int = 0
    batch: int = 32
    strength: float = 1.0
    """Of the tilt at the end of the budget; 1 is the optimum."""
    luck: float = 0.0
    """How much of the strength is missing from seed 1000 on."""
    extra: int = 0
    """Batches that it plays beside the budget and says nothing of."""
    late: int = 0
    """The same, after its last report, as somebody plans who puts the reward's counts back."""
    breaks: int = -1
    """The seed at which it raises."""
    searches: bool = False
    """It has a text scored before it answers."""


class Tilt(Agent):
    """pi(arm) ~ exp(s r(arm) / beta) on Bandit, whose arms it tries one after the other; s rises with the budget."""

    name = "tilt"
    config_type = TiltConfig
    budget = 256

    def __init__(self, task: Any, config: TiltConfig | None = None) -> None:
        self.task, self.config = task, config or TiltConfig()
        self.rewards = np.zeros(int(task.vocabulary.allowed.sum()))
        self.done = 0

    def learn(self, env: Any, episodes: int, callback: Any = None) -> None:
        if self.config.seed == self.config.breaks:
            raise RuntimeError("a fault of the entry's own\nand its second line")
        for batch in range(-self.config.extra, episodes // env.num_envs):
            env.reset(seed=self.config.seed)
            arms = np.arange(env.num_envs) % len(self.rewards)
            self.rewards[arms] = env.step(arms)[1]
            if batch >= 0:
                self.done += env.num_envs
                if callback is not None and callback({"episode": self.done}):
                    return
        with scorers_restored(self.task.scorer):
            for _ in range(self.config.late):
                env.reset(seed=self.config.seed)
                env.step(np.zeros(env.num_envs, np.int64))

    def log_probs(self, observation: Any) -> Any:
        config = self.config
        strength = config.strength * (1 - 0.01 * (config.seed % 5)) - config.luck * (config.seed >= 1000)
        if config.searches:
            self.task.judge("eval", [self.task.prompt("pull", "eval")], [[1]], [0])
        logits = strength * self.done / self.budget * self.rewards / self.task.beta
        table = np.full((len(observation["input_ids"]), self.task.vocabulary.size), -np.inf)
        table[:, : len(self.rewards)] = logits - np.logaddexp.reduce(logits)
        return table

    def act(self, observation: Any, deterministic: bool = False) -> Any:
        return self.log_probs(observation).argmax(1)

    def save(self, path: str | Path) -> None:
        make_folder(Path(path))
        write_json(Path(path) / "agent.json", {"rewards": self.rewards.tolist(), "done": self.done})

    @classmethod
    def load(cls, path: str | Path, env: Any) -> Tilt:
        raise NotImplementedError(f"{path}: no test asks for it")


class Steady(Tilt):
    """The unit: the same, named so that workers find it."""

    name = "steady"
