"""The report of results: one folder with an index and a page for each cell, which opens offline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from textgym.checks import JsonObject
from textgym_benchmarks.pages import assets, check_folder, environment, number, shared_assets, write_folder
from textgym_benchmarks.report.by_reward import reward_sections
from textgym_benchmarks.report.sections import chart_data, charts, curve_table, groups, matrix, scopes
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
    make_table,
)
from textgym_benchmarks.results.store import Result, load_results, suite_summary
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import Summary, summarise
from textgym_benchmarks.summaries.entries import costs
from textgym_benchmarks.summaries.grid import interval_of, learning_time

KIND = "report"
SAMPLES_IN_ALL = 2000  # on the pages of cells, so that the folder of a large suite stays small
SAMPLES, LONGEST = 3, 1500  # of a cell on the index; characters of one text there
NAMED = ("textgym", "python", "torch", "gymnasium")  # packages in the headline

FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "curve.png", "tensorboard", "checkpoint")
LEFT, RIGHT, TOP, BOTTOM = 44.0, 628.0, 24.0, 208.0
"""Edges of the curve in pixels of its drawing."""
_MEASURES = {
    "reward": "Reward",
    "gold": "Gold reward",
    "kl": "KL to the reference, nats",
    "objective": "Objective J",
    "optimality": "Optimality",
    "entropy": "Entropy, nats an answer",
    "length": "Length, tokens",
    "stop_rate": "Share that stop",
    "distinct_1": "Distinct tokens, share",
    "distinct_2": "Distinct pairs, share",
}
_POINT = {"optimality": "Optimality", "reward": "Reward", "gold": "Gold", "kl": "KL", "objective": "J"}


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
    """Read what `load_results` takes. Raises: ValueError for no path, no result, or as that does."""
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
    Returns: the results that it shows.
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
    versions = [f"{name} {', '.join(summary.versions[name])}" for name in NAMED if name in summary.versions]
    made_with = (str(suite.get("started") or "")[:10], *summary.machines, *versions)
    return templates.get_template("report.html").render(
        name=suite.get("name") or "Results",
        suite=suite,
        summary=summary,
        agents=len(styles),
        seeds=len({run.seed for entry in summary.entries for run in entry.runs}),
        provenance=" · ".join(part for part in made_with if part),
        scopes=found,
        scope_groups=groups(found),
        styles=styles,
        matrix=matrix(summary),
        curve_tables=[curve_table(summary, problem) for problem in summary.problems],
        charts=charts(summary, agents),
        reward_sections=reward_sections(summary, agents),
        address=_address,
        cells=_cell_table(summary, results, agents, folder),
        data=data,
    )


def _address(key: str) -> str:
    """Return the page of a cell, from the index."""
    return f"cells/{key}.html"


def _cell_table(
    summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int], folder: Path
) -> ReportTable:
    """Return every cell with its numbers, its page and its run folder, seen from the folder of the report."""
    rows = []
    for entry in summary.entries:
        for run in entry.runs:
            result = results[run.key]
            measures, path = result.measures or {"after": {}}, run_folder(result)
            row = (
                Value(summary.problems[entry.problem].label, href=_address(run.key)),
                Value(entry.agent, agent=agents[entry.agent]),
                Value(str(run.seed), sort=run.seed),
                Value(run.status, tone={"failed": "bad", "missing": "soft"}.get(run.status, "")),
                *(estimate(interval_of(measures["after"].get(name))) for name in ("optimality", "reward", "kl")),
                figure(measures.get("tokens"), 0),
                figure((result.timing or {}).get("seconds"), 1),
                figure(None) if path is None else Value("folder", href=relative_address(path, folder)),
            )
            rows.append(row)
    columns = (
        *(Column(name, numeric=name == "Seed", descending=False) for name in ("Task", "Agent", "Seed", "Status")),
        *(Column(name) for name in ("Optimality", "Reward", "KL", "Tokens scored")),
        Column("Seconds", "Of the whole cell, evaluations included"),
        Column("Run", numeric=False),
    )
    return ReportTable(columns, tuple(rows), sortable=True)


def _samples(summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int]) -> list[JsonObject]:
    """Return samples of the first seed of each agent and task that has some."""
    found = []
    for entry in summary.entries:
        answered = ((run.key, (results[run.key].measures or {}).get("samples")) for run in entry.runs)
        key, samples = next((pair for pair in answered if pair[1]), ("", ()))
        if samples:
            place = {"problem": entry.problem, "agent": agents[entry.agent], "href": _address(key)}
            found.append({**place, "samples": [_shortened(sample) for sample in samples[:SAMPLES]]})
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


def cell_page(templates: Environment, result: Result, task: str, style: AgentStyle, folder: Path, samples: int) -> str:
    """Return the page of one cell.

    Args:
        task: its label. style: of its agent.
        folder: where the page will lie; files of the run are linked from there.
        samples: at most so many are shown.
    """
    measures = result.measures or {}
    shown = measures.get("samples") or []
    curve = measures.get("curve") or []
    return templates.get_template("cell.html").render(
        result=result,
        task=task,
        style=style,
        measures=measures,
        measures_table=_measures_table(measures["before"], measures["after"]) if measures else None,
        curve_table=_curve_table(curve) if curve else None,
        drawing=draw_curve(curve),
        samples=shown[:samples],
        left_out=max(len(shown) - samples, 0),
        learning=[learning_time(result, name) for name in ("seconds", "cpu_seconds")],
        speed=costs([result]).tokens_per_cpu_second,
        links=_run_links(result, folder),
        told=_told,
        json=partial(json.dumps, ensure_ascii=False),
    )


def run_folder(result: Result) -> Path | None:
    """Return the folder of the training run, beside a cell's result or what was read itself; None if it is gone."""
    if result.folder is None:
        return None
    beside = result.folder / "run"
    if beside.is_dir():
        return beside
    return result.folder if (result.folder / "config.json").is_file() else None


