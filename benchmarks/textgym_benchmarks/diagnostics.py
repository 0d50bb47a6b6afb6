"""Exact optimality of LM PPO on the diagnostic tasks: `python -m textgym_benchmarks.diagnostics`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean

import tyro
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table

from textgym.solver import policy_values, solve
from textgym.task import make_reference, make_task
from textgym.vector import TokenVectorEnv

_EPISODES = {"Copy": 40_000, "Reverse": 40_000, "Recall": 60_000}
_NAMES = "Bandit Scale Noisy BetaSweep Delayed Stop TwoModes Distractor BigVocab DeepSea Deceptive Copy Reverse Recall"


@dataclass(frozen=True)
class Diagnostics:
    """What to measure."""

    tasks: tuple[str, ...] = tuple(_NAMES.split())
    """Names of diagnostic tasks."""
    difficulty: int | None = None
    """Of these tasks; by default each task's own."""
    gamma: float | None = None
    """Discount per token of these tasks; by default each task's own."""
    seeds: int = 5
    """Runs per task."""
    episodes: int | None = None
    """Episodes per run; by default 20,000, and more for Copy, Reverse and Recall."""


def measure(
    name: str, episodes: int, seeds: int, difficulty: int | None = None, gamma: float | None = None
) -> list[float]:
    """Exact optimality of LM PPO on held-out prompts, one number per seed."""
    from textgym_agents.algorithms.ppo import LMPPO
    from textgym_agents.config import LMPPOConfig

    task = make_task(name, **({} if difficulty is None else {"difficulty": difficulty}))
    task = task if gamma is None else replace(task, gamma=gamma)
    best = solve(task, split="eval").objective
    base = policy_values(task, make_reference(task), split="eval").objective
    scores = []
    for seed in range(seeds):
        agent = LMPPO(task, LMPPOConfig(seed=seed, device="cpu"))
        agent.learn(TokenVectorEnv(task, agent.config.batch, autoreset_mode=AutoresetMode.DISABLED), episodes)
        agent.policy.forget()
        found = policy_values(task, agent, split="eval").objective
        scores.append(float((found - base) / (best - base)))
    return scores


def main() -> None:
    """Measures and prints."""
    settings = tyro.cli(Diagnostics, description=__doc__)
    table = Table("task", "episodes", "mean optimality", "least")
    for name in settings.tasks:
        episodes = settings.episodes or _EPISODES.get(name, 20_000)
        scores = measure(name, episodes, settings.seeds, settings.difficulty, settings.gamma)
        Console(stderr=True).print(name, [round(score, 4) for score in scores])
        table.add_row(name, f"{episodes:,}", f"{mean(scores):.4f}", f"{min(scores):.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
