"""The leaderboard over all tasks, over each family, and of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from textgym_benchmarks.pages.html import number
from textgym_benchmarks.report.tables import (
    Column,
    Table,
    Value,
    bar,
    bar_scale,
    estimate,
    figure,
)
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics.resampling import Aggregate
from textgym_benchmarks.summaries.crossings import Crossing
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import FLOOR, Spread, make_grid
from textgym_benchmarks.summaries.leaderboard import Counts, Row, comparison, leaderboard
from textgym_benchmarks.summary import Summary

_FLOOR = number(FLOOR, 0)
_REACHED = "Tasks on which the median run reaches an optimality of 0.9, of those with a score"
_OVER = "How often a run scores above the reference, ties counted half"


@dataclass(frozen=True)
class Scope:
    """A leaderboard over some of the tasks.

    Args:
        id: of the page's element. label: in the list of scopes. group: of that list, "" for none.
        table: the leaderboard. note: what a reader must know of it.
    """

    id: str
    label: str
    group: str
    table: Table
    note: str


def scopes(summary: Summary, results: Sequence[Result], agents: Mapping[str, int]) -> list[Scope]:
    """All scopes: over everything, over each family where there are several, of each task.

    Args:
        agents: name -> index of its mark.
    """
    common, every = len(summary.common), len(summary.problems)
    found = [_over_tasks(("all", "All tasks", ""), summary.leaderboard, (common, every), agents)]
    for place, family in enumerate(summary.families if len(summary.families) > 1 else ()):
        grid = make_grid([result for result in results if result.family == family])
        name = (f"family-{place}", family.capitalize(), "Families")
        sizes = (len(comparison(grid).problems), len(grid.problems))
        found.append(_over_tasks(name, leaderboard(grid, summary.seed), sizes, agents))
    for problem in summary.problems:
        entries = [entry for entry in summary.entries if entry.problem == problem.index]
        table = _of_task(entries, agents)
        found.append(Scope(f"task-{problem.index}", problem.label, problem.family.capitalize(), table, ""))
    return found


def groups(found: Sequence[Scope]) -> list[tuple[str, list[Scope]]]:
    """Scopes by the group of the list that they stand in."""
    names = dict.fromkeys(scope.group for scope in found)
    return [(name, [scope for scope in found if scope.group == name]) for name in names]


def plain(value: Aggregate | Spread) -> dict[str, Any]:
    """An estimate as `tables.estimate` takes it."""
    mean = value.value if isinstance(value, Aggregate) else value.mean
    return {"mean": mean, "low": value.low, "high": value.high}


def _runs(counts: Counts, failures: bool) -> list[Value]:
    """How many runs are done, and how many failed where that is a column."""
    done = Value(f"{counts.done} of {counts.planned}", sort=counts.done)
    failed = Value(str(counts.failed), sort=counts.failed, tone="bad" if counts.failed else "soft")
    return [done, failed] if failures else [done]


def _over_tasks(
    name: tuple[str, str, str], rows: Sequence[Row], sizes: tuple[int, int], agents: Mapping[str, int]
) -> Scope:
    """A leaderboard over several tasks.

    Args:
        name: id, label and group of the scope.
        sizes: the tasks that agents are ranked on, and all.
    """
    failures = any(row.counts.failed for row in rows)
    own = any(row.common is None for row in rows) or sizes[0] < sizes[1]
    scale = bar_scale([_common(row) for row in rows])
    columns = [
        Column("Agent", numeric=False, descending=False),
        Column("Optimality", "Interquartile mean of all runs on the common tasks", bar=True, sorted=True),
        *([Column(f"Failures as {_FLOOR}", f"The same with each failed run counted as {_FLOOR}")] * failures),
        *([Column("Own tasks", "Interquartile mean over all tasks that the agent was given")] * own),
        Column("Mean", "Mean over the tasks that the agent was given"),
        Column("Median", "Median over the tasks that the agent was given"),
        Column("Above ref.", _OVER),
        Column("Tasks to 0.9", _REACHED),
        Column("Tokens/s", "Tokens per CPU second of learning, all tasks together"),
        Column("Runs"),
        *([Column("Failed")] * failures),
    ]
    lines = []
    for row in rows:
        common = _common(row)
        score = estimate(common, 2, bar(common, scale))
        values = [_agent(row.agent, agents), replace(score, note=f"{score.note} {_of_runs(row)}".strip())]
        if failures:
            values.append(figure(row.common_with_failures, 2))
        if own:
            values.append(_own(row))
        values += [
            figure(row.mean.value, 2),
            figure(row.median.value, 2),
            figure(row.over_reference.value, 2),
            _tasks_to(row.to_nine_tenths),
            figure(row.tokens_per_cpu_second, 0),
            *_runs(row.counts, failures),
        ]
        lines.append(tuple(values))
    return Scope(*name, Table(tuple(columns), tuple(lines), sortable=True), _note(rows, sizes))


def _common(row: Row) -> dict[str, Any] | None:
    return None if row.common is None else plain(row.common)


def _of_runs(row: Row) -> str:
    """What marks a place that stands on fewer runs than planned."""
    common = row.common
    return (
        "" if common is None or common.runs == common.of_runs else f"{common.runs} of {common.of_runs} runs"
    )


def _own(row: Row) -> Value:
    shown = figure(row.iqm.value, 2)
    return shown if row.iqm.value is None else replace(shown, note=f"on {row.iqm.tasks}")


def _of_task(entries: Sequence[Entry], agents: Mapping[str, int]) -> Table:
    ordered = sorted(
        entries, key=lambda entry: (entry.optimality.mean is None, -(entry.optimality.mean or 0.0))
    )
    with_gold = any(entry.gold.mean is not None for entry in entries)
    failures = any(entry.counts.failed for entry in entries)
    scale = bar_scale([plain(entry.optimality) for entry in entries])
    columns = [
        Column("Agent", numeric=False, descending=False),
        Column("Optimality", "Mean over seeds", bar=True, sorted=True),
        Column("Reward"),
        *([Column("Gold", "The reward that the task is really about")] * with_gold),
        Column("KL", "To the reference, nats an answer", descending=False),
        Column("J", "Reward less beta times KL"),
        Column(
            "Tokens to 0.5",
            "Tokens scored until the median run reaches an optimality of 0.5",
            descending=False,
        ),
        Column(
            "Tokens to 0.9",
            "Tokens scored until the median run reaches an optimality of 0.9",
            descending=False,
        ),
        Column("Scored an answer", "Tokens scored to find one answer, after learning", descending=False),
        Column("Runs"),
        *([Column("Failed")] * failures),
    ]
    lines = []
    for entry in ordered:
        optimality = plain(entry.optimality)
        values = [_agent(entry.agent, agents), estimate(optimality, 2, bar(optimality, scale))]
        measures = [entry.reward, *([entry.gold] * with_gold), entry.kl, entry.objective]
        values += [figure(measure.mean) for measure in measures]
        spent = (entry.to_half.tokens, entry.to_nine_tenths.tokens, entry.answer_tokens)
        values += [figure(tokens, 0) for tokens in spent]
        lines.append((*values, *_runs(entry.counts, failures)))
    return Table(tuple(columns), tuple(lines), sortable=True)


def _agent(name: str, agents: Mapping[str, int]) -> Value:
    return Value(name, agent=agents[name])


def _tasks_to(crossing: Crossing) -> Value:
    if not crossing.of:
        return figure(None)
    return Value(f"{crossing.reached} of {crossing.of}", sort=crossing.reached / crossing.of)


def _note(rows: Sequence[Row], sizes: tuple[int, int]) -> str:
    failed, missing, clipped, unscored, above = (
        sum(getattr(row.counts, name) for row in rows)
        for name in ("failed", "missing", "clipped", "no_optimality", "above_one")
    )
    parts = []
    if sizes[0] < sizes[1]:
        parts.append(f"Ranked on the {sizes[0]} of {sizes[1]} tasks that every ranked agent was given.")
    stands = [row.common.tasks for row in rows if row.common is not None]
    if stands and min(stands) < sizes[0]:
        parts.append(f"Where runs are missing the means stand on fewer: {min(stands)} at least.")
    if failed or missing:
        kinds = [
            f"{number(many)} {kind}" for many, kind in ((failed, "failed"), (missing, "missing")) if many
        ]
        parts.append(f"Left out of the means: {' and '.join(kinds)} runs.")
    if clipped:
        parts.append(f"{number(clipped)} runs below {_FLOOR} count as {_FLOOR}.")
    if unscored:
        parts.append(f"{number(unscored)} runs have no optimality: the agent has no KL, or J* is not known.")
    if above:
        parts.append(f"{number(above)} runs score above 1, as estimates can.")
    return " ".join(parts)
