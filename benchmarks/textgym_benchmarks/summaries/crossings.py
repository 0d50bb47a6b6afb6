"""What it took to reach an optimality: the median over runs, with those that never did counted as infinitely long."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from textgym_benchmarks.results import Result
from textgym_benchmarks.summaries.grid import Grid
from textgym_benchmarks.summaries.reading import at, final, number, timing

LEVELS = {"half": "to_half", "nine_tenths": "to_nine_tenths"}


@dataclass(frozen=True)
class Crossing:
    """Tokens, episodes and seconds to a level of optimality.

    Attributes:
        tokens, episodes, seconds: medians; None where at least half never got there.
        reached: runs (of one cell) or problems (of an agent) that got there. of: that have an optimality.
    """

    tokens: float | None
    episodes: float | None
    seconds: float | None
    reached: int
    of: int


def crossing_of_runs(results: Sequence[Result], level: str) -> Crossing:
    """Medians over the runs of one agent on one problem.

    Args:
        level: "half" or "nine_tenths".
    """
    scored = [result for result in results if final(result, "optimality") is not None]
    found = [at(result.measures, LEVELS[level]) for result in scored]
    return Crossing(
        tokens=_middle(number(at(place, "tokens")) for place in found),
        episodes=_middle(number(at(place, "episodes")) for place in found),
        seconds=_middle(timing(result, f"seconds_{LEVELS[level]}") for result in scored),
        reached=sum(place is not None for place in found),
        of=len(scored),
    )


def crossing_of_agent(grid: Grid, agent: str, level: str) -> Crossing:
    """Medians over problems of the medians over runs; a problem counts as reached if its median run got there."""
    rows = [crossing_of_runs(grid.of(agent, problem.index), level) for problem in grid.problems]
    rows = [row for row in rows if row.of]
    return Crossing(
        tokens=_middle(row.tokens for row in rows),
        episodes=_middle(row.episodes for row in rows),
        seconds=_middle(row.seconds for row in rows),
        reached=sum(row.tokens is not None for row in rows),
        of=len(rows),
    )


def _middle(values: Iterable[float | None]) -> float | None:
    """The median where None is infinite; None for an infinite one and for none at all."""
    known = [math.inf if value is None else value for value in values]
    middle = median(known) if known else math.inf
    return None if math.isinf(middle) else float(middle)
