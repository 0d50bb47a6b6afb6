"""The table of every problem: each agent's scores on it, its costs, and the fate of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries.crossings import Crossing, crossing_of_runs
from textgym_benchmarks.summaries.grid import (
    MEASURES,
    Grid,
    Spread,
    at,
    average,
    final,
    generator_of,
    learning_time,
    number,
    spread,
)
from textgym_benchmarks.summaries.leaderboard import Counts, count, tokens_per_cpu_second


@dataclass(frozen=True)
class RunLine:
    """One run.

    Attributes:
        key: of the cell, also the name of its folder. status: "done", "failed" or "missing".
        optimality, reward: after learning. error: "Type: message" of a failed run.
    """

    key: str
    seed: int
    status: str
    optimality: float | None
    reward: float | None
    error: str | None


@dataclass(frozen=True)
class Entry:
    """One agent on one problem. Values are the true ones, never clipped; means are over runs.

    Attributes:
        problem: index into the summary's problems.
        optimality, reward, gold, kl, objective: after learning.
        episodes, tokens, length, stop_rate: means over finished runs; tokens are those that were scored in learning.
        answer_tokens: the same, of what was scored for an answer after learning; None where the results do not tell.
        seconds, cpu_seconds: the same, of learning alone. tokens_per_cpu_second: all tokens over these CPU seconds.
        runs: all of them, by seed.
    """

    agent: str
    problem: int
    counts: Counts
    optimality: Spread
    reward: Spread
    gold: Spread
    kl: Spread
    objective: Spread
    episodes: float | None
    tokens: float | None
    answer_tokens: float | None
    length: float | None
    stop_rate: float | None
    seconds: float | None
    cpu_seconds: float | None
    tokens_per_cpu_second: float | None
    to_half: Crossing
    to_nine_tenths: Crossing
    runs: tuple[RunLine, ...]


def entries(grid: Grid, seed: int, agents: Sequence[str]) -> list[Entry]:
    """Entries by problem, then in the given order of the agents; pairs that no cell asks for have none."""
    return [
        _entry(agent, problem.index, problem.label, results, seed)
        for problem in grid.problems
        for agent in agents
        if (results := grid.of(agent, problem.index))
    ]


def _entry(agent: str, problem: int, label: str, results: Sequence[Result], seed: int) -> Entry:
    spreads = {name: spread(results, name, generator_of(seed, name, agent, label)) for name in MEASURES}
    return Entry(
        agent=agent,
        problem=problem,
        counts=count(results),
        **spreads,
        episodes=average(number(at(result.measures, "episodes")) for result in results),
        tokens=average(number(at(result.measures, "tokens")) for result in results),
        answer_tokens=average(final(result, "answer_tokens") for result in results),
        length=average(final(result, "length") for result in results),
        stop_rate=average(final(result, "stop_rate") for result in results),
        seconds=average(learning_time(result, "seconds") for result in results),
        cpu_seconds=average(learning_time(result, "cpu_seconds") for result in results),
        tokens_per_cpu_second=tokens_per_cpu_second(results),
        to_half=crossing_of_runs(results, "half"),
        to_nine_tenths=crossing_of_runs(results, "nine_tenths"),
        runs=tuple(_line(result) for result in results),
    )


def _line(result: Result) -> RunLine:
    error = None
    if result.error is not None:
        error = f"{at(result.error, 'type')}: {at(result.error, 'message')}"
    return RunLine(
        key=result.cell.key,
        seed=result.cell.seed,
        status=result.status,
        optimality=final(result, "optimality"),
        reward=final(result, "reward"),
        error=error,
    )
