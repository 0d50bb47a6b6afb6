"""The report of results: one folder with an index and a page for each cell, which opens offline."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from textgym.checks import JsonObject
from textgym.commands.console import duration
from textgym_benchmarks.pages import assets, check_folder, environment, number, shared_assets, write_folder
from textgym_benchmarks.report.by_reward import reward_sections
from textgym_benchmarks.report.curves import CURVE_TITLES, curve_charts, draw_curve, measures_of_curves
from textgym_benchmarks.report.sections import chart_data, charts, groups, matrix, scopes
from textgym_benchmarks.report.tables import (
    DASHES,
    SYMBOLS,
    AgentStyle,
    Column,
    ColumnOf,
    ReportTable,
    Value,
    agent_styles,
    estimate,
    figure,
    make_table,
    timed,
)
from textgym_benchmarks.results.store import Result, Sources, read_sources
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import Summary, summarise
from textgym_benchmarks.summaries.entries import AgentScores, costs
from textgym_benchmarks.summaries.grid import interval_of, learning_time

KIND = "report"
SAMPLES_IN_ALL = 2000  # on the pages of cells, so that the folder of a large suite stays small
SAMPLES, LONGEST = 3, 1500  # of a cell on the index; characters of one text there
NAMED = ("textgym", "python", "torch", "gymnasium")  # packages in the headline

FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "curve.png", "tensorboard", "checkpoint")

_MEASURES = {
    **CURVE_TITLES,
    "stop_rate": "Share that stop",
    "distinct_1": "Distinct words, share",
    "distinct_2": "Distinct word pairs, share",
}
_POINT = {
    "optimality": "Optimality",
    "objective": "J",
    "reward": "Reward",
    "gold": "Gold",
    "kl": "KL",
    "entropy": "Entropy",
    "length": "Length",
}


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
    """Return the files of a report by their path in it. Args: see `Report`."""
    report = Report(results, suite, folder)
    pages: dict[str, str | bytes] = {_address(result.cell.key): report.cell(result.cell.key) for result in results}
    return {**report_assets(), **pages, "index.html": report.index()}


def report_assets(live: bool = False) -> dict[str, bytes]:
    """Return the files that are the same in every report: styles and scripts. Args: see `report_templates`."""
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    found = {**shared_assets(), **assets(__name__), "plotly.min.js": script}
    return {name: content for name, content in found.items() if live or name != "live.js"}


def report_templates(live: bool = False) -> Environment:
    """Return the templates of the report's pages. Args: live: the pages look for newer ones of themselves."""
    templates = environment(__name__)
    templates.globals |= {"dashes": DASHES, "symbols": SYMBOLS, "live": live}
    return templates


