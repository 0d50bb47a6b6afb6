"""Learning curves: their figures, the numbers of these, and the drawing on the page of a single run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from textgym.checks import JsonObject
from textgym_benchmarks.pages import number
from textgym_benchmarks.report.tables import Column, ColumnOf, ReportTable, Value, estimate, figure, make_table
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries import Summary
from textgym_benchmarks.summaries.charts import Band, Curve
from textgym_benchmarks.summaries.grid import RankedTask

DIGITS = 5  # significant ones, enough for a screen
CURVE_TITLES = {
    "optimality": "Optimality",
    "objective": "Objective J",
    "reward": "Reward",
    "gold": "Gold reward",
    "kl": "KL to the reference, nats",
    "entropy": "Entropy, nats an answer",
    "length": "Length, tokens",
}
LEFT, RIGHT, TOP, BOTTOM = 44.0, 628.0, 24.0, 208.0
"""Edges of the curve in pixels of its drawing."""


def curve_data(curve: Curve, agent: int) -> JsonObject:
    """Return what figures.js draws a curve from. Args: agent: its index."""
    x = {"episodes": rounded(curve.episodes), "tokens": rounded(curve.tokens)}
    data: JsonObject = {"agent": agent, "run": curve.run, **x}
    for name in CURVE_TITLES:
        band: Band = getattr(curve, name)
        if known(band):
            data[name] = {part: rounded(values) for part, values in vars(band).items()}
    return data


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Return numbers with as many digits as a screen shows."""
    return [None if value is None else float(f"{value:.{DIGITS}g}") for value in values]


def curve_charts(summary: Summary) -> list[tuple[RankedTask, str, str, ReportTable]]:
    """Return the figures of learning curves: problem, measure, title and numbers of each.

    There is one for each problem that has a curve, its measure "": that which a reader chooses, and the numbers are
    those of optimality. Where there is but one problem, there is one for each measure.
    """
    drawn = {curve.problem for curve in summary.curves}
    if len(summary.problems) > 1:
        shown = [(each, "", each.label) for each in summary.problems if each.index in drawn]
    else:
        shown = [(summary.problems[0], name, CURVE_TITLES[name]) for name in measures_of_curves(summary)]
    return [(*each, _curve_table(summary, each[0], each[1] or "optimality")) for each in shown]


def measures_of_curves(summary: Summary) -> list[str]:
    """Return the measures that curves have; the gold reward only where it differs from the reward."""
    names = [name for name in CURVE_TITLES if any(known(getattr(curve, name)) for curve in summary.curves)]
    same = all(rounded(curve.gold.mean) == rounded(curve.reward.mean) for curve in summary.curves)
    return [name for name in names if name != "gold" or not same]


def known(band: Band) -> bool:
    """Return whether a curve has the measure anywhere."""
    return any(value is not None for value in band.mean)


def _curve_table(summary: Summary, problem: RankedTask, measure: str) -> ReportTable:
    curves = [curve for curve in summary.curves if curve.problem == problem.index]
    columns: list[ColumnOf[float]] = [(Column("Episodes"), lambda episode: figure(episode, 0))]
    columns += [(Column(curve.name), partial(_curve_value, curve, measure)) for curve in curves]
    return make_table(sorted({episode for curve in curves for episode in curve.episodes}), columns)


def _curve_value(curve: Curve, measure: str, episode: float) -> Value:
    if episode not in curve.episodes:
        return figure(None)
    place, band = curve.episodes.index(episode), getattr(curve, measure)
    return estimate(Interval(band.mean[place], band.low[place], band.high[place]), 2)


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
