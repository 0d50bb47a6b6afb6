"""The demo: from the base model of the built-in world to an aligned one, with answers before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from textgym_agents.config import LMPPOConfig
from textgym_agents.measures import spread
from textgym_agents.settings import TrainSettings
from textgym_agents.training import Training, TrainResult, Watcher

ENV_ID = "textgym/Helpful-v0"
PPO = LMPPOConfig()


@dataclass(frozen=True)
class DemoSettings:
    """LM PPO on the built-in world's Helpful task. The defaults take about two minutes on two cores."""

    config: LMPPOConfig = PPO
    episodes: int = 20_480
    """Episodes to learn from."""
    eval_every: int = 12
    """Iterations between evaluations on held-out prompts."""
    eval_per_prompt: int = 2
    """Completions per prompt of the evaluations on the way."""
    final_per_prompt: int = 16
    """Completions per prompt of the first and last evaluation."""
    optimum_per_prompt: int = 256
    """Completions per prompt that the optimum is estimated from."""
    prompts: int = 6
    """Prompts whose answers are shown."""

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> TrainSettings:
        """The training that this is. Raises: ValueError for a number out of range."""
        return TrainSettings(
            id=ENV_ID,
            agent="lm-ppo",
            config=asdict(self.config),
            episodes=self.episodes,
            eval_every=self.eval_every,
            eval_per_prompt=self.eval_per_prompt,
            final_per_prompt=self.final_per_prompt,
            optimum_per_prompt=self.optimum_per_prompt,
        )


DEMO = DemoSettings()


@dataclass(frozen=True)
class Answers:
    """One prompt with the first answer sampled before and after learning, and what they earned."""

    prompt: str
    before: str
    before_reward: float
    after: str
    after_reward: float


def run_demo(settings: DemoSettings, out: str | Path, watcher: Watcher) -> tuple[TrainResult, list[Answers]]:
    """Trains, and picks answers to show. Args and Raises: see `Training.run`."""
    result = Training(settings.plan()).run(out, watcher)
    return result, pick_answers(result, settings.prompts)


def pick_answers(result: TrainResult, count: int) -> list[Answers]:
    """Answers to prompts spread over the held-out ones; sampled, not chosen by what they say."""
    assert result.first is not None
    first, last = result.first.episodes, result.last.episodes

    def answer(episodes: Any, index: int) -> tuple[str, float]:
        return str(episodes.completions[index, 0]), float(episodes.returns[index, 0])

    chosen = spread(np.asarray(last.weights), count)
    return [Answers(last.prompts[i], *answer(first, i), *answer(last, i)) for i in chosen]
