"""What it took to reach an optimality, with runs that never did as infinitely long; what equal tokens bought whom."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries.grid import Grid, at, final, number, timing

LEVELS = {"half": "to_half", "nine_tenths": "to_nine_tenths"}


@dataclass(frozen=True)
class Crossing:
    """Tokens, episodes and seconds to a level of optimality.

    Attributes:
        tokens, episodes, seconds: medians; None where at least half never got there. Tokens are those that were scored.
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


@dataclass(frozen=True)
class EqualTokens:
    """Where the agents of a problem stand when they have had the same number of tokens scored.

    Attributes:
        problem: index into the summary's problems.
        tokens: the least that a run used which learns and has an optimality; None where there is none.
        optimality: agent -> mean over its runs, read off their curves by linear interpolation; None where a curve does
            not get that far, as that of an agent which learns nothing.
    """

    problem: int
    tokens: float | None
    optimality: dict[str, float | None]


def equal_tokens(grid: Grid, agents: Sequence[str]) -> list[EqualTokens]:
    """One for each problem; its agents in the given order."""
    found = []
    for problem in grid.problems:
        curves = {agent: _curves(grid.of(agent, problem.index)) for agent in agents}
        ends = [tokens[-1] for rows in curves.values() for tokens, _ in rows if tokens[-1] > 0]
        budget = min(ends, default=None)
        scores = {agent: _at(rows, budget) for agent, rows in curves.items() if rows}
        found.append(EqualTokens(problem.index, budget, scores))
    return found


def _curves(results: Sequence[Result]) -> list[tuple[list[float], list[float]]]:
    """Tokens and optimality along each run that has both somewhere."""
    rows = (
        [
            (tokens, score)
            for point in at(result.measures, "curve") or ()
            if (tokens := number(at(point, "tokens"))) is not None
            and (score := number(at(point, "optimality"))) is not None
        ]
        for result in results
    )
    return [([tokens for tokens, _ in row], [score for _, score in row]) for row in rows if row]


def _at(curves: Sequence[tuple[list[float], list[float]]], budget: float | None) -> float | None:
    if budget is None or any(tokens[-1] < budget for tokens, _ in curves):
        return None
    return fmean(float(np.interp(budget, tokens, scores)) for tokens, scores in curves)


def _middle(values: Iterable[float | None]) -> float | None:
    """The median where None is infinite; None for an infinite one and for none at all."""
    known = [math.inf if value is None else value for value in values]
    middle = median(known) if known else math.inf
    return None if math.isinf(middle) else float(middle)
