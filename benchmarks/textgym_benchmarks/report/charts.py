"""The sections with charts: what they say, what they are drawn from, and the tables of their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from textgym.checks import JsonObject
from textgym_benchmarks.report.tables import (
    Column,
    ColumnOf,
    ReportTable,
    Value,
    estimate,
    figure,
    figures,
    make_table,
    tinted,
)
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.charts import Band, Curve
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import Problem
from textgym_benchmarks.summaries.leaderboard import AgentRow

DIGITS = 5  # significant ones, enough for a screen
MEASURES = ("optimality", "reward", "gold", "kl")
SAME = 1e-6
"""Reward units: a gold reward closer than this to the reward is the same one."""


def chart_data(summary: Summary, agents: Mapping[str, int]) -> JsonObject:
    """Return what figures.js draws from; agents and problems are named by index."""
    curves: list[list[JsonObject]] = [[] for _ in summary.problems]
    for curve in summary.curves:
        curves[curve.problem].append(_curve_data(curve, agents[curve.agent]))
    return {
        "floor": summary.floor,
        "curves": curves,
        "profiles": [
            {
                "agent": agents[line.agent],
                "thresholds": list(summary.thresholds),
                "share": _rounded(line.share),
                "low": line.low and _rounded(line.low),
                "high": line.high and _rounded(line.high),
            }
            for line in summary.profiles
        ],
        "radar": {
            "axes": list(summary.radar.capabilities),
            "agents": [
                {"agent": agents[name], "values": _rounded(values)}
                for name, values in zip(summary.radar.agents, summary.radar.values, strict=True)
            ],
        },
        "throughput": [
            {
                "agent": agents[row.agent],
                "total": _round(row.tokens_per_cpu_second),
                "problems": [
                    {"problem": entry.problem, "value": _round(entry.tokens_per_cpu_second)}
                    for entry in summary.entries
                    if entry.agent == row.agent and entry.tokens_per_cpu_second
                ],
            }
            for row in summary.leaderboard
            if row.tokens_per_cpu_second
        ],
    }


def _curve_data(curve: Curve, agent: int) -> JsonObject:
    data = {"agent": agent, "episodes": _rounded(curve.episodes), "tokens": _rounded(curve.tokens)}
    for name in MEASURES:
        band: Band = getattr(curve, name)
        if any(value is not None for value in band.mean):
            data[name] = {part: _rounded(values) for part, values in vars(band).items()}
    return data


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [_round(value) for value in values]


@dataclass(frozen=True)
class Chart:
    """A section with a chart.

    Args:
        id: of the section, and the name of the function that draws it; templates/report.html has its texts.
        table: its numbers. problems: among which a reader chooses; none: it shows all.
        chosen: index of the problem that is shown first: the one with the most agents.
        drawn: False where the table itself is the picture.
    """

    id: str
    table: ReportTable
    problems: tuple[Problem, ...] = ()
    chosen: int = 0
    drawn: bool = True
    size: Literal["large", "square"] = "large"


def charts(summary: Summary, agents: Mapping[str, int]) -> list[Chart]:
    """Return all charts that there are numbers for, the learning curves left out."""
    with_kl = [entry for entry in summary.entries if entry.kl.value is not None]
    proxies = {entry.problem for entry in with_kl if _is_proxy(entry)}
    found = [
        *_frontier("frontier", summary, with_kl, agents),
        *_frontier("gold", summary, [entry for entry in with_kl if entry.problem in proxies], agents),
    ]
    if summary.profiles:
        found.append(Chart("profiles", _profile_table(summary)))
    if len(summary.pairwise.agents) > 1:
        pairs = _improvement_table(summary, agents)
        found.append(Chart("improvement", pairs, drawn=False))
    if len(summary.radar.tasks) > 2:
        found.append(Chart("radar", _radar_table(summary), size="square"))
    if any(row.tokens_per_cpu_second for row in summary.leaderboard):
        columns: list[ColumnOf[AgentRow]] = [
            (Column("Agent", numeric=False), lambda row: Value(row.agent, agent=agents[row.agent])),
            figures("Tokens per CPU second", "tokens_per_cpu_second", 0),
            figures("Tokens scored a run", "tokens", 0),
            figures("CPU seconds a run", "cpu_seconds", 1),
        ]
        shown = make_table(summary.leaderboard, columns)
        found.append(Chart("throughput", shown))
    return found


def _is_proxy(entry: Entry) -> bool:
    """Return whether runs were paid something else than the gold reward."""
    gold, reward = entry.gold.value, entry.reward.value
    return gold is not None and reward is not None and abs(gold - reward) > SAME


def _frontier(
    name: Literal["frontier", "gold"], summary: Summary, entries: Sequence[Entry], agents: Mapping[str, int]
) -> list[Chart]:
    """Return the chart of some entries; none without any."""
    if not entries:
        return []
    many = Counter(entry.problem for entry in entries)
    problems = tuple(problem for problem in summary.problems if problem.index in many)
    columns: list[ColumnOf[Entry]] = [
        (Column("Task", numeric=False), lambda entry: Value(summary.problems[entry.problem].label)),
        (Column("Agent", numeric=False), lambda entry: Value(entry.agent, agent=agents[entry.agent])),
        (Column("KL"), lambda entry: estimate(entry.kl)),
        (Column("Reward"), lambda entry: estimate(entry.reward)),
        (Column("Gold"), lambda entry: estimate(entry.gold)),
    ]
    chosen = max(problems, key=lambda problem: many[problem.index]).index
    return [Chart(name, make_table(entries, columns), problems, chosen)]


def curve_table(summary: Summary, problem: Problem) -> ReportTable:
    """Return the optimality of every agent by episodes, on one problem."""
    curves = [curve for curve in summary.curves if curve.problem == problem.index]
    columns: list[ColumnOf[float]] = [(Column("Episodes"), lambda episode: figure(episode, 0))]
    columns += [(Column(curve.agent), partial(_curve_value, curve)) for curve in curves]
    return make_table(sorted({episode for curve in curves for episode in curve.episodes}), columns)


def _curve_value(curve: Curve, episode: float) -> Value:
    if episode not in curve.episodes:
        return figure(None)
    place, band = curve.episodes.index(episode), curve.optimality
    return estimate(Interval(band.mean[place], band.low[place], band.high[place]), 2)


def _profile_table(summary: Summary) -> ReportTable:
    rows = [
        (figure(threshold, 1), *(figure(share, 2) for share in shares))
        for threshold, *shares in zip(summary.thresholds, *(line.share for line in summary.profiles), strict=True)
        if round(100 * threshold) % 10 == 0
    ]
    return ReportTable((Column("Above"), *(Column(line.agent) for line in summary.profiles)), tuple(rows))


def _improvement_table(summary: Summary, agents: Mapping[str, int]) -> ReportTable:
    pairs = summary.pairwise
    rows = [
        (
            Value(name, agent=agents[name]),
            *(
                Value("", sort=None) if pair is None else tinted(estimate(pair, 2), pair.value, middle=0.5)
                for pair in row
            ),
        )
        for name, row in zip(pairs.agents, pairs.rows, strict=True)
    ]
    return ReportTable((Column("", numeric=False), *(Column(name) for name in pairs.agents)), tuple(rows))


def _radar_table(summary: Summary) -> ReportTable:
    radar = summary.radar
    rows = [
        (Value(f"{capability} ({task})"), *(figure(score, 2) for score in scores))
        for task, capability, *scores in zip(radar.tasks, radar.capabilities, *radar.values, strict=True)
    ]
    return ReportTable((Column("Capability", numeric=False), *(Column(name) for name in radar.agents)), tuple(rows))
