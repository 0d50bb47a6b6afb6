"""scaling: what a larger vocabulary, a longer horizon and a harder task cost each agent."""

from __future__ import annotations

from textgym_benchmarks.suite import Cell, Suite
from textgym_benchmarks.suites.rows import rows

SEEDS = 3
AGENTS = ("lm-ppo", "rloo", "soft-q", "q-learning", "sb3-ppo", "sb3-dqn")
VOCABULARIES = {16: 0, 64: 1, 256: 2, 1024: 3, 4096: 4}
"""V -> difficulty of BigVocab."""
DEPTHS = (2, 4, 6, 8, 10)
DELAYS = (2, 4, 8, 12)
LENGTHS = (1, 2, 3)


def suite() -> Suite:
    """Three seeds."""
    return Suite(
        "scaling",
        (
            *_cells("BigVocab", {f"V={size}": level for size, level in VOCABULARIES.items()}, 16_384),
            *_cells("DeepSea", {f"depth={depth}": depth for depth in DEPTHS}, 16_384),
            *_cells("Delayed", {f"delay={delay}": delay for delay in DELAYS}, 16_384),
            *_cells("Copy", {f"words={length}": length for length in LENGTHS}, 20_480),
        ),
        "Vocabulary, horizon, delay and number of prompts, one after the other.",
    )


def _cells(task: str, levels: dict[str, int], episodes: int) -> tuple[Cell, ...]:
    return tuple(
        cell
        for label, level in levels.items()
        for cell in rows([task], AGENTS, episodes, SEEDS, env={"difficulty": level}, reward_name=label)
    )
