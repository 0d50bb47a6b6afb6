"""Builds the report: one folder with an index, a page for each cell, and everything that they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from textgym.files import read_json
from textgym_benchmarks.pages.html import (
    assets,
    check_folder,
    environment,
    plotly_script,
    shared_assets,
    write_folder,
)
from textgym_benchmarks.report import drawing, overview
from textgym_benchmarks.report.cells import cell_page
from textgym_benchmarks.report.charts import chart_data, charts, curve_table
from textgym_benchmarks.report.drawing import Mark, marks_of
from textgym_benchmarks.report.leaderboards import groups, scopes
from textgym_benchmarks.results.format import check_suite
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.summary import Summary, summarise


@dataclass(frozen=True)
class Sources:
    """Results and their origin.

    Args:
        results: of all places, each cell once.
        suite: name, description, date and settings of the first place that has them.
        repeated: keys of cells that several places hold; the first result that is done is kept.
    """

    results: tuple[Result, ...]
    suite: Mapping[str, Any]
    repeated: tuple[str, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Reads results.

    Args:
        paths: what `load_results` takes, at least one.
    Raises: ValueError for no path, no result, or whatever `load_results` raises.
    """
    if not paths:
        raise ValueError("RUN: nothing given; allowed is at least one folder or file of results")
    kept: dict[str, Result] = {}
    repeated = []
    for path in paths:
        for result in load_results(path):
            key = result.cell.key
            if key in kept:
                repeated.append(key)
            if key not in kept or (kept[key].status != "done" and result.status == "done"):
                kept[key] = result
    if not kept:
        raise ValueError(f"RUN {', '.join(map(str, paths))}: no result in it")
    suites = [suite for path in paths if (suite := _suite_of(path))]
    suite = dict(suites[0]) if suites else {"name": Path(paths[0]).resolve().name}
    if len(suites) > 1:
        suite["name"] = " and ".join(dict.fromkeys(str(each.get("name")) for each in suites))
        suite["description"] = ""
    return Sources(tuple(kept.values()), suite, tuple(dict.fromkeys(repeated)))


def _suite_of(path: Path) -> dict[str, Any]:
    """What suite.json or the head of a file of results says; {} where there is neither."""
    file = path / "suite.json" if path.is_dir() else path
    if not file.is_file():
        return {}
    data = read_json(file)
    found = data if path.is_dir() else data.get("suite", {})
    try:
        check_suite(found)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return {name: value for name, value in found.items() if name != "cells"}


PACKAGE = "textgym_benchmarks.report"
KIND = "report"
SAMPLES_IN_ALL = 2000  # on the pages of cells, so that the folder of a large suite stays small


def build_report(paths: Sequence[str | Path], out: str | Path) -> Sources:
    """Writes a report.

    Args:
        paths: what `load_results` takes: folders of suites, of cells or of runs, files of results.
        out: the folder; a new or empty one, or a report, which is built anew.
    Returns: what it was made of.
    Raises: FileExistsError if `out` holds anything else; ValueError for results that cannot be read.
    """
    folder = Path(out)
    check_folder(folder, KIND)
    sources = read_sources([Path(path) for path in paths])
    write_folder(folder, report_files(sources.results, sources.suite, folder), KIND)
    return sources


def report_files(results: Sequence[Result], suite: Mapping[str, Any], folder: Path) -> dict[str, str | bytes]:
    """The files of a report by their path in it.

    Args:
        results: failed and missing ones included, each cell once.
        suite: name, description, started, settings; all may be missing.
        folder: where the report will lie; links to runs start there.
    """
    summary = summarise(results)
    templates = environment(PACKAGE)
    templates.globals |= {"table": drawing.table, "swatch": drawing.swatch, "swatches": drawing.swatches}
    by_key = {result.cell.key: result for result in results}
    names = {run.key: entry.agent for entry in summary.entries for run in entry.runs}
    labels = {
        run.key: summary.problems[entry.problem].label for entry in summary.entries for run in entry.runs
    }
    # The order of the suite, not of success: an agent keeps its colour when scores change.
    marks = marks_of(list(dict.fromkeys(names[key] for key in by_key)))
    by_name = {mark.name: mark for mark in marks}
    files: dict[str, str | bytes] = {**shared_assets(), **assets(PACKAGE), "plotly.min.js": plotly_script()}
    samples = max(2, SAMPLES_IN_ALL // len(results))
    for key, result in by_key.items():
        name = overview.cell_address(key)
        files[name] = cell_page(
            templates, result, labels[key], by_name[names[key]], folder / "cells", samples
        )
    files["index.html"] = _index(templates, summary, by_key, suite, marks, folder)
    return files


def _index(
    templates: Environment,
    summary: Summary,
    results: Mapping[str, Result],
    suite: Mapping[str, Any],
    marks: Sequence[Mark],
    folder: Path,
) -> str:
    agents = {mark.name: index for index, mark in enumerate(marks)}
    shown = list(results.values())
    found = scopes(summary, shown, agents)
    drawn = charts(summary, agents)
    with_curve = {curve.problem for curve in summary.curves}
    data = {
        "agents": overview.marks_data(marks),
        "order": [agents[name] for name in summary.agents],
        "problems": overview.problems_data(summary, shown),
        "samples": overview.samples(summary, results, agents),
        **chart_data(summary, agents),
    }
    html: str = templates.get_template("report.html").render(
        head=overview.headline(summary, suite),
        sections=_sections([(chart.id, chart.short) for chart in drawn]),
        failed=overview.by_status(summary, "failed"),
        missing=overview.by_status(summary, "missing"),
        findings=overview.findings(summary),
        scopes=found,
        scope_groups=groups(found),
        floor=f"{summary.floor:g}".replace("-", "\u2212"),
        marks=marks,
        chips=data["order"],
        matrix=overview.matrix(summary, agents),
        families=summary.families,
        problems=summary.problems,
        with_curve=with_curve,
        without_curve=[problem.label for problem in summary.problems if problem.index not in with_curve],
        curve_tables=[curve_table(summary, problem) for problem in summary.problems],
        charts=drawn,
        cells=overview.cell_table(summary, results, agents, folder),
        facts=overview.facts(summary, suite),
        data=data,
    )
    return html


def _sections(charts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    before = [("leaderboard", "Leaderboard"), ("tasks", "Tasks"), ("curves", "Curves")]
    after = [("samples", "Samples"), ("cells", "Cells")]
    return [*before, *charts, *after]


def default_folder(paths: Sequence[Path]) -> Path:
    """Where a report goes if nobody says: into the first folder of results, or beside the first file."""
    if not paths:
        return Path("report")
    return (paths[0] if paths[0].is_dir() else paths[0].parent) / "report"
