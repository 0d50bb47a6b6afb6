"""What a report says beside its charts: headline, failures, tasks by agents, cells, versions, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textgym_benchmarks.pages.html import number
from textgym_benchmarks.report.cells import relative_address, run_folder
from textgym_benchmarks.report.charts import tinted
from textgym_benchmarks.report.drawing import Mark
from textgym_benchmarks.report.tables import Column, Table, Value, estimate, figure
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.findings import Finding
from textgym_benchmarks.summary import Summary

SAMPLES, LONGEST = 3, 1500  # of a cell on the index; characters of one text there
_SETTINGS = {
    "points": "Points of a curve",
    "per_prompt": "Answers a prompt, on the curve",
    "final_per_prompt": "Answers a prompt, at the end",
    "optimum_per_prompt": "Answers a prompt, for J*",
    "samples": "Samples kept of a cell",
}
NAMED = ("textgym", "python", "torch", "gymnasium")  # packages in the headline


def headline(summary: Summary, suite: Mapping[str, Any]) -> dict[str, Any]:
    """Name, counts and where the numbers come from."""
    counts = summary.counts
    seeds = {run.seed for entry in summary.entries for run in entry.runs}
    figures = [
        ("", counts.done, f"of {counts.planned:,} cells done"),
        ("bad", counts.failed, "failed"),
        ("", counts.missing, "missing"),
        ("", len(summary.agents), "agents" if len(summary.agents) > 1 else "agent"),
        ("", len(summary.problems), "tasks" if len(summary.problems) > 1 else "task"),
        ("", len(seeds), "seeds" if len(seeds) > 1 else "seed"),
    ]
    versions = [f"{name} {', '.join(summary.versions[name])}" for name in NAMED if name in summary.versions]
    parts = [str(suite.get("started") or "")[:10], *summary.machines, *versions]
    return {
        "name": suite.get("name") or "Results",
        "description": suite.get("description") or "",
        "figures": [
            {"tone": tone, "value": f"{value:,}", "label": label}
            for tone, value, label in figures
            if value or label not in ("failed", "missing")
        ],
        "provenance": " · ".join(part for part in parts if part),
    }


def facts(summary: Summary, suite: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and with what the results were made, and how they were computed."""
    found = [("Machine", machine) for machine in summary.machines]
    found += [("Started", str(suite["started"]))] if suite.get("started") else []
    settings = suite.get("evaluation") or suite.get("settings") or {}
    found += [(_SETTINGS.get(name, str(name)), str(value)) for name, value in settings.items()]
    found.append(
        (
            "Intervals",
            f"{100 * summary.confidence:g}%, bootstrap over seeds within tasks, seed {summary.seed}",
        )
    )
    return found + [(name, ", ".join(versions)) for name, versions in summary.versions.items()]


def by_status(summary: Summary, status: str) -> list[dict[str, str]]:
    """The cells that failed, or that have no result: name, page and error of each."""
    labels = [problem.label for problem in summary.problems]
    return [
        {
            "href": cell_address(run.key),
            "name": f"{labels[entry.problem]}, {entry.agent}, seed {run.seed}",
            "error": run.error or "",
        }
        for entry in summary.entries
        for run in entry.runs
        if run.status == status
    ]


def findings(summary: Summary) -> list[Finding]:
    """Surprises, less those that the page shows elsewhere."""
    elsewhere = ("failed", "missing")
    return [finding for finding in summary.findings if finding.items and finding.kind not in elsewhere]


def cell_address(key: str) -> str:
    """The page of a cell, from the index."""
    return f"cells/{key}.html"


def matrix(summary: Summary, agents: Mapping[str, int]) -> Table:
    """Mean optimality by task and agent."""
    entries = {(entry.problem, entry.agent): entry for entry in summary.entries}
    rows = []
    for problem in summary.problems:
        values = [_matrix_value(entries.get((problem.index, name))) for name in summary.agents]
        rows.append((Value(problem.label), *values))
    columns = [Column("Task", numeric=False, descending=False), *(Column(name) for name in summary.agents)]
    return Table(tuple(columns), tuple(rows), sortable=True)


def _matrix_value(entry: Entry | None) -> Value:
    if entry is None:
        return Value("", sort=None)
    counts, score = entry.counts, entry.optimality.mean
    if score is None:
        if counts.done:
            return figure(None)
        return (
            Value("failed", sort=None, tone="bad")
            if counts.failed
            else Value("missing", sort=None, tone="soft")
        )
    note = f"{entry.optimality.runs} of {counts.planned}" if entry.optimality.runs < counts.planned else ""
    return tinted(Value(number(score, 2), note, score), score)


def cell_table(
    summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int], folder: Path
) -> Table:
    """Every cell with its numbers, its page and its run folder.

    Args:
        results: by key. folder: of the report.
    """
    labels = [problem.label for problem in summary.problems]
    rows = []
    for entry in summary.entries:
        for run in entry.runs:
            result = results[run.key]
            after = (result.measures or {}).get("after") or {}
            rows.append(
                (
                    Value(labels[entry.problem], href=cell_address(run.key)),
                    Value(entry.agent, agent=agents[entry.agent]),
                    Value(str(run.seed), sort=run.seed),
                    Value(run.status, tone={"failed": "bad", "missing": "soft"}.get(run.status, "")),
                    estimate(after.get("optimality")),
                    estimate(after.get("reward")),
                    estimate(after.get("kl")),
                    figure((result.measures or {}).get("tokens"), 0),
                    figure((result.timing or {}).get("seconds"), 1),
                    _run(result, folder),
                )
            )
    names = ("Optimality", "Reward", "KL", "Tokens scored")
    columns = (
        Column("Task", numeric=False, descending=False),
        Column("Agent", numeric=False, descending=False),
        Column("Seed", descending=False),
        Column("Status", numeric=False, descending=False),
        *(Column(name) for name in names),
        Column("Seconds", "Of the whole cell, evaluations included"),
        Column("Run", numeric=False),
    )
    return Table(columns, tuple(rows), sortable=True)


def _run(result: Result, folder: Path) -> Value:
    run = run_folder(result)
    if run is None:
        return figure(None)
    return Value("folder", href=relative_address(run, folder))


def samples(
    summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Samples of the first seed of each agent and task that has some."""
    found = []
    for entry in summary.entries:
        for run in entry.runs:
            shown = (results[run.key].measures or {}).get("samples")
            if shown:
                found.append(
                    {
                        "problem": entry.problem,
                        "agent": agents[entry.agent],
                        "href": cell_address(run.key),
                        "samples": [_shortened(sample) for sample in shown[:SAMPLES]],
                    }
                )
                break
    return found


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]} … ({len(value) - LONGEST:,} characters more)"
    return value


def problems_data(summary: Summary, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Label of each problem, and J* where a result tells it."""
    optima: dict[str, dict[str, float]] = {}
    for result in results:
        optimum = (result.measures or {}).get("optimum")
        if optimum and optimum.get("value"):
            optima.setdefault(result.cell.key, {"value": optimum["value"]["mean"], "beta": optimum["beta"]})
    found: list[dict[str, Any]] = [{"label": problem.label, "optimum": None} for problem in summary.problems]
    for entry in summary.entries:
        for run in entry.runs:
            if run.key in optima and found[entry.problem]["optimum"] is None:
                found[entry.problem]["optimum"] = optima[run.key]
    return found


def marks_data(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Agents as the page's script takes them."""
    return [
        {"name": mark.name, "colour": mark.colour, "dash": mark.dash, "symbol": mark.symbol} for mark in marks
    ]
