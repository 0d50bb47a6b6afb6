"""The numbers of charts: learning curves, equal tokens, profiles, pairs of agents, capabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np

from textgym.checks import Floats
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics import (
    COMPARED_REPLICATES,
    Interval,
    improvement_of_counts,
    mean_of_runs,
    performance_profile,
    run_counts,
)
from textgym_benchmarks.summaries.grid import (
    FLOOR,
    MEASURES,
    Grid,
    RankedTask,
    at,
    average,
    finals,
    finite,
    generator_of,
)

Numbers = tuple[float | None, ...]
THRESHOLDS = tuple(round(FLOOR + 0.02 * step, 2) for step in range(106))
"""Of the profiles: from -1 to 1.1."""
CAPABILITIES = {
    "Bandit": "choosing among many",
    "BigVocab": "large vocabularies",
    "DeepSea": "exploring",
    "Deceptive": "resisting bait",
    "Delayed": "assigning credit",
    "Copy": "copying",
    "Reverse": "reordering",
    "Recall": "looking up",
    "Distractor": "ignoring distraction",
    "Stop": "stopping in time",
    "TwoModes": "keeping both modes",
    "Noisy": "bearing noise",
    "Scale": "any scale of reward",
    "BetaSweep": "any price of KL",
}
"""Diagnostic task -> what it tests; the order in which radars show them."""
CURVES = (*MEASURES, "entropy", "length")
"""Measures that curves show."""


@dataclass(frozen=True)
class Band:
    """A mean over runs at every point of a curve, and its 95% interval.

    That of a single run is of the completions that it was evaluated on; None where the run does not tell it.
    """

    mean: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Curve:
    """How one agent learned on one problem, over the episodes that all its runs reach.

    A run that was evaluated at other episodes is read off by linear interpolation. A run that is not finished has a
    curve of its own: a mean that it is in would end where it stands.

    Attributes:
        problem: index into the summary's problems.
        episodes: the grid. tokens: means over runs.
        optimality, reward, gold, kl, objective, entropy, length: bands; every entry of `mean` is None where no run has
            the measure.
        run: the run that it is of, as in "seed 0, running"; "" for the finished ones.
    """

    agent: str
    problem: int
    episodes: tuple[float, ...]
    tokens: Numbers
    optimality: Band
    reward: Band
    gold: Band
    kl: Band
    objective: Band
    entropy: Band
    length: Band
    run: str = ""

    @property
    def name(self) -> str:
        """The name of the agent, and of the run where it is of one that is not finished."""
        return f"{self.agent}, {self.run}" if self.run else self.agent


def curves(grid: Grid, seed: int, agents: Sequence[str]) -> list[Curve]:
    """Return curves by problem, then in the given order of the agents; none where no run has a curve."""
    found = []
    for problem in grid.problems:
        for agent in agents:
            runs = [run for run in grid.of(agent, problem.index) if run.known.get("curve")]
            done = [run for run in runs if run.measures]
            if done:
                found.append(_curve(agent, problem, done, seed))
            begun = (run for run in runs if not run.measures)
            found += [_curve(agent, problem, [run], seed, f"seed {run.cell.seed}, {run.state}") for run in begun]
    return found


def _curve(agent: str, problem: RankedTask, runs: Sequence[Result], seed: int, name: str = "") -> Curve:
    rows = [_column(run, "episode") for run in runs]
    low, high = max(row[0] for row in rows), min(row[-1] for row in rows)
    union = np.unique(np.concatenate(rows))
    episodes = union[(union >= low) & (union <= high)]

    def band(name: str) -> Band:
        if len(runs) == 1:
            return Band(*(_numbers(_column(runs[0], f"{name}{end}")) for end in ("", "_low", "_high")))
        values = [np.interp(episodes, x, _column(run, name)) for run, x in zip(runs, rows, strict=True)]
        generator = generator_of(seed, "curve", name, agent, problem.label)
        mean, low, high = map(_numbers, mean_of_runs(np.stack(values), generator))
        return Band(mean, low, high)

    return Curve(
        agent=agent,
        problem=problem.index,
        episodes=tuple(episodes.tolist()),
        tokens=band("tokens").mean,
        **{name: band(name) for name in CURVES},
        run=name,
    )


def _column(result: Result, name: str) -> Floats:
    """Return (K,) a column of the run's curve, at its last point after so many episodes; NaN for null."""
    last = {row["episode"]: row for row in result.known["curve"]}
    return np.array([finite(row.get(name)) for row in last.values()], dtype=np.float64)


