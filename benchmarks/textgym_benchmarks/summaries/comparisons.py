"""Agents side by side: performance profiles, who beats whom, and what each is capable of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textgym_benchmarks.statistics.comparisons import (
    REPLICATES,
    improvement_of_counts,
    performance_profile,
    run_counts,
)
from textgym_benchmarks.statistics.resampling import Floats
from textgym_benchmarks.summaries.grid import FLOOR, Grid, Problem, average, finals, generator_of

THRESHOLDS = tuple(round(FLOOR + 0.02 * step, 2) for step in range(106))
"""Of the profiles: from -1 to 1.1."""
TOLERANCE = 1e-9
"""Of exact scores, whose last digits are rounding."""
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


@dataclass(frozen=True)
class ProfileLine:
    """The share of an agent's runs above each of `thresholds`, every problem weighing the same, with a band.

    Attributes:
        low, high: None where no problem has two runs. tasks, of_tasks: problems with a score, and all of `common`.
    """

    agent: str
    share: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    tasks: int
    of_tasks: int


@dataclass(frozen=True)
class Pairwise:
    """P(a run of the row's agent beats one of the column's on the same problem), ties half.

    Attributes:
        agents: of the rows and of the columns. value, low, high: by row and column; None where there is nothing to
            compare (no shared problem; the diagonal) or no interval. tasks: problems that both have a score on.
    """

    agents: tuple[str, ...]
    value: tuple[tuple[float | None, ...], ...]
    low: tuple[tuple[float | None, ...], ...]
    high: tuple[tuple[float | None, ...], ...]
    tasks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Radar:
    """Mean optimality per diagnostic task, clipped to [0, 1] for the chart.

    Attributes:
        tasks, capabilities: of the axes. agents: of the shapes.
        values: by agent and axis; None where the agent has no score.
        clipped: runs whose score was outside [0, 1].
    """

    tasks: tuple[str, ...]
    capabilities: tuple[str, ...]
    agents: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    clipped: int


def profiles(grid: Grid, seed: int, agents: Sequence[str], problems: Sequence[Problem]) -> list[ProfileLine]:
    """Profiles of agents over the problems that they are compared on."""
    lines = []
    for agent in agents:
        strata = grid.strata(agent, problems)
        if not len(strata.values):
            continue
        profile = performance_profile(strata, THRESHOLDS, generator_of(seed, "profile", agent))
        share, low, high = (_tuple(part) for part in (profile.share, profile.low, profile.high))
        assert share is not None
        lines.append(ProfileLine(agent, share, low, high, len(strata.present), strata.tasks))
    return lines


def pairwise(grid: Grid, seed: int, agents: Sequence[str]) -> Pairwise:
    """All pairs of agents, each from the same draws of its runs."""
    strata = [grid.strata(agent) for agent in agents]
    counts = [
        run_counts(each, REPLICATES, generator_of(seed, "pairwise", agent))
        for each, agent in zip(strata, agents, strict=True)
    ]
    size = len(agents)
    value, low, high = (np.full((size, size), np.nan) for _ in range(3))
    tasks = np.zeros((size, size), dtype=int)
    for i in range(size):
        tasks[i, i] = len(strata[i].present)
        for j in range(i + 1, size):
            found = improvement_of_counts(strata[i], strata[j], counts[i], counts[j])
            tasks[i, j] = tasks[j, i] = found.tasks
            if found.value is not None:
                value[i, j], value[j, i] = found.value, 1.0 - found.value
            if found.low is not None and found.high is not None:
                low[i, j], high[i, j] = found.low, found.high
                low[j, i], high[j, i] = 1.0 - found.high, 1.0 - found.low
    return Pairwise(tuple(agents), _rows(value), _rows(low), _rows(high), tuple(map(tuple, tasks.tolist())))


def radar(grid: Grid, agents: Sequence[str]) -> Radar:
    """Axes are the diagnostic tasks among the problems; variants of one task share its axis."""
    problems = {
        name: [p for p in grid.problems if p.id.partition("/")[2].rpartition("-v")[0] == name]
        for name in CAPABILITIES
    }
    tasks = [name for name in CAPABILITIES if problems[name]]
    scores = {
        (agent, name): [finals(grid.of(agent, problem.index), "optimality") for problem in problems[name]]
        for agent in agents
        for name in tasks
    }
    values = tuple(
        tuple(
            average(average(min(max(s, 0.0), 1.0) for s in row) for row in scores[agent, name])
            for name in tasks
        )
        for agent in agents
    )
    outside = sum(
        not -TOLERANCE <= s <= 1.0 + TOLERANCE for rows in scores.values() for row in rows for s in row
    )
    return Radar(
        tuple(tasks), tuple(CAPABILITIES[name] for name in tasks), tuple(agents), values, int(outside)
    )


def _tuple(values: Floats | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values.tolist())


def _rows(values: Floats) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in values)
