"""The leaderboard over all tasks, over each family, and of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from textgym_benchmarks.pages import number
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
)
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.entries import Costs, Entry, best_first
from textgym_benchmarks.summaries.grid import FLOOR, make_grid
from textgym_benchmarks.summaries.leaderboard import AgentRow, comparison, leaderboard

_AGENT = Column("Agent", numeric=False, descending=False)
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
    """Return all scopes: over everything, over each family where there are several, of each task.

    Args:
        agents: name -> index of its style.
    """
    rows, sizes = summary.leaderboard, (len(summary.common), len(summary.problems))
    found = [Scope("all", "All tasks", "", _over_tasks(rows, sizes, agents), rows, sizes)]
    for place, family in enumerate(summary.families if len(summary.families) > 1 else ()):
        grid = make_grid([result for result in results if result.family == family])
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

    def score(row: AgentRow) -> Value:
        common = row.common
        shown = estimate(common, 2, draw_bar(common, scale))
        if common is None or common.runs == common.of_runs:
            return shown
        return replace(shown, note=f"{shown.note} {common.runs} of {common.of_runs} runs".strip())

    def own(row: AgentRow) -> Value:
        return replace(figure(row.iqm.value, 2), note="" if row.iqm.value is None else f"on {row.iqm.tasks}")

    def tasks_to(row: AgentRow) -> Value:
        reached, of = row.to_nine_tenths.reached, row.to_nine_tenths.of
        return Value(f"{reached} of {of}", sort=reached / of) if of else figure(None)

    failures = figures(f"Failures as {_FLOOR}", "common_with_failures", 2, _FAILURES)
    given_more = any(row.common is None for row in rows) or sizes[0] < sizes[1]
    columns: list[ColumnOf[AgentRow]] = [
        (_AGENT, partial(_agent, agents)),
        (Column("Optimality", _COMMON, bar=True, sorted=True), score),
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


def _of_task(entries: Sequence[Entry], agents: Mapping[str, int]) -> ReportTable:
    scale = bar_scale(entry.optimality for entry in entries)

    def score(entry: Entry) -> Value:
        return estimate(entry.optimality, 2, draw_bar(entry.optimality, scale))

    gold = figures("Gold", "gold.value", title="The reward that the task is really about")
    columns: list[ColumnOf[Entry]] = [
        (_AGENT, partial(_agent, agents)),
        (Column("Optimality", "Mean over seeds", bar=True, sorted=True), score),
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


def _agent(agents: Mapping[str, int], row: AgentRow | Entry) -> Value:
    return Value(row.agent, agent=agents[row.agent])


def _run_columns(rows: Sequence[Costs]) -> list[ColumnOf[Costs]]:
    """Return how many runs are done, and how many failed where any has."""

    def done(row: Costs) -> Value:
        return Value(f"{row.counts.done} of {row.counts.planned}", sort=row.counts.done)

    def failed(row: Costs) -> Value:
        many = row.counts.failed
        return Value(str(many), sort=many, tone="bad" if many else "soft")

    return [(Column("Runs"), done), *([(Column("Failed"), failed)] * any(row.counts.failed for row in rows))]
