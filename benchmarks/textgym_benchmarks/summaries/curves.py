"""Learning curves, and where runs stand between reward and KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics.comparisons import mean_of_runs
from textgym_benchmarks.statistics.resampling import Floats
from textgym_benchmarks.summaries.grid import MEASURES, Grid, at, generator_of, number

Numbers = tuple[float | None, ...]
SAME = 1e-6
"""Reward units: a gold reward closer than this to the reward is the same one."""


@dataclass(frozen=True)
class Band:
    """A mean over runs at every point of a curve, its 95% interval (None: fewer than two runs), and the runs."""

    mean: Numbers
    low: Numbers
    high: Numbers
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """How one agent learned on one problem, over the episodes that all its runs reach.

    A run that was evaluated at other episodes is read off by linear interpolation.

    Attributes:
        problem: index into the summary's problems.
        episodes: the grid. tokens, seconds: means over runs.
        optimality, reward, gold, kl, objective: bands; every entry of `mean` is None where no run has the measure.
    """

    agent: str
    problem: int
    episodes: tuple[float, ...]
    tokens: Numbers
    seconds: Numbers
    optimality: Band
    reward: Band
    gold: Band
    kl: Band
    objective: Band


@dataclass(frozen=True)
class Track:
    """The evaluations of one run between reward and KL, those of its learning curve and then the final one.

    Evaluations without a reward or a KL are not there; the final one has the most completions.

    Attributes:
        problem: index into the summary's problems. key: of the cell.
        proxy: whether the run was paid something else than the gold reward.
        episodes, reward: (K,). kl: (K,) nats per sequence. sqrt_kl: (K,) its root; 0 for an estimate below 0.
        gold: (K,) None where there is none.
    """

    agent: str
    problem: int
    key: str
    seed: int
    proxy: bool
    episodes: Numbers
    kl: tuple[float, ...]
    sqrt_kl: tuple[float, ...]
    reward: tuple[float, ...]
    gold: Numbers


def curves(grid: Grid, seed: int, agents: Sequence[str]) -> list[Curve]:
    """Curves by problem, then in the given order of the agents; none where no run has a curve."""
    found = []
    for problem in grid.problems:
        for agent in agents:
            runs = [run for run in grid.of(agent, problem.index) if at(run.measures, "curve")]
            if runs:
                found.append(_curve(agent, problem.index, problem.label, runs, seed))
    return found


def frontier(grid: Grid, agents: Sequence[str]) -> list[Track]:
    """Every run that has a reward and a KL anywhere, in the order of the curves and then by seed."""
    tracks = (
        _track(agent, problem.index, run)
        for problem in grid.problems
        for agent in agents
        for run in grid.of(agent, problem.index)
    )
    return [track for track in tracks if track.kl]


def _track(agent: str, problem: int, result: Result) -> Track:
    rows = [
        tuple(number(row.get(name)) for name in ("episode", "kl", "reward", "gold"))
        for row in at(result.measures, "curve") or []
    ]
    after = (number(at(result.measures, "after", name, "mean")) for name in ("kl", "reward", "gold"))
    rows.append((number(at(result.measures, "episodes")), *after))
    known = [
        (episode, kl, reward, gold)
        for episode, kl, reward, gold in rows
        if kl is not None and reward is not None
    ]
    return Track(
        agent=agent,
        problem=problem,
        key=result.cell.key,
        seed=result.cell.seed,
        proxy=any(gold is not None and abs(gold - reward) > SAME for _, _, reward, gold in known),
        episodes=tuple(episode for episode, _, _, _ in known),
        kl=tuple(kl for _, kl, _, _ in known),
        sqrt_kl=tuple(math.sqrt(max(kl, 0.0)) for _, kl, _, _ in known),
        reward=tuple(reward for _, _, reward, _ in known),
        gold=tuple(gold for _, _, _, gold in known),
    )


def _curve(agent: str, problem: int, label: str, runs: Sequence[Result], seed: int) -> Curve:
    episodes = [np.array([row["episode"] for row in at(run.measures, "curve")], float) for run in runs]
    grid = _common_grid(episodes)
    columns = {
        name: np.stack(
            [np.interp(grid, x, _column(run, name)) for run, x in zip(runs, episodes, strict=True)]
        )
        for name in (*MEASURES, "tokens", "seconds")
    }
    bands = {name: _band(columns[name], generator_of(seed, "curve", name, agent, label)) for name in MEASURES}
    return Curve(
        agent=agent,
        problem=problem,
        episodes=tuple(grid.tolist()),
        tokens=_numbers(_mean(columns["tokens"])),
        seconds=_numbers(_mean(columns["seconds"])),
        **bands,
    )


def _common_grid(episodes: Sequence[Floats]) -> Floats:
    """All episodes at which any run was evaluated, within what every run reaches."""
    low, high = max(run[0] for run in episodes), min(run[-1] for run in episodes)
    union = np.unique(np.concatenate(episodes))
    return np.asarray(union[(union >= low) & (union <= high)])


def _column(result: Result, name: str) -> Floats:
    """(K,) a column of the run's curve; NaN for null, and throughout for a clock that the result does not hold."""
    rows = at(result.measures, "curve")
    if name == "seconds":
        values = at(result.timing, "curve_seconds") or []
        values = values if len(values) == len(rows) else [None] * len(rows)
    else:
        values = [row.get(name) for row in rows]
    return np.array([number(value) for value in values], dtype=np.float64)


def _band(values: Floats, generator: np.random.Generator) -> Band:
    mean, low, high = mean_of_runs(values, generator)
    runs = (~np.isnan(values)).sum(0).tolist()
    return Band(_numbers(mean), _numbers(low), _numbers(high), tuple(runs))


def _mean(values: Floats) -> Floats:
    there = ~np.isnan(values)
    count = np.maximum(there.sum(0), 1)
    return np.where(there.any(0), np.where(there, values, 0.0).sum(0) / count, np.nan)


def _numbers(values: Floats) -> Numbers:
    return tuple(number(value) for value in values.tolist())
