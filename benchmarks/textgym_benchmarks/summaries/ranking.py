"""Which agents can be compared, and on what: a mean over easy problems says nothing beside one over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textgym_benchmarks.statistics.aggregates import mean
from textgym_benchmarks.summaries.grid import Grid, Problem


@dataclass(frozen=True)
class Comparison:
    """Agents that were all given the same problems.

    Attributes:
        agents: names. problems: that each of them was given; there may be others that only some were given.
    """

    agents: tuple[str, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Best:
    """The best agent of a family.

    Attributes:
        agent, mean: the agent with the highest mean of clipped optimality, and that mean; None without a score.
        agents: that were compared. problems: labels of those that all of them were given.
    """

    family: str
    agent: str | None
    mean: float | None
    agents: tuple[str, ...]
    problems: tuple[str, ...]


def comparison(grid: Grid, problems: Sequence[Problem] | None = None) -> Comparison:
    """The agents to rank, and the problems to rank them on.

    Agents are taken in the order of how many problems they were given, most first. Of the first k of them and the
    problems that all k were given, that k is chosen that makes the largest table (k times problems), the larger k
    where two are as large. Whoever was given everything is compared on everything. A problem whose runs failed was
    given: it is not taken from the others, and the agent's mean tells that it stands on fewer problems.
    """
    chosen = grid.problems if problems is None else tuple(problems)
    scored = [agent for agent in grid.agents if grid.strata(agent, chosen).runs] if chosen else []
    given = {agent: {p.index for p in chosen if grid.of(agent, p.index)} for agent in scored}
    ordered = sorted(scored, key=lambda agent: (-len(given[agent]), agent))
    best, size = Comparison((), ()), 0
    shared = {problem.index for problem in chosen}
    for k, agent in enumerate(ordered, start=1):
        shared &= given[agent]
        if shared and k * len(shared) >= size:
            size = k * len(shared)
            best = Comparison(tuple(ordered[:k]), tuple(p for p in chosen if p.index in shared))
    return best


def best_by_family(grid: Grid) -> list[Best]:
    """The best agent of every family, of those that can be compared in it."""
    found = []
    for family in dict.fromkeys(problem.family for problem in grid.problems):
        compared = comparison(grid, [p for p in grid.problems if p.family == family])
        means = {}
        for agent in compared.agents:
            strata = grid.strata(agent, compared.problems)
            if strata.runs:
                means[agent] = float(mean(strata.values, strata))
        labels = tuple(problem.label for problem in compared.problems)
        winner = max(sorted(means), key=means.__getitem__) if means else None
        highest = None if winner is None else means[winner]
        found.append(Best(family, winner, highest, compared.agents, labels))
    return found
