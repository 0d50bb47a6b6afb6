"""The report of results: one folder with an index and a page for each cell, which opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from textgym.checks import JsonObject
from textgym_benchmarks.pages import assets, check_folder, environment, number, shared_assets, write_folder
from textgym_benchmarks.report.cells import cell_page, relative_address, run_folder
from textgym_benchmarks.report.charts import chart_data, charts, curve_table
from textgym_benchmarks.report.leaderboards import groups, scopes
from textgym_benchmarks.report.tables import (
    DASHES,
    SYMBOLS,
    AgentStyle,
    Column,
    ReportTable,
    Value,
    agent_styles,
    estimate,
    figure,
    tinted,
)
from textgym_benchmarks.results.store import Result, load_results, suite_summary
from textgym_benchmarks.summaries import Summary, summarise
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import interval_of

KIND = "report"
SAMPLES_IN_ALL = 2000  # on the pages of cells, so that the folder of a large suite stays small
SAMPLES, LONGEST = 3, 1500  # of a cell on the index; characters of one text there
NAMED = ("textgym", "python", "torch", "gymnasium")  # packages in the headline


@dataclass(frozen=True)
class Sources:
    """Results and their origin.

    Args:
        results: of all places, each cell once.
        suite: name, description, date and settings of the first place that has them.
        repeated: keys of cells that several places hold; the first result that is done is kept.
    """

    results: tuple[Result, ...]
    suite: JsonObject
    repeated: tuple[str, ...]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Read results.

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
    suites = [suite for path in paths if (suite := suite_summary(path))]
    suite = suites[0] if suites else {"name": paths[0].resolve().name}
    if len(suites) > 1:
        name = " and ".join(dict.fromkeys(str(each.get("name")) for each in suites))
        suite |= {"name": name, "description": ""}
    return Sources(tuple(kept.values()), suite, tuple(dict.fromkeys(repeated)))


def build_report(paths: Sequence[str | Path], out: str | Path) -> Sources:
    """Write a report.

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


def default_folder(paths: Sequence[Path]) -> Path:
    """Return where a report goes by default: into the first folder of results, or beside the first file."""
    if not paths:
        return Path("report")
    return (paths[0] if paths[0].is_dir() else paths[0].parent) / "report"


