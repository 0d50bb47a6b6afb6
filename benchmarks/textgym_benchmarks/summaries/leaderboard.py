"""Leaderboards: scores, intervals and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics.comparisons import Improvement, probability_of_improvement
from textgym_benchmarks.statistics.resampling import (
    Aggregate,
    Strata,
    aggregates,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    strata_of,
)
from textgym_benchmarks.summaries.crossings import Crossing, crossing_of_agent
from textgym_benchmarks.summaries.grid import (
    FLOOR,
    Grid,
    Problem,
    at,
    average,
    final,
    finals,
    generator_of,
    learning_time,
    number,
)


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


FAMILY_REPLICATES = 2000


@dataclass(frozen=True)
class Counts:
    """Cells by their fate.

    Attributes:
        planned: all of them = done + failed + missing.
        no_optimality: of the done ones, those whose agent has no KL or whose task has no known J*.
        clipped: scores below `FLOOR`, which enter aggregates as `FLOOR`. above_one: scores above 1.
    """

    planned: int
    done: int
    failed: int
    missing: int
    no_optimality: int
    clipped: int
    above_one: int


@dataclass(frozen=True)
class Row:
    """An agent over all problems. Scores are optimality clipped at `FLOOR`; intervals are of 95%.

    Attributes:
        agent: its name. rank: from 1, by `common`; None for an agent that was not given all the problems that are
            compared (`ranking.comparison`), or has no score.
        iqm, mean, median, optimality_gap: over the problems that the agent has a score on: `tasks` of `of_tasks`.
        with_failures: the interquartile mean with every failed run counted as `FLOOR`.
        common: the interquartile mean over the problems that every ranked agent was given; None for the others.
        common_with_failures: the same with every failed run counted as `FLOOR`.
        over_reference: P(a run scores above 0, which is the reference's score by definition).
        over_best: P(a run beats a run of the agent of rank 1); None for that agent.
        families: family -> mean, None where the agent has no cell in it.
        tokens, cpu_seconds: means over finished runs, of learning alone; tokens are those that were scored.
            tokens_per_cpu_second: all tokens of learning over all its CPU seconds.
        answer_tokens: scored for an answer after learning, a mean; None where the results do not tell.
        to_half, to_nine_tenths: what it took to reach an optimality of 0.5 and 0.9.
    """

    agent: str
    rank: int | None
    counts: Counts
    iqm: Aggregate
    mean: Aggregate
    median: Aggregate
    optimality_gap: Aggregate
    with_failures: float | None
    common: Aggregate | None
    common_with_failures: float | None
    over_reference: Improvement
    over_best: Improvement | None
    families: dict[str, Aggregate | None]
    tokens: float | None
    answer_tokens: float | None
    cpu_seconds: float | None
    tokens_per_cpu_second: float | None
    to_half: Crossing
    to_nine_tenths: Crossing


def leaderboard(grid: Grid, seed: int) -> list[Row]:
    """Ranked agents by rank, then the others by their own interquartile mean, those without a score last."""
    compared = comparison(grid)
    rows = [_row(grid, agent, seed) for agent in grid.agents]
    rows = [
        _compared(grid, row, compared.problems, seed) if row.agent in compared.agents else row for row in rows
    ]
    rows.sort(key=_place)
    best = rows[0].agent if _score(rows[0]) is not None else None
    return [
        replace(
            row,
            rank=place if _score(row) is not None else None,
            over_best=_over(grid, row.agent, best, seed) if best not in (None, row.agent) else None,
        )
        for place, row in enumerate(rows, start=1)
    ]


def _score(row: Row) -> float | None:
    return None if row.common is None else row.common.value


def _place(row: Row) -> tuple[bool, float, bool, float, str]:
    own, common = row.iqm.value, _score(row)
    return (common is None, -(common or 0.0), own is None, -(own or 0.0), row.agent)


def count(results: Sequence[Result]) -> Counts:
    """Cells by their fate."""
    done = [result for result in results if result.status == "done"]
    scores = finals(done, "optimality")
    return Counts(
        planned=len(results),
        done=len(done),
        failed=sum(result.status == "failed" for result in results),
        missing=sum(result.status == "missing" for result in results),
        no_optimality=len(done) - len(scores),
        clipped=sum(score < FLOOR for score in scores),
        above_one=sum(score > 1.0 + 1e-9 for score in scores),  # exact scores carry rounding
    )


def tokens_per_cpu_second(results: Sequence[Result]) -> float | None:
    """All tokens over all CPU seconds of learning, of the runs that tell both."""
    both = [(number(at(run.measures, "tokens")), learning_time(run, "cpu_seconds")) for run in results]
    known = [(tokens, seconds) for tokens, seconds in both if tokens is not None and seconds]
    return sum(tokens for tokens, _ in known) / sum(seconds for _, seconds in known) if known else None


def _row(grid: Grid, agent: str, seed: int) -> Row:
    strata, results = grid.strata(agent), grid.all_of(agent)
    statistics = {
        "iqm": interquartile_mean,
        "mean": mean,
        "median": median,
        "optimality_gap": optimality_gap,
    }
    found = aggregates(strata, statistics, generator_of(seed, "leaderboard", agent))
    return Row(
        agent=agent,
        rank=None,
        counts=count(results),
        **found,
        with_failures=_with_failures(grid, agent, grid.problems),
        common=None,
        common_with_failures=None,
        over_reference=_over(grid, agent, None, seed),
        over_best=None,
        families=_families(grid, agent, seed),
        tokens=average(number(at(result.measures, "tokens")) for result in results),
        answer_tokens=average(final(result, "answer_tokens") for result in results),
        cpu_seconds=average(learning_time(result, "cpu_seconds") for result in results),
        tokens_per_cpu_second=tokens_per_cpu_second(results),
        to_half=crossing_of_agent(grid, agent, "half"),
        to_nine_tenths=crossing_of_agent(grid, agent, "nine_tenths"),
    )


def _iqm(strata: Strata, generator: np.random.Generator) -> Aggregate:
    return aggregates(strata, {"iqm": interquartile_mean}, generator)["iqm"]


def _compared(grid: Grid, row: Row, problems: Sequence[Problem], seed: int) -> Row:
    strata = grid.strata(row.agent, problems)
    common = _iqm(strata, generator_of(seed, "common", row.agent))
    if strata.runs == row.iqm.runs:  # over all that the agent has a score on, the row has it already
        common = replace(row.iqm, of_runs=strata.of_runs, of_tasks=strata.tasks)
    return replace(row, common=common, common_with_failures=_with_failures(grid, row.agent, problems))


def _with_failures(grid: Grid, agent: str, problems: Sequence[Problem]) -> float | None:
    strata = grid.strata(agent, problems, failed=FLOOR)
    return float(interquartile_mean(strata.values, strata)) if strata.runs else None


def _over(grid: Grid, agent: str, other: str | None, seed: int) -> Improvement:
    """Against another agent, or (None) against the score of the reference, which is 0 by definition."""
    zero = strata_of([[0.0]] * len(grid.problems))
    second = zero if other is None else grid.strata(other)
    return probability_of_improvement(
        grid.strata(agent), second, generator_of(seed, "over", agent, other or "")
    )


def _families(grid: Grid, agent: str, seed: int) -> dict[str, Aggregate | None]:
    found: dict[str, Aggregate | None] = {}
    for family in dict.fromkeys(problem.family for problem in grid.problems):
        problems = [problem for problem in grid.problems if problem.family == family]
        asked = any(grid.of(agent, problem.index) for problem in problems)
        generator = generator_of(seed, "family", agent, family)
        found[family] = (
            aggregates(grid.strata(agent, problems), {"mean": mean}, generator, FAMILY_REPLICATES)["mean"]
            if asked
            else None
        )
    return found
