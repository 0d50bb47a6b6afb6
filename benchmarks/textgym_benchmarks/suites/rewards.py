"""rewards: the alignment tasks under one reward after another; the rules stay the gold reward."""

from __future__ import annotations

from typing import Any

from textgym_benchmarks.suite import Cell, Suite
from textgym_benchmarks.suites.rows import ALIGNMENT, rows

SEEDS = 3
NOISE = 0.5  # standard deviation: about that of the reward itself
AGENTS = ("lm-ppo", "rloo", "dpo", "best-of-n")


def suite() -> Suite:
    """Three seeds."""
    cells = tuple(
        cell
        for task in ALIGNMENT
        for name, reward in rewards(task).items()
        for cell in _cells(task, name, reward)
    )
    return Suite(
        "rewards", cells, "The alignment tasks under rules, a learned model, shaped and noisy rules."
    )


def rewards(task: str) -> dict[str, Any]:
    """Label -> what the option `reward` of an alignment task takes."""
    rules = {"name": f"{task.lower()}_rules"}
    return {
        "rules": "rules",
        "model": "model",
        "shaped": {"name": "shaped", "reward": rules},
        "noisy": {"name": "blurred", "reward": rules, "deviation": NOISE},
    }


def _cells(task: str, name: str, reward: Any) -> tuple[Cell, ...]:
    # DPO ranks finished answers: what is paid on the way means nothing to it.
    agents = [agent for agent in AGENTS if not (name == "shaped" and agent in ("dpo", "best-of-n"))]
    return rows([task], agents, 6_144, SEEDS, reward=reward, reward_name=name)
