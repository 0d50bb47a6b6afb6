"""The sections with charts: what they say, and the tables of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textgym_benchmarks.report.leaderboards import plain
from textgym_benchmarks.report.tables import Column, Table, Value, estimate, figure
from textgym_benchmarks.summaries.curves import Band, Curve
from textgym_benchmarks.summaries.grid import Problem
from textgym_benchmarks.summary import Summary

DIGITS = 5  # significant ones, enough for a screen
MEASURES = ("optimality", "reward", "gold", "kl")


def chart_data(summary: Summary, agents: Mapping[str, int]) -> dict[str, Any]:
    """What figures.js draws from; agents and problems are named by index."""
    curves: list[list[dict[str, Any]]] = [[] for _ in summary.problems]
    for curve in summary.curves:
        curves[curve.problem].append(_curve(curve, agents[curve.agent]))
    lines = summary.profiles
    radar = summary.radar
    return {
        "floor": summary.floor,
        "curves": curves,
        "profiles": [
            {
                "agent": agents[line.agent],
                "thresholds": list(summary.thresholds),
                "share": _rounded(line.share),
                "low": _rounded(line.low),
                "high": _rounded(line.high),
            }
            for line in lines
        ],
        "radar": {
            "axes": list(radar.capabilities),
            "agents": [
                {"agent": agents[name], "values": _rounded(values)}
                for name, values in zip(radar.agents, radar.values, strict=True)
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


def _curve(curve: Curve, agent: int) -> dict[str, Any]:
    measures = {name: _band(getattr(curve, name)) for name in MEASURES}
    known = {name: band for name, band in measures.items() if band}
    return {"agent": agent, "episodes": _rounded(curve.episodes), "tokens": _rounded(curve.tokens), **known}


def _band(band: Band) -> dict[str, Any] | None:
    if all(value is None for value in band.mean):
        return None
    return {name: _rounded(getattr(band, name)) for name in ("mean", "low", "high")}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _rounded(values: Sequence[float | None] | None) -> list[float | None] | None:
    return None if values is None else [_round(value) for value in values]


@dataclass(frozen=True)
class Chart:
    """A section with a chart.

    Args:
        id: of the section, and the name of the function that draws it. title, text: above it. short: its link.
        table: its numbers. problems: among which a reader chooses; none: it shows all.
        chosen: index of the problem that is shown first: the one with the most agents.
        drawn: False where the table itself is the picture. size: "large" or "square".
    """

    id: str
    short: str
    title: str
    text: str
    table: Table
    problems: tuple[Problem, ...] = ()
    chosen: int = 0
    drawn: bool = True
    size: str = "large"


CAPTIONS = {
    "frontier": (
        "Frontier",
        "Reward and KL",
        "The path of each agent during learning, means over seeds, its end marked large. On the dotted line the "
        "objective is that of the optimum, J = J*: no policy lies above it, but for errors of estimation.",
    ),
    "gold": (
        "Gold",
        "Gold against proxy",
        "Where the reward is a proxy: what it pays (dotted) and what the answers are worth (with marks), over the "
        "root of the KL to the reference. Where they part, the proxy is exploited.",
    ),
    "profiles": (
        "Profiles",
        "Performance profiles",
        "The share of runs above each optimality, with 95% bands; every task weighs the same. Higher is better; curves "
        "that cross have no order.",
    ),
    "improvement": (
        "Pairs",
        "Probability of improvement",
        "How often a run of the agent in the row beats one of the agent in the column on the same task, ties counted "
        "half, with 95% intervals.",
    ),
    "radar": (
        "Capabilities",
        "Capabilities",
        "Mean optimality on the diagnostic tasks, each about one capability. Scores are cut to [0, 1].",
    ),
    "throughput": (
        "Throughput",
        "Throughput",
        "Tokens of learning per CPU second of learning: all tasks together (large) and each task (small).",
    ),
}
"""Section -> its link, its title, and what a reader must know to read it."""


def charts(summary: Summary, agents: Mapping[str, int]) -> list[Chart]:
    """All charts that there are numbers for, the learning curves left out."""
    with_kl = _problems(summary, {point.problem for point in summary.frontier})
    proxies = _problems(summary, {point.problem for point in summary.frontier if point.proxy})
    found = []
    if with_kl:
        found.append(_by_problem("frontier", summary, with_kl, agents))
    if proxies:
        found.append(_by_problem("gold", summary, proxies, agents))
    if summary.profiles:
        found.append(_chart("profiles", _profile_table(summary)))
    if len(summary.pairwise.agents) > 1:
        found.append(_chart("improvement", _improvement_table(summary, agents), drawn=False))
    if len(summary.radar.tasks) > 2:
        found.append(_chart("radar", _radar_table(summary), size="square"))
    if any(row.tokens_per_cpu_second for row in summary.leaderboard):
        found.append(_chart("throughput", _throughput_table(summary, agents)))
    return found


def _by_problem(
    identifier: str, summary: Summary, problems: tuple[Problem, ...], agents: Mapping[str, int]
) -> Chart:
    names = {problem.index: set[str]() for problem in problems}
    for track in summary.frontier:
        if track.problem in names:
            names[track.problem].add(track.agent)
    chosen = max(names, key=lambda index: len(names[index]))
    return _chart(identifier, _frontier_table(summary, problems, agents), problems=problems, chosen=chosen)


def _chart(identifier: str, table: Table, **more: Any) -> Chart:
    return Chart(identifier, *CAPTIONS[identifier], table, **more)


def curve_table(summary: Summary, problem: Problem) -> Table:
    """Optimality of every agent by episodes, on one problem."""
    curves = [curve for curve in summary.curves if curve.problem == problem.index]
    by_episode = [dict(zip(curve.episodes, _points(curve.optimality), strict=True)) for curve in curves]
    rows = [
        (figure(episode, 0), *(estimate(points.get(episode), 2) for points in by_episode))
        for episode in sorted({episode for curve in curves for episode in curve.episodes})
    ]
    return Table((Column("Episodes"), *(Column(curve.agent) for curve in curves)), tuple(rows))


def _points(band: Band) -> list[dict[str, Any]]:
    ends = zip(band.mean, band.low, band.high, strict=True)
    return [{"mean": mean, "low": low, "high": high} for mean, low, high in ends]


def _problems(summary: Summary, indices: set[int]) -> tuple[Problem, ...]:
    return tuple(problem for problem in summary.problems if problem.index in indices)


def _frontier_table(summary: Summary, problems: Sequence[Problem], agents: Mapping[str, int]) -> Table:
    labels = {problem.index: problem.label for problem in problems}
    rows = [
        (
            Value(labels[entry.problem]),
            Value(entry.agent, agent=agents[entry.agent]),
            estimate(plain(entry.kl)),
            estimate(plain(entry.reward)),
            estimate(plain(entry.gold)),
        )
        for entry in summary.entries
        if entry.problem in labels and entry.kl.mean is not None
    ]
    columns = (
        Column("Task", numeric=False),
        Column("Agent", numeric=False),
        Column("KL"),
        Column("Reward"),
        Column("Gold"),
    )
    return Table(columns, tuple(rows))


def _profile_table(summary: Summary) -> Table:
    kept = [i for i, level in enumerate(summary.thresholds) if round(100 * level) % 10 == 0]
    rows = [
        (figure(summary.thresholds[i], 1), *(figure(line.share[i], 2) for line in summary.profiles))
        for i in kept
    ]
    return Table((Column("Above"), *(Column(line.agent) for line in summary.profiles)), tuple(rows))


def _improvement_table(summary: Summary, agents: Mapping[str, int]) -> Table:
    pairs = summary.pairwise
    rows = []
    for i, name in enumerate(pairs.agents):
        values = [Value(name, agent=agents[name])]
        for j in range(len(pairs.agents)):
            shown = estimate({"mean": pairs.value[i][j], "low": pairs.low[i][j], "high": pairs.high[i][j]}, 2)
            values.append(tinted(shown, pairs.value[i][j], middle=0.5) if i != j else Value("", sort=None))
        rows.append(tuple(values))
    return Table((Column("", numeric=False), *(Column(name) for name in pairs.agents)), tuple(rows))


def tinted(value: Value, score: float | None, middle: float = 0.0) -> Value:
    """A value coloured by how far a score is above or below the middle, in full at a distance of 1 - middle."""
    if score is None:
        return value
    strength = min(round(100 * abs(score - middle) / (1.0 - middle)), 100)
    tone = "low" if score < middle else value.tone
    return Value(value.text, value.note, value.sort, value.bar, value.href, value.agent, tone, strength)


def _radar_table(summary: Summary) -> Table:
    radar = summary.radar
    rows = [
        (Value(f"{capability} ({task})"), *(figure(values[i], 2) for values in radar.values))
        for i, (task, capability) in enumerate(zip(radar.tasks, radar.capabilities, strict=True))
    ]
    return Table((Column("Capability", numeric=False), *(Column(name) for name in radar.agents)), tuple(rows))


def _throughput_table(summary: Summary, agents: Mapping[str, int]) -> Table:
    rows = [
        (
            Value(row.agent, agent=agents[row.agent]),
            figure(row.tokens_per_cpu_second, 0),
            figure(row.tokens, 0),
            figure(row.cpu_seconds, 1),
        )
        for row in summary.leaderboard
    ]
    columns = (
        Column("Agent", numeric=False),
        Column("Tokens per CPU second"),
        Column("Tokens scored a run"),
        Column("CPU seconds a run"),
    )
    return Table(columns, tuple(rows))