class Report:
    """The pages of a report, each written when it is asked for.

    Args:
        results: failed and missing ones included, each cell once.
        suite: name, description, started, settings; all may be missing.
        folder: where the report will lie; links to runs start there. None: there are no such links.
        notes: lines at the top of the index. live: see `report_templates`.
    """

    def __init__(
        self,
        results: Sequence[Result],
        suite: JsonObject,
        folder: Path | None,
        notes: Sequence[str] = (),
        live: bool = False,
    ) -> None:
        self.results = {result.cell.key: result for result in results}
        self._suite, self._folder, self._notes, self._live = suite, folder, notes, live
        self._summary = summarise(results)
        self._templates = report_templates(live)
        self._places = {run.key: entry for entry in self._summary.entries for run in entry.runs}
        # The order of the suite, not of success: an agent keeps its colour when scores change.
        self._styles = agent_styles(list(dict.fromkeys(self._places[key].agent for key in self.results)))

    def cell(self, key: str) -> str:
        """Return the page of a cell. Raises: KeyError without one."""
        result, place = self.results[key], self._places[key]
        style = next(style for style in self._styles if style.name == place.agent)
        samples = max(2, SAMPLES_IN_ALL // len(self.results))
        folder = self._folder and self._folder / "cells"
        label = self._summary.problems[place.problem].label
        return cell_page(self._templates, result, label, style, folder, samples)

    def index(self) -> str:
        """Return the page that leads to all others."""
        summary, results, suite = self._summary, self.results, self._suite
        agents = {style.name: index for index, style in enumerate(self._styles)}
        found, runs = scopes(summary, list(results.values()), agents), _runs(summary, results)
        data = {
            "agents": [asdict(style) for style in self._styles],
            "order": [agents[name] for name in summary.agents],
            "problems": _problems(summary, results),
            "samples": _samples(summary, results, agents),
            **chart_data(summary, agents),
        }
        versions = [f"{name} {', '.join(summary.versions[name])}" for name in NAMED if name in summary.versions]
        made_with = (str(suite.get("started") or "")[:10], *summary.machines, *versions)
        return self._templates.get_template("report.html").render(
            name=suite.get("name") or "Results",
            suite=suite,
            notes=self._notes,
            summary=summary,
            agents=len(agents),
            seeds=len({run.seed for entry in summary.entries for run in entry.runs}),
            provenance=" · ".join(part for part in made_with if part),
            progress=_progress_table(runs, summary, agents, self._live),
            # Where runs are under way and none is finished there is nothing to rank.
            ranked=summary.counts.done or not any(result.so_far for result in results.values()),
            states=Counter(result.state for result in results.values()),
            waiting={key for key, result in results.items() if result.state == "missing"},
            scopes=found,
            scope_groups=groups(found),
            styles=self._styles,
            matrix=matrix(summary),
            curve_charts=curve_charts(summary),
            measures={name: CURVE_TITLES[name] for name in measures_of_curves(summary)},
            charts=charts(summary, agents),
            reward_sections=reward_sections(summary, agents),
            address=_address,
            cells=_cell_table(runs, summary, agents, self._folder),
            data=data,
        )


def _address(key: str) -> str:
    """Return the page of a cell, from the index."""
    return f"cells/{key}.html"


Run = tuple[AgentScores, Result]


def _runs(summary: Summary, results: Mapping[str, Result]) -> list[Run]:
    return [(entry, results[run.key]) for entry in summary.entries for run in entry.runs]


def _progress_table(runs: Sequence[Run], summary: Summary, agents: Mapping[str, int], finished: bool) -> ReportTable:
    """Return how far runs are and what they are worth now, the unfinished ones first.

    Args: finished: those that are finished are shown, too.
    """

    def learned(run: Run) -> Value:
        episodes = (run[1].so_far or run[1].known)["episodes"]
        return Value(f"{number(episodes, 0)} of {number(run[1].cell.episodes, 0)}")

    def left(run: Run) -> Value:
        seconds = (run[1].so_far or {}).get("seconds_left")
        return figure(None) if seconds is None else Value(f"about {duration(seconds)}" if seconds else "finishing")

    shown = [run for run in runs if run[1].so_far] + [run for run in runs if run[1].measures and finished]
    own = [(Column("Episodes"), learned), (Column("Learning left"), left)]
    return make_table(shown, [*_run_columns(summary, agents), *own, *map(_measure_column, measures_of_curves(summary))])


def _cell_table(runs: Sequence[Run], summary: Summary, agents: Mapping[str, int], folder: Path | None) -> ReportTable:
    """Return every cell with its numbers, its page and its run folder, seen from the folder of the report."""

    def link(run: Run) -> Value:
        path = run_folder(run[1])
        return Value("folder", href=relative_address(path, folder)) if folder and path else figure(None)

    columns: list[ColumnOf[Run]] = [
        *_run_columns(summary, agents),
        *map(_measure_column, ("optimality", "reward", "kl")),
        (Column("Tokens scored"), lambda run: figure(run[1].known.get("tokens"), 0)),
        (
            Column("Seconds", "Of the whole cell, evaluations included"),
            lambda run: timed((run[1].timing or {}).get("seconds")),
        ),
        *([(Column("Run", numeric=False), link)] if folder else []),
    ]
    return make_table(runs, columns, sortable=True)


def _run_columns(summary: Summary, agents: Mapping[str, int]) -> list[ColumnOf[Run]]:
    """Return what a run is of, with a link to its page, and its state."""
    tones = {"failed": "bad", "missing": "soft"}
    heads = [Column(name, numeric=name == "Seed", descending=False) for name in ("Task", "Agent", "Seed", "Status")]
    return [
        (heads[0], lambda run: Value(summary.problems[run[0].problem].label, href=_address(run[1].cell.key))),
        (heads[1], lambda run: Value(run[0].agent, agent=agents[run[0].agent])),
        (heads[2], lambda run: Value(str(run[1].cell.seed), sort=run[1].cell.seed)),
        (heads[3], lambda run: Value(run[1].state, tone=tones.get(run[1].state, ""))),
    ]


def _measure_column(name: str) -> ColumnOf[Run]:
    """Return a measure after learning, or at the latest evaluation."""
    head = Column(_POINT[name], CURVE_TITLES[name])
    return head, lambda run: estimate(interval_of(run[1].known.get("after", {}).get(name)))


def _samples(summary: Summary, results: Mapping[str, Result], agents: Mapping[str, int]) -> list[JsonObject]:
    """Return samples of the first seed of each agent and task that has some."""
    found = []
    for entry in summary.entries:
        answered = ((run.key, results[run.key].known.get("samples")) for run in entry.runs)
        key, samples = next((pair for pair in answered if pair[1]), ("", ()))
        if samples:
            place = {"problem": entry.problem, "agent": agents[entry.agent], "href": _address(key)}
            place["now"] = results[key].measures is None
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


def cell_page(
    templates: Environment, result: Result, task: str, style: AgentStyle, folder: Path | None, samples: int
) -> str:
    """Return the page of one cell.

    Args:
        task: its label. style: of its agent.
        folder: where the page will lie; files of the run are linked from there. None: they are not.
        samples: at most so many are shown.
    """
    measures = result.known
    shown = measures.get("samples") or []
    curve = measures.get("curve") or []
    return templates.get_template("cell.html").render(
        result=result,
        task=task,
        style=style,
        measures=measures,
        measures_table=_measures_table(measures["before"], measures["after"], "After" if result.measures else "Now")
        if measures
        else None,
        curve_table=_curve_table(curve) if curve else None,
        drawing=draw_curve(curve),
        samples=shown[:samples],
        left_out=max(len(shown) - samples, 0),
        learning=[learning_time(result, name) for name in ("seconds", "cpu_seconds")],
        speed=costs([result]).tokens_per_cpu_second,
        links=_run_links(result, folder) if folder else [],
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


def _measures_table(before: JsonObject, after: JsonObject, title: str) -> ReportTable:
    """Return what was measured before and after learning. Args: title: of the latter."""

    def measure(side: JsonObject, name: str) -> Value:
        found = side.get(name)
        return estimate(interval_of(found)) if isinstance(found, Mapping) else figure(found)

    return make_table(
        [name for name in _MEASURES if before.get(name) is not None or after.get(name) is not None],
        [
            (Column("", numeric=False), lambda name: Value(_MEASURES[name])),
            (Column("Before"), partial(measure, before)),
            (Column(title), partial(measure, after)),
        ],
    )


def _told(data: JsonObject) -> str:
    """Return an estimate with its interval, in words."""
    shown = estimate(interval_of(data))
    return f"{shown.text} {shown.note}".strip()


def _curve_table(curve: Sequence[JsonObject]) -> ReportTable:
    def value(name: str, point: JsonObject) -> Value:
        return estimate(Interval(*(point.get(f"{name}{end}") for end in ("", "_low", "_high"))))

    shown = [name for name in _POINT if any(point.get(name) is not None for point in curve)]
    return make_table(
        curve,
        [
            (Column("Episodes"), lambda point: figure(point["episode"], 0)),
            (Column("Tokens"), lambda point: figure(point["tokens"], 0)),
            *((Column(_POINT[name]), partial(value, name)) for name in shown),
        ],
    )
