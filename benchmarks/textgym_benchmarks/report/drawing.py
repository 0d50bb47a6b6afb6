"""Drawing and markup of the report's pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from textgym_benchmarks.pages.html import number, visible
from textgym_benchmarks.report.tables import Bar, Column, Table, Value

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


# Plotly's names, with the same shapes for the swatches: SVG paths around (0, 0).
SYMBOLS = {
    "circle": "M-3.6,0a3.6,3.6 0 1,0 7.2,0a3.6,3.6 0 1,0 -7.2,0Z",
    "square": "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "diamond": "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
    "triangle-up": "M-4.2,3.2H4.2L0,-4.4Z",
    "triangle-down": "M-4.2,-3.2H4.2L0,4.4Z",
    "cross": "M-4.2,-1.5H-1.5V-4.2H1.5V-1.5H4.2V1.5H1.5V4.2H-1.5V1.5H-4.2Z",
    "star": "M0,-5L1.3,-1.6L4.8,-1.5L2,0.7L3,4.2L0,2.1L-3,4.2L-2,0.7L-4.8,-1.5L-1.3,-1.6Z",
}
DASHES = {"solid": "", "dash": "6 3", "dot": "1.5 2.5", "dashdot": "6 2.5 1.5 2.5"}
BASELINES = ("reference", "random")
_COLOURS, _GREY = 7, 8


@dataclass(frozen=True)
class Mark:
    """How an agent is drawn.

    Args:
        name: the agent, as tables call it.
        colour: 1 to 8, of the CSS variables `--series-N`.
        dash, symbol: names that Plotly knows, keys of `DASHES` and `SYMBOLS`.
    """

    name: str
    colour: int
    dash: str
    symbol: str

    @property
    def dash_pattern(self) -> str:
        """As SVG's stroke-dasharray takes it."""
        return DASHES[self.dash]

    @property
    def shape(self) -> str:
        """An SVG path."""
        return SYMBOLS[self.symbol]


def marks_of(names: Sequence[str]) -> tuple[Mark, ...]:
    """A mark for each agent, in the order given; agents that learn nothing are grey."""
    dashes, symbols = list(DASHES), list(SYMBOLS)
    found, learners, baselines = [], 0, 0
    for name in names:
        if name in BASELINES:
            mark = Mark(name, _GREY, ("dot", "dashdot")[baselines % 2], ("circle", "square")[baselines % 2])
            baselines += 1
        else:
            turn = learners // _COLOURS
            dash = dashes[turn % len(dashes)]
            mark = Mark(name, 1 + learners % _COLOURS, dash, symbols[(learners + turn) % len(symbols)])
            learners += 1
        found.append(mark)
    return tuple(found)


def table(content: Table, label: str, kind: str = "") -> Markup:
    """A table in a box of its own that scrolls. Marks of agents are those of `swatches` on the same page.

    Args:
        label: what the box is called by a screen reader.
        kind: a class of the table.
    """
    head = "".join(_head(column, content.sortable) for column in content.columns)
    rows = "\n".join(f"<tr>{_row(row, content)}</tr>" for row in content.rows)
    # All but the first column are numbers: said once, not in every cell.
    classes = " ".join(filter(None, (kind, "numeric" if _all_numeric(content) else "")))
    attributes = (f' class="{classes}"' if classes else "") + (" data-sortable" if content.sortable else "")
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}"><table{attributes}>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def swatch(mark: Mark) -> Markup:
    """The line and the shape that stand for an agent, as a small drawing."""
    return Markup(f'<svg class="swatch" viewBox="-13 -6 26 12" aria-hidden="true">{_drawn(mark)}</svg>')


def swatches(marks: Sequence[Mark]) -> Markup:
    """The drawings of all agents, hidden; tables on the same page refer to them by number."""
    symbols = "".join(
        f'<symbol id="mark-{index}" viewBox="-13 -6 26 12">{_drawn(mark)}</symbol>'
        for index, mark in enumerate(marks)
    )
    return Markup(f"<svg hidden>{symbols}</svg>")


def _drawn(mark: Mark) -> str:
    dash = f' stroke-dasharray="{mark.dash_pattern}"' if mark.dash_pattern else ""
    return (
        f'<g style="color:var(--series-{mark.colour})"><path d="M-13,0H13" stroke="currentColor" '
        f'stroke-width="1.8"{dash}/><path d="{mark.shape}" fill="currentColor"/></g>'
    )


def interval(bar: Bar) -> str:
    """A rail from 0 to 1, on it the interval and the estimate."""
    beyond = f" beyond-{bar.beyond}" if bar.beyond else ""
    middle = "" if bar.mid is None else f'<i class="mid" style="left:{bar.mid}%"></i>'
    return (
        f'<span class="interval{beyond}" aria-hidden="true">'
        f'<i class="unit" style="left:{bar.zero}%;width:{bar.one - bar.zero:.1f}%"></i>'
        f'<i class="range" style="left:{bar.left}%;width:{bar.width}%"></i>{middle}</span>'
    )


def _head(column: Column, sortable: bool) -> str:
    title = f' title="{_text(column.title)}"' if column.title else ""
    number = ' class="n"' if column.numeric else ""
    descending = " data-descending" if column.descending else ""
    order = f' aria-sort="{"descending" if column.sorted else "none"}"{descending}' if sortable else ""
    return f'<th scope="col"{number}{title}{order}>{_text(column.label)}</th>'


def _row(row: Sequence[Value], content: Table) -> str:
    numeric = _all_numeric(content)
    parts = []
    for place, (value, column) in enumerate(zip(row, content.columns, strict=True)):
        tag = 'th scope="row"' if place == 0 else "td"
        right = column.numeric and (place == 0 or not numeric)
        parts.append(
            f"<{tag}{_attributes(value, right, content.sortable)}>{_value(value, column)}</{tag[:2]}>"
        )
    return "".join(parts)


def _attributes(value: Value, right: bool, sortable: bool) -> str:
    tinted = "tinted" if value.tint is not None else ""
    classes = " ".join(filter(None, ("n" if right else "", value.tone, tinted)))
    found = f' class="{classes}"' if classes else ""
    if sortable and value.sort is None:
        found += ' data-sort=""'
    elif sortable and not isinstance(value.sort, str):
        found += f' data-sort="{value.sort:.6g}"'
    return found + (f' style="--tint:{value.tint}%"' if tinted else "")


def _value(value: Value, column: Column) -> str:
    mark = "" if value.agent is None else f'<svg class="swatch"><use href="#mark-{value.agent}"/></svg> '
    text = _text(value.text)
    if value.href:
        text = f'<a href="{_text(value.href)}">{text}</a>'
    note = _text(value.note)
    if column.bar:
        rail = interval(value.bar) if value.bar else '<span class="interval"></span>'
        return f'{rail}<span class="mean">{text}</span><small class="ends">{note}</small>'
    return f"{mark}{text} <small>{note}</small>" if note else f"{mark}{text}"


def _all_numeric(content: Table) -> bool:
    return all(column.numeric for column in content.columns[1:])


def _text(text: str) -> str:
    return str(escape(visible(text)))
