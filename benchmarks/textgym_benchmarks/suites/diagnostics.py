"""diagnostics: one capability each, every optimum known exactly."""

from __future__ import annotations

from textgym_benchmarks.suite import Suite
from textgym_benchmarks.suites.rows import DIAGNOSTICS, MEMORY, rows

SEEDS = 3
AGENTS = (
    "random",
    "best-of-n",
    "lm-ppo",
    "rloo",
    "grpo",
    "reinforce",
    "soft-q",
    "q-learning",
    "sarsa",
    "monte-carlo",
)
SB3 = ("sb3-ppo", "sb3-dqn")


def suite() -> Suite:
    """The tasks of memory have many prompts and take longer."""
    short = [task for task in DIAGNOSTICS if task not in MEMORY]
    return Suite(
        "diagnostics",
        (*rows(short, [*AGENTS, *SB3], 16_384, SEEDS), *rows(MEMORY, [*AGENTS, *SB3], 40_960, SEEDS)),
        "Fourteen capabilities, every optimum known exactly, three seeds.",
    )