def _numbers(values: Floats) -> Numbers:
    return tuple(finite(value) for value in values.tolist())


@dataclass(frozen=True)
class EqualSpending:
    """Where the agents of a problem stand when they have spent the same.

    Attributes:
        problem: index into the summary's problems.
        spent: tokens scored, or CPU seconds of learning; None where no run that learns tells both that and optimality.
        optimality: agent -> mean over its runs, read off their curves by linear interpolation; None where a curve does
            not get that far, as that of an agent which learns nothing, or is not known from there on.
    """

    problem: int
    spent: float | None
    optimality: dict[str, float | None]


Spent = Callable[[Result], Sequence[float] | None]
"""What a run had spent at each point of its curve."""


def equal_tokens(grid: Grid, agents: Sequence[str]) -> list[EqualSpending]:
    """Return one for each problem, at the least number of tokens that a run used; agents in the given order."""
    return [_equal(grid, problem.index, agents, _tokens, min) for problem in grid.problems]


def equal_cpu_time(grid: Grid, agents: Sequence[str]) -> list[EqualSpending]:
    """Return one for each problem, at the median over runs of their CPU seconds of learning; agents in the given order.

    A run that was through with its episodes before has its last value.
    """
    return [_equal(grid, problem.index, agents, cpu_seconds, median, held=True) for problem in grid.problems]


def _equal(
    grid: Grid,
    problem: int,
    agents: Sequence[str],
    spent: Spent,
    budget_of: Callable[[Sequence[float]], float],
    held: bool = False,
) -> EqualSpending:
    runs = {agent: _scored(grid.of(agent, problem), spent) for agent in agents}
    ends = [points[-1][0] for rows in runs.values() for points in rows if points[-1][0] > 0]
    budget = budget_of(ends) if ends else None
    scores = {agent: _score_at(rows, budget, held) for agent, rows in runs.items() if rows}
    return EqualSpending(problem, budget, scores)


def _tokens(result: Result) -> list[float]:
    return [point["tokens"] for point in at(result.measures, "curve") or ()]


def cpu_seconds(result: Result) -> Sequence[float] | None:
    """Return the CPU seconds of learning at each point of a run's curve; None where the run does not tell.

    Where it tells the seconds of the clock alone, CPU time is taken to have passed evenly in them. A run that scored no
    token has learned nothing, and spent nothing.
    """
    timing = result.timing or {}
    if not at(result.measures, "tokens"):
        return [0.0] * len(at(result.measures, "curve") or ())
    if (found := timing.get("curve_cpu_seconds")) is not None:
        return list(found)
    clock, wall, cpu = (timing.get(name) for name in ("curve_seconds", "learning_seconds", "learning_cpu_seconds"))
    return [each * cpu / wall for each in clock] if clock and wall and cpu else None


def _scored(results: Sequence[Result], spent: Spent) -> list[list[tuple[float, float]]]:
    """Return what was spent and the optimality along each run that has both somewhere."""
    found = []
    for result in results:
        amounts, curve = spent(result), at(result.measures, "curve") or ()
        if amounts is not None and len(amounts) == len(curve):
            pairs = [(amount, point.get("optimality")) for amount, point in zip(amounts, curve, strict=True)]
            found.append([pair for pair in pairs if None not in pair])
    return [points for points in found if points]


