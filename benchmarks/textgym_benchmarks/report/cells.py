"""A page for each cell: its measures, curve, samples, settings and versions, and links to the files of its run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from textgym.checks import JsonObject
from textgym_benchmarks.pages import number
from textgym_benchmarks.report.tables import (
    AgentStyle,
    Column,
    ReportTable,
    Value,
    estimate,
    figure,
    make_table,
)
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries.entries import costs
from textgym_benchmarks.summaries.grid import interval_of, learning_time

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
        measures_table=_measures_table(measures) if measures else None,
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


def _measures_table(measures: Mapping[str, JsonObject]) -> ReportTable:
    """Return what was measured before and after learning."""
    sides = (measures["before"], measures["after"])
    return make_table(
        [name for name in _MEASURES if any(side.get(name) is not None for side in sides)],
        [
            (Column("", numeric=False), lambda name: Value(_MEASURES[name])),
            (Column("Before"), partial(_measure, sides[0])),
            (Column("After"), partial(_measure, sides[1])),
        ],
    )


def _measure(side: JsonObject, name: str) -> Value:
    found = side.get(name)
    return estimate(interval_of(found)) if isinstance(found, Mapping) else figure(found)


def _told(data: JsonObject) -> str:
    """Return an estimate with its interval, in words."""
    shown = estimate(interval_of(data))
    return f"{shown.text} {shown.note}".strip()


def _curve_table(curve: Sequence[JsonObject]) -> ReportTable:
    shown = [name for name in _POINT if any(point.get(name) is not None for point in curve)]
    return make_table(
        curve,
        [
            (Column("Episodes"), lambda point: figure(point["episode"], 0)),
            (Column("Tokens"), lambda point: figure(point["tokens"], 0)),
            *((Column(_POINT[name]), partial(_point_value, name)) for name in shown),
        ],
    )


def _point_value(name: str, point: JsonObject) -> Value:
    if name != "optimality":
        return figure(point.get(name))
    return estimate(Interval(point.get(name), point.get("optimality_low"), point.get("optimality_high")))


@dataclass(frozen=True)
class Drawing:
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


def draw_curve(curve: Sequence[JsonObject]) -> Drawing | None:
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
    return Drawing(
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