def relative_address(path: Path, folder: Path) -> str:
    """Return the address of a file or folder in a page that lies in `folder`; a folder's ends in a slash."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return quote(Path(relative).as_posix()) + ("/" if path.is_dir() else "")


def _run_links(result: Result, folder: Path) -> list[tuple[str, str]]:
    """Return names and relative addresses of the files of a run that exist, seen from a folder."""
    run = run_folder(result)
    if result.folder is None or run is None:
        return []
    places = {"run": run, "result.json": result.folder / "result.json"} | {name: run / name for name in FILES}
    return [(name, relative_address(path, folder)) for name, path in places.items() if path.exists()]


def _measures_table(before: JsonObject, after: JsonObject) -> ReportTable:
    """Return what was measured before and after learning."""

    def measure(side: JsonObject, name: str) -> Value:
        found = side.get(name)
        return estimate(interval_of(found)) if isinstance(found, Mapping) else figure(found)

    return make_table(
        [name for name in _MEASURES if before.get(name) is not None or after.get(name) is not None],
        [
            (Column("", numeric=False), lambda name: Value(_MEASURES[name])),
            (Column("Before"), partial(measure, before)),
            (Column("After"), partial(measure, after)),
        ],
    )


def _told(data: JsonObject) -> str:
    """Return an estimate with its interval, in words."""
    shown = estimate(interval_of(data))
    return f"{shown.text} {shown.note}".strip()


def _curve_table(curve: Sequence[JsonObject]) -> ReportTable:
    def value(name: str, point: JsonObject) -> Value:
        if name != "optimality":
            return figure(point.get(name))
        return estimate(Interval(point.get(name), point.get("optimality_low"), point.get("optimality_high")))

    shown = [name for name in _POINT if any(point.get(name) is not None for point in curve)]
    return make_table(
        curve,
        [
            (Column("Episodes"), lambda point: figure(point["episode"], 0)),
            (Column("Tokens"), lambda point: figure(point["tokens"], 0)),
            *((Column(_POINT[name]), partial(value, name)) for name in shown),
        ],
    )


@dataclass(frozen=True)
class CurveDrawing:
    """A curve in pixels of a drawing of 640 by 240.

    Attributes:
        path, band, dots: SVG paths; no band where a point has no interval.
        lines: of the grid: y and the text beside it.
        ticks: labels under the drawing: x, text, and "start", "middle" or "end".
    """

    path: str
    band: str
    dots: str
    lines: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str, str], ...]


def draw_curve(curve: Sequence[JsonObject]) -> CurveDrawing | None:
    """Draw optimality over episodes; None where fewer than two points have an optimality."""
    points = [point for point in curve if point.get("optimality") is not None]
    if len(points) < 2 or points[-1]["episode"] <= points[0]["episode"]:
        return None
    names = ("optimality", "optimality_low", "optimality_high")
    ends = [value for point in points for name in names if (value := point.get(name)) is not None]
    least, most = min(0.0, *ends), max(1.0, *ends)
    last = points[-1]["episode"]

    def y(score: float) -> float:
        return float(round(BOTTOM - (BOTTOM - TOP) * (score - least) / (most - least), 1))

    def places(name: str) -> list[str]:
        across = [round(LEFT + (RIGHT - LEFT) * point["episode"] / last, 1) for point in points]
        return [f"{x:g},{y(point[name]):g}" for x, point in zip(across, points, strict=True)]

    middle, band = places("optimality"), ""
    if all(point.get("optimality_low") is not None for point in points):
        band = "M" + "L".join([*places("optimality_high"), *reversed(places("optimality_low"))]) + "Z"
    levels = sorted({0.0, 1.0, *([round(least, 2)] if least < -0.05 else []), *([0.5] if least > -1 else [])})
    return CurveDrawing(
        path="M" + "L".join(middle),
        band=band,
        dots="".join(f"M{place}h0" for place in middle),
        lines=tuple((y(level), f"{level:g}".replace("-", "\u2212")) for level in levels),
        ticks=(
            (LEFT, "0", "start"),
            ((LEFT + RIGHT) / 2, number(last / 2, 0), "middle"),
            (RIGHT, number(last, 0), "end"),
        ),
    )
