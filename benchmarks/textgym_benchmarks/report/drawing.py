"""The learning curve of one cell as coordinates of a drawing, so that its page needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textgym_benchmarks.pages.html import number

LEFT, RIGHT, TOP, BOTTOM = 44.0, 628.0, 24.0, 208.0


@dataclass(frozen=True)
class Line:
    """A horizontal line of the grid and what is written beside it."""

    y: float
    text: str


@dataclass(frozen=True)
class Tick:
    """A label under the drawing; anchor: "start", "middle", "end"."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Drawing:
    """A curve in pixels of a drawing of 640 by 240: SVG paths of line, band and dots; grid and labels."""

    path: str
    band: str
    dots: str
    lines: tuple[Line, ...]
    ticks: tuple[Tick, ...]


def draw_curve(curve: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Optimality over episodes; None where fewer than two points have an optimality."""
    points = [point for point in curve if point.get("optimality") is not None]
    if len(points) < 2 or points[-1]["episode"] <= points[0]["episode"]:
        return None
    ends = [
        value
        for point in points
        for name in ("optimality", "optimality_low", "optimality_high")
        if (value := point.get(name)) is not None
    ]
    least, most = min(0.0, *ends), max(1.0, *ends)
    last = points[-1]["episode"]

    def x(episode: float) -> float:
        return float(round(LEFT + (RIGHT - LEFT) * episode / last, 1))

    def y(score: float) -> float:
        return float(round(BOTTOM - (BOTTOM - TOP) * (score - least) / (most - least), 1))

    places = tuple((x(point["episode"]), y(point["optimality"])) for point in points)
    band = ""
    if all(point.get("optimality_low") is not None for point in points):
        upper = [(x(point["episode"]), y(point["optimality_high"])) for point in points]
        lower = [(x(point["episode"]), y(point["optimality_low"])) for point in points]
        band = _path([*upper, *reversed(lower)]) + "Z"
    levels = sorted({0.0, 1.0, *([round(least, 2)] if least < -0.05 else []), *([0.5] if least > -1 else [])})
    return Drawing(
        path=_path(places),
        band=band,
        dots="".join(f"M{across:g},{down:g}h0" for across, down in places),
        lines=tuple(Line(y(level), f"{level:g}".replace("-", "\u2212")) for level in levels),
        ticks=(
            Tick(LEFT, "0", "start"),
            Tick((LEFT + RIGHT) / 2, number(last / 2, 0), "middle"),
            Tick(RIGHT, number(last, 0), "end"),
        ),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)
