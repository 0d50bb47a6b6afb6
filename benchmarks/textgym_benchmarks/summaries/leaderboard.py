"""Leaderboards: scores, intervals and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from textgym.checks import JsonObject
from textgym_benchmarks.statistics import (
    Aggregate,
    Improvement,
    aggregates,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
    strata_of,
)
from textgym_benchmarks.summaries.entries import Costs, Crossing, costs, crossing_of_agent
from textgym_benchmarks.summaries.grid import FLOOR, Grid, RankedTask, generator_of

_STATISTICS = {"iqm": interquartile_mean, "mean": mean, "median": median, "optimality_gap": optimality_gap}


@dataclass(frozen=True)
class Comparison:
    """Agents that were all given the same problems.

    Attributes:
        agents: names. problems: that each of them was given; there may be others that only some were given.
    """

    agents: tuple[str, ...]
    problems: tuple[RankedTask, ...]


def comparison(grid: Grid, problems: Sequence[RankedTask] | None = None) -> Comparison:
    """Return the agents to rank, and the problems to rank them on.

    Agents are taken in the order of how many problems they were given, most first. Of the first k of them and the
    problems that all k were given, that k is chosen that makes the largest table (k times problems), the larger k
    where two are as large. An agent that was given everything is compared on everything. A problem whose runs failed
    was given: it is not taken from the others, and the agent's mean tells that it stands on fewer problems.
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


def best_by_family(grid: Grid) -> list[Best]:
    """Return the best agent of every family, of those that can be compared in it."""
    found = []
    for family, problems in grid.families().items():
        compared = comparison(grid, problems)
        strata = {agent: grid.strata(agent, compared.problems) for agent in compared.agents}
        means = {agent: float(mean(each.values, each)) for agent, each in strata.items() if each.runs}
        winner, highest = max(sorted(means.items()), key=itemgetter(1), default=(None, None))
        labels = tuple(problem.label for problem in compared.problems)
        found.append(Best(family, winner, highest, compared.agents, labels))
    return found


@dataclass(frozen=True)
class AgentRow(Costs):
    """An agent over all problems. Scores are optimality clipped at `FLOOR`; intervals are of 95%.

    Attributes:
        agent: its name. rank: from 1, by `common`, shared by equal ones; None for an agent that was not given all the
            problems that are compared (`comparison`), or has no score.
        iqm, mean, median, optimality_gap: over the problems that the agent has a score on: `tasks` of `of_tasks`.
        common: the interquartile mean over the problems that every ranked agent was given; None for the others.
        common_with_failures: the same with every failed run counted as `FLOOR`.
        over_reference: P(a run scores above 0, which is the reference's score by definition).
        over_best: P(a run beats a run of the first agent of rank 1); None for that agent.
        to_half, to_nine_tenths: what it took to reach an optimality of 0.5 and 0.9.
    """

    agent: str
    rank: int | None
    iqm: Aggregate
    mean: Aggregate
    median: Aggregate
    optimality_gap: Aggregate
    common: Aggregate | None
    common_with_failures: float | None
    over_reference: Improvement
    over_best: Improvement | None
    to_half: Crossing
    to_nine_tenths: Crossing


def leaderboard(grid: Grid, seed: int) -> list[AgentRow]:
    """Return ranked agents by rank, then the others by their own interquartile mean, those without a score last."""
    compared = comparison(grid)
    rows = [_row(grid, agent, seed, compared.problems if agent in compared.agents else None) for agent in grid.agents]
    rows.sort(key=_place)
    best = None if _score(rows[0]) is None else rows[0].agent
    scores = [score for row in rows if (score := _score(row)) is not None]
    return [
        replace(
            row,
            rank=None if (own := _score(row)) is None else 1 + sum(score > own for score in scores),
            over_best=None if best in (None, row.agent) else _over(grid, row.agent, best, seed),
        )
        for row in rows
    ]


def _score(row: AgentRow) -> float | None:
    """What decides about ranks: differences that only the order of a sum makes are none."""
    return None if row.common is None or row.common.value is None else round(row.common.value, 9)


def _place(row: AgentRow) -> tuple[bool, float, bool, float, str]:
    own, common = row.iqm.value, _score(row)
    return (common is None, -(common or 0.0), own is None, -(own or 0.0), row.agent)


def _row(grid: Grid, agent: str, seed: int, compared: Sequence[RankedTask] | None) -> AgentRow:
    strata = grid.strata(agent)
    found = aggregates(strata, _STATISTICS, generator_of(seed, "leaderboard", agent))
    common = with_failures = None
    if compared is not None:
        shared = grid.strata(agent, compared)
        counted = grid.strata(agent, compared, failed=FLOOR)
        with_failures = float(interquartile_mean(counted.values, counted)) if counted.runs else None
        if shared.runs == strata.runs:  # the same runs have the same mean
            common = replace(found["iqm"], of_runs=int(shared.expected.sum()), of_tasks=shared.tasks)
        else:
            common = aggregates(shared, {"iqm": interquartile_mean}, generator_of(seed, "common", agent))["iqm"]
    known: JsonObject = vars(costs(grid.all_of(agent))) | found
    return AgentRow(
        **known,
        agent=agent,
        rank=None,
        common=common,
        common_with_failures=with_failures,
        over_reference=_over(grid, agent, None, seed),
        over_best=None,
        to_half=crossing_of_agent(grid, agent, "to_half"),
        to_nine_tenths=crossing_of_agent(grid, agent, "to_nine_tenths"),
    )


def _over(grid: Grid, agent: str, other: str | None, seed: int) -> Improvement:
    """Compare with another agent, or (None) with the score of the reference, which is 0 by definition."""
    second = strata_of([[0.0]] * len(grid.problems)) if other is None else grid.strata(other)
    generator = generator_of(seed, "over", agent, other or "")
    return probability_of_improvement(grid.strata(agent), second, generator)