def report_files(results: Sequence[Result], suite: JsonObject, folder: Path) -> dict[str, str | bytes]:
    """Return the files of a report by their path in it.

    Args:
        results: failed and missing ones included, each cell once.
        suite: name, description, started, settings; all may be missing.
        folder: where the report will lie; links to runs start there.
    """
    summary = summarise(results)
    templates = environment(__name__)
    templates.globals |= {"dashes": DASHES, "symbols": SYMBOLS}
    by_key = {result.cell.key: result for result in results}
    places = {run.key: entry for entry in summary.entries for run in entry.runs}
    # The order of the suite, not of success: an agent keeps its colour when scores change.
    styles = agent_styles(list(dict.fromkeys(places[key].agent for key in by_key)))
    by_name = {style.name: style for style in styles}
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    found: dict[str, str | bytes] = {**shared_assets(), **assets(__name__), "plotly.min.js": script}
    samples = max(2, SAMPLES_IN_ALL // len(results))
    for key, result in by_key.items():
        label, style = summary.problems[places[key].problem].label, by_name[places[key].agent]
        found[_address(key)] = cell_page(templates, result, label, style, folder / "cells", samples)
    found["index.html"] = _index(templates, summary, by_key, suite, styles, folder)
    return found


def _index(
    templates: Environment,
    summary: Summary,
    results: Mapping[str, Result],
    suite: JsonObject,
    styles: Sequence[AgentStyle],
    folder: Path,
) -> str:
    agents = {style.name: index for index, style in enumerate(styles)}
    found = scopes(summary, list(results.values()), agents)
    data = {
        "agents": [asdict(style) for style in styles],
        "order": [agents[name] for name in summary.agents],
        "problems": _problems(summary, results),
        "samples": _samples(summary, results, agents),
        **chart_data(summary, agents),
    }
    return templates.get_template("report.html").render(
        name=suite.get("name") or "Results",
        suite=suite,
        summary=summary,
        agents=len(styles),
        seeds=len({run.seed for entry in summary.entries for run in entry.runs}),
        provenance=_provenance(summary, suite),
        scopes=found,
        scope_groups=groups(found),
        styles=styles,
        matrix=_matrix(summary),
        curve_tables=[curve_table(summary, problem) for problem in summary.problems],
        charts=charts(summary, agents),
        cells=_cell_table(summary, results, agents, folder),
        data=data,
    )


def _address(key: str) -> str:
    """Return the page of a cell, from the index."""
    return f"cells/{key}.html"


def _provenance(summary: Summary, suite: JsonObject) -> str:
    """Return when, where and with what the results were made, in a line."""
    versions = [f"{name} {', '.join(summary.versions[name])}" for name in NAMED if name in summary.versions]
    parts = [str(suite.get("started") or "")[:10], *summary.machines, *versions]
    return " · ".join(part for part in parts if part)


def _matrix(summary: Summary) -> ReportTable:
    """Return mean optimality by task and agent."""
    entries = {(entry.problem, entry.agent): entry for entry in summary.entries}
    rows = [
        (
            Value(problem.label),
            *(_matrix_value(entries.get((problem.index, name))) for name in summary.agents),
        )
        for problem in summary.problems
    ]
    columns = (Column("Task", numeric=False, descending=False), *(Column(name) for name in summary.agents))
    return ReportTable(columns, tuple(rows), sortable=True)


def _matrix_value(entry: Entry | None) -> Value:
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


def _cell_table(
    summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int], folder: Path
) -> ReportTable:
    """Return every cell with its numbers, its page and its run folder.

    Args:
        results: by key. folder: of the report.
    """
    rows = []
    for entry in summary.entries:
        for run in entry.runs:
            result = results[run.key]
            measures, path = result.measures or {"after": {}}, run_folder(result)
            address = None if path is None else relative_address(path, folder)
            rows.append(
                (
                    Value(summary.problems[entry.problem].label, href=_address(run.key)),
                    Value(entry.agent, agent=agents[entry.agent]),
                    Value(str(run.seed), sort=run.seed),
                    Value(run.status, tone={"failed": "bad", "missing": "soft"}.get(run.status, "")),
                    *(estimate(interval_of(measures["after"].get(name))) for name in ("optimality", "reward", "kl")),
                    figure(measures.get("tokens"), 0),
                    figure((result.timing or {}).get("seconds"), 1),
                    figure(None) if address is None else Value("folder", href=address),
                )
            )
    columns = (
        Column("Task", numeric=False, descending=False),
        Column("Agent", numeric=False, descending=False),
        Column("Seed", descending=False),
        Column("Status", numeric=False, descending=False),
        *(Column(name) for name in ("Optimality", "Reward", "KL", "Tokens scored")),
        Column("Seconds", "Of the whole cell, evaluations included"),
        Column("Run", numeric=False),
    )
    return ReportTable(columns, tuple(rows), sortable=True)


def _samples(summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int]) -> list[JsonObject]:
    """Return samples of the first seed of each agent and task that has some."""
    found = []
    for entry in summary.entries:
        for run in entry.runs:
            shown = (results[run.key].measures or {}).get("samples")
            if shown:
                found.append(
                    {
                        "problem": entry.problem,
                        "agent": agents[entry.agent],
                        "href": _address(run.key),
                        "samples": [_shortened(sample) for sample in shown[:SAMPLES]],
                    }
                )
                break
    return found


def _shortened(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, str) and len(value) > LONGEST:
        return f"{value[:LONGEST]} … ({len(value) - LONGEST:,} characters more)"
    return value


def _problems(summary: Summary, results: Mapping[str, Result]) -> list[JsonObject]:
    """Return the label of each problem, and J* where a result tells it."""
    found: list[JsonObject] = [{"label": problem.label, "optimum": None} for problem in summary.problems]
    for entry in summary.entries:
        for run in entry.runs:
            optimum = (results[run.key].measures or {}).get("optimum")
            if optimum and optimum["value"] and found[entry.problem]["optimum"] is None:
                values = {"value": optimum["value"]["mean"], "beta": optimum["beta"]}
                found[entry.problem]["optimum"] = values
    return found
