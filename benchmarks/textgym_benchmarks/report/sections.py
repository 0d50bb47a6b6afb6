"""The sections of the index: leaderboards, scores by task, and charts with the tables of their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from textgym.checks import JsonObject
from textgym_benchmarks.pages import number
from textgym_benchmarks.report.curves import curve_data, rounded
from textgym_benchmarks.report.tables import (
    Column,
    ColumnOf,
    ReportTable,
    Value,
    bar_scale,
    draw_bar,
    estimate,
    figure,
    figures,
    make_table,
    timed,
    tinted,
)
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics import Aggregate
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.entries import AgentScores, Costs, best_first
from textgym_benchmarks.summaries.grid import FLOOR, RankedTask, Spread, agent_names, make_grid
from textgym_benchmarks.summaries.leaderboard import AgentRow, comparison, leaderboard

SAME = 1e-6
"""Reward units: a gold reward closer than this to the reward is the same one."""
_FLOOR = number(FLOOR, 0)
_COMMON = "Interquartile mean of all runs on the common tasks"
_FAILURES = f"The same with each failed run counted as {_FLOOR}"
_OWN = "Interquartile mean over all tasks that the agent was given"
_SPEED = "Tokens per CPU second of learning, all tasks together"
_OVER = "How often a run scores above the reference, ties counted half"
_REACHED = "Tasks on which the median run reaches an optimality of 0.9, of those with a score"
_TOKENS_TO = "Tokens scored until the median run reaches an optimality of {}"
_ANSWER = "Tokens scored to find one answer, after learning"


@dataclass(frozen=True)
class Scope:
    """A leaderboard over some of the tasks.

    Args:
        id: of the page's element. label: in the list of scopes. group: of that list, "" for none.
        table: the leaderboard.
        rows: agents over several tasks; none over one. sizes: the tasks that agents are ranked on, and all.
    """

    id: str
    label: str
    group: str
    table: ReportTable
    rows: Sequence[AgentRow] = ()
    sizes: tuple[int, int] = (1, 1)


def scopes(summary: Summary, results: Sequence[Result], agents: Mapping[str, int]) -> list[Scope]:
    """Return all scopes: over everything, over each family where there are several, of each task."""
    rows, sizes = summary.leaderboard, (len(summary.common), len(summary.problems))
    found = [Scope("all", "All tasks", "", _over_tasks(rows, sizes, agents), rows, sizes)]
    names = agent_names(results)
    for place, family in enumerate(summary.families if len(summary.families) > 1 else ()):
        grid = make_grid([result for result in results if result.family == family], names)
        rows = tuple(leaderboard(grid, summary.seed))
        sizes = (len(comparison(grid).problems), len(grid.problems))
        shown = _over_tasks(rows, sizes, agents)
        found.append(Scope(f"family-{place}", family.capitalize(), "Families", shown, rows, sizes))
    for problem in summary.problems:
        shown = _of_task([entry for entry in summary.entries if entry.problem == problem.index], agents)
        found.append(Scope(f"task-{problem.index}", problem.label, problem.family.capitalize(), shown))
    return found


def groups(found: Sequence[Scope]) -> list[tuple[str, list[Scope]]]:
    """Return scopes by the group of the list that they stand in."""
    names = dict.fromkeys(scope.group for scope in found)
    return [(name, [scope for scope in found if scope.group == name]) for name in names]


def _over_tasks(rows: Sequence[AgentRow], sizes: tuple[int, int], agents: Mapping[str, int]) -> ReportTable:
    scale = bar_scale(row.common for row in rows)

    def own(row: AgentRow) -> Value:
        return replace(figure(row.iqm.value, 2), note="" if row.iqm.value is None else f"on {row.iqm.tasks}")

    def tasks_to(row: AgentRow) -> Value:
        reached, of = row.to_nine_tenths.reached, row.to_nine_tenths.of
        return Value(f"{reached} of {of}", sort=reached / of) if of else figure(None)

    failures = figures(f"Failures as {_FLOOR}", "common_with_failures", 2, _FAILURES)
    given_more = any(row.common is None for row in rows) or sizes[0] < sizes[1]
    columns: list[ColumnOf[AgentRow]] = [
        agent_column(agents, descending=False),
        (Column("Optimality", _COMMON, bar=True, sorted=True), lambda row: _score(row.common, scale)),
        *([failures] * any(row.counts.failed for row in rows)),
        *([(Column("Own tasks", _OWN), own)] * given_more),
        figures("Mean", "mean.value", 2, "Mean over the tasks that the agent was given"),
        figures("Median", "median.value", 2, "Median over the tasks that the agent was given"),
        figures("Above ref.", "over_reference.value", 2, _OVER),
        (Column("Tasks to 0.9", _REACHED), tasks_to),
        figures("Tokens/s", "tokens_per_cpu_second", 0, _SPEED),
        *_run_columns(rows),
    ]
    return make_table(rows, columns, sortable=True)


def _of_task(entries: Sequence[AgentScores], agents: Mapping[str, int]) -> ReportTable:
    scale = bar_scale(entry.optimality for entry in entries)

    gold = figures("Gold", "gold.value", title="The reward that the task is really about")
    columns: list[ColumnOf[AgentScores]] = [
        agent_column(agents, descending=False),
        (Column("Optimality", "Mean over seeds", bar=True, sorted=True), lambda entry: _score(entry.optimality, scale)),
        figures("Reward", "reward.value"),
        *([gold] * any(entry.gold.value is not None for entry in entries)),
        figures("KL", "kl.value", title="To the reference, nats an answer", descending=False),
        figures("J", "objective.value", title="Reward less beta times KL"),
        figures("Tokens to 0.5", "to_half.tokens", 0, _TOKENS_TO.format("0.5"), descending=False),
        figures("Tokens to 0.9", "to_nine_tenths.tokens", 0, _TOKENS_TO.format("0.9"), descending=False),
        figures("Scored an answer", "answer_tokens", 0, _ANSWER, descending=False),
        *_run_columns(entries),
    ]
    return make_table(best_first(entries), columns, sortable=True)


def _score(found: Aggregate | Spread | None, scale: tuple[float, float]) -> Value:
    """Return an optimality with its bar, and how many runs it stands on where some have none."""
    shown = estimate(found, 2, draw_bar(found, scale))
    if found is None or found.value is None or found.runs == found.of_runs:
        return shown
    return replace(shown, note=f"{shown.note} {found.runs} of {found.of_runs} runs".strip())


def agent_column(agents: Mapping[str, int], descending: bool = True) -> ColumnOf[AgentRow | AgentScores]:
    """Return the column of agents. Args: agents: name -> index of its style."""
    return Column("Agent", numeric=False, descending=descending), lambda row: Value(row.agent, agent=agents[row.agent])


def _run_columns(rows: Sequence[Costs]) -> list[ColumnOf[Costs]]:
    """Return how many runs are done, and how many failed where any has."""

    def done(row: Costs) -> Value:
        return Value(f"{row.counts.done} of {row.counts.planned}", sort=row.counts.done)

    def failed(row: Costs) -> Value:
        many = row.counts.failed
        return Value(str(many), sort=many, tone="bad" if many else "soft")

    return [(Column("Runs"), done), *([(Column("Failed"), failed)] * any(row.counts.failed for row in rows))]


def matrix(summary: Summary) -> ReportTable:
    """Return mean optimality by task and agent."""
    entries = {(entry.problem, entry.agent): entry for entry in summary.entries}

    def score(name: str, problem: RankedTask) -> Value:
        return _matrix_value(entries.get((problem.index, name)))

    columns: list[ColumnOf[RankedTask]] = [
        (Column("Task", numeric=False, descending=False), lambda problem: Value(problem.label)),
        *((Column(name), partial(score, name)) for name in summary.agents),
    ]
    return make_table(summary.problems, columns, sortable=True)


def _matrix_value(entry: AgentScores | None) -> Value:
    if entry is None:
        return Value("", sort=None)
    counts, score = entry.counts, entry.optimality.value
    if score is None:
        if counts.done:
            return figure(None)
        text, tone = ("failed", "bad") if counts.failed else ("missing", "soft")
        return Value(text, sort=None, tone=tone)
    note = f"{entry.optimality.runs} of {counts.planned}" if entry.optimality.runs < counts.planned else ""
    return tinted(Value(number(score, 2), note, score), score)


def chart_data(summary: Summary, agents: Mapping[str, int]) -> JsonObject:
    """Return what figures.js draws from; agents and problems are named by index."""
    curves: list[list[JsonObject]] = [[] for _ in summary.problems]
    for curve in summary.curves:
        curves[curve.problem].append(curve_data(curve, agents[curve.agent]))
    return {
        "floor": summary.floor,
        "curves": curves,
        "profiles": [
            {
                "agent": agents[line.agent],
                "thresholds": list(summary.thresholds),
                "share": rounded(line.share),
                "low": line.low and rounded(line.low),
                "high": line.high and rounded(line.high),
            }
            for line in summary.profiles
        ],
        "radar": {
            "axes": list(summary.radar.capabilities),
            "agents": [
                {"agent": agents[name], "values": rounded(values)}
                for name, values in zip(summary.radar.agents, summary.radar.values, strict=True)
            ],
        },
        "throughput": [
            {
                "agent": agents[row.agent],
                "total": rounded([row.tokens_per_cpu_second])[0],
                "problems": [
                    {"problem": entry.problem, "value": rounded([entry.tokens_per_cpu_second])[0]}
                    for entry in summary.entries
                    if entry.agent == row.agent and entry.tokens_per_cpu_second
                ],
            }
            for row in summary.leaderboard
            if row.tokens_per_cpu_second
        ],
    }


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
    problems: tuple[RankedTask, ...] = ()
    chosen: int = 0
    drawn: bool = True
    size: Literal["large", "square"] = "large"


def charts(summary: Summary, agents: Mapping[str, int]) -> list[Chart]:
    """Return all charts that there are numbers for, the learning curves left out."""
    with_kl = [entry for entry in summary.entries if entry.kl.value is not None]
    proxies = {entry.problem for entry in with_kl if is_proxy(entry)}
    found = [
        *_frontier("frontier", summary, with_kl, agents),
        *_frontier("gold", summary, [entry for entry in with_kl if entry.problem in proxies], agents),
    ]
    if summary.profiles:
        found.append(Chart("profiles", _profile_table(summary)))
    if len(summary.pairwise.agents) > 1:
        found.append(Chart("improvement", _improvement_table(summary, agents), drawn=False))
    if len(summary.radar.tasks) > 2:
        found.append(Chart("radar", _radar_table(summary), size="square"))
    if any(row.tokens_per_cpu_second for row in summary.leaderboard):
        columns: list[ColumnOf[AgentRow]] = [
            agent_column(agents),
            figures("Tokens per CPU second", "tokens_per_cpu_second", 0),
            figures("Tokens scored a run", "tokens", 0),
            (Column("CPU seconds a run"), lambda row: timed(row.cpu_seconds)),
        ]
        found.append(Chart("throughput", make_table(summary.leaderboard, columns)))
    return found


def is_proxy(entry: AgentScores) -> bool:
    """Return whether runs were paid something else than the gold reward."""
    gold, reward = entry.gold.value, entry.reward.value
    return gold is not None and reward is not None and abs(gold - reward) > SAME


def _frontier(
    name: Literal["frontier", "gold"], summary: Summary, entries: Sequence[AgentScores], agents: Mapping[str, int]
) -> list[Chart]:
    """Return the chart of some entries; none without any."""
    if not entries:
        return []
    many = Counter(entry.problem for entry in entries)
    problems = tuple(problem for problem in summary.problems if problem.index in many)
    columns: list[ColumnOf[AgentScores]] = [
        (Column("Task", numeric=False), lambda entry: Value(summary.problems[entry.problem].label)),
        agent_column(agents),
        (Column("KL"), lambda entry: estimate(entry.kl)),
        (Column("Reward"), lambda entry: estimate(entry.reward)),
        (Column("Gold"), lambda entry: estimate(entry.gold)),
    ]
    chosen = max(problems, key=lambda problem: many[problem.index]).index
    return [Chart(name, make_table(entries, columns), problems, chosen)]


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