def _score_at(rows: Sequence[Sequence[tuple[float, float]]], budget: float | None, held: bool) -> float | None:
    spans = [(points[0][0], points[-1][0]) for points in rows]
    if budget is None or not all(start <= budget and (end > 0 if held else end >= budget) for start, end in spans):
        return None
    return fmean(float(np.interp(budget, *np.transpose(points))) for points in rows)


@dataclass(frozen=True)
class ProfileLine:
    """The share of an agent's runs above each of `thresholds`, every problem weighing the same, with a band.

    Attributes:
        low, high: None where no problem has two runs.
    """

    agent: str
    share: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def profiles(grid: Grid, seed: int, agents: Sequence[str], problems: Sequence[RankedTask]) -> list[ProfileLine]:
    """Return the profiles of agents over the problems that they are compared on."""
    lines = []
    for agent in agents:
        strata = grid.strata(agent, problems)
        if strata.runs:
            profile = performance_profile(strata, THRESHOLDS, generator_of(seed, "profile", agent))
            share, low, high = (None if part is None else tuple(part.tolist()) for part in profile)
            assert share is not None
            lines.append(ProfileLine(agent, share, low, high))
    return lines


@dataclass(frozen=True)
class Pairwise:
    """P(a run of the row's agent beats one of the column's on the same problem), ties half.

    Attributes:
        agents: of the rows and of the columns.
        rows: None on the diagonal; an interval without a value where the two share no problem.
    """

    agents: tuple[str, ...]
    rows: tuple[tuple[Interval | None, ...], ...]


def pairwise(grid: Grid, seed: int, agents: Sequence[str]) -> Pairwise:
    """Compare all pairs of agents, each from the same draws of its runs."""
    strata = [grid.strata(agent) for agent in agents]
    generators = (generator_of(seed, "pairwise", agent) for agent in agents)
    counts = [run_counts(each, COMPARED_REPLICATES, own) for each, own in zip(strata, generators, strict=True)]
    rows: list[list[Interval | None]] = [[None] * len(agents) for _ in agents]
    for i, j in combinations(range(len(agents)), 2):
        found = improvement_of_counts(strata[i], strata[j], counts[i], counts[j])
        rows[i][j] = found
        value, low, high = (None if p is None else 1.0 - p for p in (found.value, found.high, found.low))
        rows[j][i] = Interval(value, low, high)
    return Pairwise(tuple(agents), tuple(map(tuple, rows)))


@dataclass(frozen=True)
class Radar:
    """Mean optimality per diagnostic task, clipped to [0, 1] for the chart.

    Attributes:
        tasks, capabilities: of the axes. agents: of the shapes.
        values: by agent and axis; None where the agent has no score.
    """

    tasks: tuple[str, ...]
    capabilities: tuple[str, ...]
    agents: tuple[str, ...]
    values: tuple[Numbers, ...]


def radar(grid: Grid, agents: Sequence[str]) -> Radar:
    """Return the diagnostic tasks among the problems as axes; variants of one task share its axis."""
    problems: dict[str, list[RankedTask]] = {name: [] for name in CAPABILITIES}
    for problem in grid.problems:
        name = problem.id.partition("/")[2].rpartition("-v")[0]
        if name in CAPABILITIES:
            problems[name].append(problem)
    tasks = [name for name in CAPABILITIES if problems[name]]

    def mean(agent: str, task: str) -> float | None:
        rows = [finals(grid.of(agent, problem.index), "optimality") for problem in problems[task]]
        return average(average(min(max(score, 0.0), 1.0) for score in runs) for runs in rows)

    return Radar(
        tasks=tuple(tasks),
        capabilities=tuple(CAPABILITIES[name] for name in tasks),
        agents=tuple(agents),
        values=tuple(tuple(mean(agent, task) for task in tasks) for agent in agents),
    )
