"""The table of every problem: each agent's scores on it, its costs, and the fate of each run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from textgym.checks import JsonObject
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries.grid import (
    FLOOR,
    MEASURES,
    Grid,
    Spread,
    at,
    average,
    final,
    finals,
    finite,
    generator_of,
    learning_time,
    spread,
)


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


def count(results: Sequence[Result]) -> Counts:
    """Count cells by their fate."""
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


@dataclass(frozen=True)
class Crossing:
    """Tokens to a level of optimality, with runs that never got there as infinitely long.

    Attributes:
        tokens: that were scored, a median; None where at least half never got there.
        reached: runs (of one cell) or problems (of an agent) that got there. of: that have an optimality.
    """

    tokens: float | None
    reached: int
    of: int


def crossing_of_runs(results: Sequence[Result], level: str) -> Crossing:
    """Return the median over the runs of one agent on one problem. Args: level: "to_half" or "to_nine_tenths"."""
    scored = [result for result in results if final(result, "optimality") is not None]
    return _crossing([finite(at(result.measures, level, "tokens")) for result in scored])


def crossing_of_agent(grid: Grid, agent: str, level: str) -> Crossing:
    """Return the median over problems of the medians over runs; a problem is reached if its median run got there."""
    rows = [crossing_of_runs(grid.of(agent, problem.index), level) for problem in grid.problems]
    return _crossing([row.tokens for row in rows if row.of])


def _crossing(tokens: Sequence[float | None]) -> Crossing:
    """Return the median where None is infinite."""
    reached = sum(each is not None for each in tokens)
    middle = median([math.inf if each is None else each for each in tokens] or [math.inf])
    return Crossing(None if math.isinf(middle) else float(middle), reached, len(tokens))


@dataclass(frozen=True)
class Costs:
    """The cost of an agent's runs, of learning alone; means are over finished runs.

    Attributes:
        counts: of the runs.
        tokens: a mean of those that were scored.
        answer_tokens: a mean of what was scored for an answer after learning; None where the results do not tell.
        cpu_seconds: a mean. tokens_per_cpu_second: all tokens over all CPU seconds, of the runs that tell both.
    """

    counts: Counts
    tokens: float | None
    answer_tokens: float | None
    cpu_seconds: float | None
    tokens_per_cpu_second: float | None


def costs(results: Sequence[Result]) -> Costs:
    """Return what runs cost."""
    tokens = [finite(at(result.measures, "tokens")) for result in results]
    seconds = [learning_time(result, "cpu_seconds") for result in results]
    both = [(spent, time) for spent, time in zip(tokens, seconds, strict=True) if spent is not None and time]
    speed = sum(spent for spent, _ in both) / sum(time for _, time in both) if both else None
    answers = average(final(result, "answer_tokens") for result in results)
    return Costs(count(results), average(tokens), answers, average(seconds), speed)


@dataclass(frozen=True)
class RunLine:
    """One run.

    Attributes:
        key: of the cell, also the name of its folder. status: "done", "failed" or "missing".
        optimality: after learning. error: "Type: message" of a failed run.
    """

    key: str
    seed: int
    status: str
    optimality: float | None
    error: str | None


@dataclass(frozen=True)
class AgentScores(Costs):
    """One agent on one problem. Values are the true ones, never clipped; means are over runs.

    Attributes:
        problem: index into the summary's problems.
        optimality, reward, gold, kl, objective: after learning.
        to_half, to_nine_tenths: what it took to reach an optimality of 0.5 and 0.9.
        runs: all of them, by seed.
    """

    agent: str
    problem: int
    optimality: Spread
    reward: Spread
    gold: Spread
    kl: Spread
    objective: Spread
    to_half: Crossing
    to_nine_tenths: Crossing
    runs: tuple[RunLine, ...]


def entries(grid: Grid, seed: int, agents: Sequence[str]) -> list[AgentScores]:
    """Return entries by problem, then in the given order of the agents; pairs that no cell asks for have none."""
    return [
        _entry(agent, problem.index, problem.label, results, seed)
        for problem in grid.problems
        for agent in agents
        if (results := grid.of(agent, problem.index))
    ]


def _entry(agent: str, problem: int, label: str, results: Sequence[Result], seed: int) -> AgentScores:
    spreads = {name: spread(results, name, generator_of(seed, name, agent, label)) for name in MEASURES}
    shared: JsonObject = vars(costs(results)) | spreads
    return AgentScores(
        **shared,
        agent=agent,
        problem=problem,
        to_half=crossing_of_runs(results, "to_half"),
        to_nine_tenths=crossing_of_runs(results, "to_nine_tenths"),
        runs=tuple(
            RunLine(
                key=result.cell.key,
                seed=result.cell.seed,
                status=result.status,
                optimality=final(result, "optimality"),
                error=f"{result.error['type']}: {result.error['message']}" if result.error else None,
            )
            for result in results
        ),
    )


def best_first(entries: Iterable[AgentScores]) -> list[AgentScores]:
    """Return entries of one problem by their optimality, those without one last."""
    return sorted(entries, key=lambda entry: (entry.optimality.value is None, -(entry.optimality.value or 0.0)))
