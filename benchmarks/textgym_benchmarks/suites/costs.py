"""About how long cells take: what is started first, how much time is left, what a suite costs."""

from __future__ import annotations

from typing import Final

from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suite_folder import family_of

# CPU seconds on one core of a Xeon: of the evaluations of a cell,
_EVALUATIONS: Final = {"diagnostics": 2.0}
_EVALUATIONS_REAL: Final = 22.0
_MANY_PROMPTS: Final = {"textgym/Copy-v0": 6.0, "textgym/Reverse-v0": 6.0, "textgym/Recall-v0": 6.0}
# and of 1,000 episodes: on the small vocabularies of the diagnostics, and on a language model.
_SMALL: Final = {"mcts": 2.0, "alphazero": 8.0}
_SMALL_TABLE, _SMALL_LM, _SMALL_SB3 = 0.15, 0.9, 4.0
_LARGE: Final = 7.0
_NO_LEARNING: Final = ("best-of-n", "random", "reference")
_TABLES: Final = ("q-learning", "sarsa", "monte-carlo")
_BEST_OF: Final = 4.0
"""best-of-n writes many completions for each that is evaluated: so much longer are its evaluations."""


def cost(cell: Cell) -> float:
    """CPU seconds that a cell takes, within a factor of about three."""
    family = family_of(cell.id)
    evaluations = _MANY_PROMPTS.get(cell.id, _EVALUATIONS.get(family, _EVALUATIONS_REAL))
    if cell.agent in _NO_LEARNING:
        return evaluations * (_BEST_OF if cell.agent == "best-of-n" else 1.0)
    per_thousand = _small(cell.agent) if family == "diagnostics" else _LARGE
    return evaluations + per_thousand * cell.episodes / 1000


def _small(agent: str) -> float:
    if agent in _TABLES:
        return _SMALL_TABLE
    return _SMALL.get(agent, _SMALL_SB3 if agent.startswith("sb3-") else _SMALL_LM)
