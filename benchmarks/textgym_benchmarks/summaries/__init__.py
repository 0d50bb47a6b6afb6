"""The summary of a suite's results: everything that the report and RESULTS.md show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from textgym.checks import JsonObject
from textgym.files import plain
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics import CONFIDENCE
from textgym_benchmarks.summaries.by_reward import AcrossRewards, across_rewards
from textgym_benchmarks.summaries.charts import (
    THRESHOLDS,
    Curve,
    EqualSpending,
    Pairwise,
    ProfileLine,
    Radar,
    curves,
    equal_cpu_time,
    equal_tokens,
    pairwise,
    profiles,
    radar,
)
from textgym_benchmarks.summaries.entries import AgentScores, Counts, count, entries
from textgym_benchmarks.summaries.findings import Surprise, findings
from textgym_benchmarks.summaries.grid import FLOOR, RankedTask, make_grid
from textgym_benchmarks.summaries.leaderboard import AgentRow, Best, best_by_family, comparison, leaderboard


@dataclass(frozen=True)
class Summary:
    """Everything that is shown of the results of a suite.

    Attributes:
        agents: names, in the order of the leaderboard. problems: what they were compared on; entries and curves
            name them by index.
        counts: of all cells. common: labels of the problems that every ranked agent was given: ranks and profiles are
            over these.
        leaderboard: one row per agent. entries: one per agent and problem that a cell asks for.
        equal_tokens, equal_cpu_time: one per problem. curves: of the learning.
        thresholds: of the profiles.
        profiles, pairwise, radar: agents side by side. best: the best agent of every family.
        across: tasks that agents learned under several rewards.
        findings: failures and surprises.
        versions: package -> its versions in these results. machines: where they were made.
        floor: least optimality in aggregates. confidence, seed: of the intervals.
    """

    agents: tuple[str, ...]
    problems: tuple[RankedTask, ...]
    counts: Counts
    common: tuple[str, ...]
    leaderboard: tuple[AgentRow, ...]
    entries: tuple[AgentScores, ...]
    equal_tokens: tuple[EqualSpending, ...]
    equal_cpu_time: tuple[EqualSpending, ...]
    curves: tuple[Curve, ...]
    thresholds: tuple[float, ...]
    profiles: tuple[ProfileLine, ...]
    pairwise: Pairwise
    radar: Radar
    best: tuple[Best, ...]
    across: tuple[AcrossRewards, ...]
    findings: tuple[Surprise, ...]
    versions: Mapping[str, tuple[str, ...]]
    machines: tuple[str, ...]
    floor: float
    confidence: float
    seed: int

    def to_json(self) -> JsonObject:
        """Return all attributes as JSON values, numbers finite: dataclasses are objects, tuples are lists."""
        values: JsonObject = plain(asdict(self))
        return values

    @property
    def families(self) -> tuple[str, ...]:
        """The families of the problems, in their order."""
        return tuple(dict.fromkeys(problem.family for problem in self.problems))


def summarise(results: Sequence[Result], seed: int = 0) -> Summary:
    """Compute everything. The same results give the same summary, to the last bit.

    Args:
        results: in the order of the suite's cells; failed and missing ones included.
        seed: of the bootstrap.
    Raises: ValueError for no result, or for the same cell twice.
    """
    grid = make_grid(results)
    rows = leaderboard(grid, seed)
    agents = [row.agent for row in rows]
    ranked = [row.agent for row in rows if row.rank is not None]
    scored = [row.agent for row in rows if row.iqm.value is not None]
    compared = comparison(grid)
    table = entries(grid, seed, agents)
    versions: dict[str, dict[str, None]] = {}
    for result in results:
        for name, version in result.versions.items():
            versions.setdefault(name, {})[version] = None
    return Summary(
        agents=tuple(agents),
        problems=grid.problems,
        counts=count(results),
        common=tuple(problem.label for problem in compared.problems),
        leaderboard=tuple(rows),
        entries=tuple(table),
        equal_tokens=tuple(equal_tokens(grid, agents)),
        equal_cpu_time=tuple(equal_cpu_time(grid, agents)),
        curves=tuple(curves(grid, seed, agents)),
        thresholds=THRESHOLDS,
        profiles=tuple(profiles(grid, seed, ranked, compared.problems)),
        pairwise=pairwise(grid, seed, scored),
        radar=radar(grid, scored),
        best=tuple(best_by_family(grid)),
        across=tuple(across_rewards(grid, seed)),
        findings=tuple(findings(grid, rows, table)),
        versions={name: tuple(found) for name, found in sorted(versions.items())},
        machines=tuple(dict.fromkeys(result.machine for result in results if result.machine)),
        floor=FLOOR,
        confidence=CONFIDENCE,
        seed=seed,
    )
