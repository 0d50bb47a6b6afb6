"""Tables of the report as data, and the lines and shapes that stand for agents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

from markupsafe import Markup

from textgym_benchmarks.pages import number, places
from textgym_benchmarks.statistics import Interval
from textgym_benchmarks.summaries.findings import BASELINES

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        label: its head. title: what it means, for a tooltip.
        numeric: set to the right. bar: whether its values have intervals that are drawn.
        sorted: whether the rows are sorted by it, the greatest on top. descending: whether the first click does that.
    """

    label: str
    title: str = ""
    numeric: bool = True
    descending: bool = True
    bar: bool = False
    sorted: bool = False


@dataclass(frozen=True)
class Value:
    """One cell of a table.

    Args:
        text: what it says. note: softer words behind it.
        sort: what it is sorted by, None for last; by default its text.
        bar: an interval drawn in front of it, as `draw_bar` makes it; empty for none.
        href: where it leads.
        agent: index of the agent whose swatch stands before it.
        tone: "bad", "soft" or "".
        tint: 0 to 100, how strongly it is coloured; None: not at all.
    """

    text: str
    note: str = ""
    sort: float | str | None = ""
    bar: str = ""
    href: str = ""
    agent: int | None = None
    tone: str = ""
    tint: int | None = None


@dataclass(frozen=True)
class ReportTable:
    """A table: its columns, its rows, whether a reader may sort it. The first value of a row is its head."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    sortable: bool = False

    @property
    def numeric(self) -> bool:
        """Whether all but the first column are numbers."""
        return all(column.numeric for column in self.columns[1:])


ColumnOf = tuple[Column, Callable[[T], Value]]
"""A column, and how its value is made of what a row stands for."""


def make_table(rows: Iterable[T], columns: Sequence[ColumnOf[T]], sortable: bool = False) -> ReportTable:
    """Return a table with a row for each item."""
    values = tuple(tuple(value(row) for _, value in columns) for row in rows)
    return ReportTable(tuple(column for column, _ in columns), values, sortable)


def figure(value: float | None, digits: int = 3) -> Value:
    """Return a value that is a number, or a dash."""
    return Value(number(value, digits), sort=value, tone="soft" if value is None else "")


def timed(seconds: float | None) -> Value:
    """Return a value that is a time, or a dash."""
    return figure(seconds, places(seconds))


def figures(label: str, attribute: str, digits: int = 3, title: str = "", descending: bool = True) -> ColumnOf[object]:
    """Return a column of numbers, each an attribute of the row, such as "mean.value"."""
    value = attrgetter(attribute)
    return Column(label, title, descending=descending), lambda row: figure(value(row), digits)


def estimate(value: Interval | None, digits: int = 3, bar: str = "") -> Value:
    """Return a value with its interval as a note, unless that is unknown or reads the same as the value."""
    if value is None or value.value is None:
        return figure(None)
    text, note = number(value.value, digits), ""
    if value.low is not None and value.high is not None:
        low, high = number(value.low, digits), number(value.high, digits)
        note = "" if low == high == text else f"[{low}, {high}]"
    return Value(text, note, value.value, bar)


def tinted(value: Value, score: float | None, middle: float = 0.0) -> Value:
    """Return a value coloured by how far a score is from the middle, in full at a distance of 1 - middle."""
    if score is None:
        return value
    strength = min(round(100 * abs(score - middle) / (1.0 - middle)), 100)
    return replace(value, tone="low" if score < middle else value.tone, tint=strength)


def bar_scale(values: Iterable[Interval | None]) -> tuple[float, float]:
    """Return the ends of the scale of a column's bars: [0, 1], wider where scores need it, within [-0.5, 1.5]."""
    known = [end for each in values if each for end in (each.value, each.low, each.high) if end is not None]
    return max(-0.5, min([0.0, *known])), min(1.5, max([1.0, *known]))


def draw_bar(value: Interval | None, scale: tuple[float, float]) -> Markup:
    """Return the HTML of a rail from 0 to 1, on it the interval and the estimate; "" where there is none."""
    if value is None or value.value is None:
        return Markup()
    least, most = scale
    mean = value.value
    low, high = (mean if end is None else end for end in (value.low, value.high))

    def place(score: float) -> float:
        return round(100 * (min(max(score, least), most) - least) / (most - least), 1)

    left, zero = place(low), place(0.0)
    beyond = " beyond-low" if mean < least else " beyond-high" if mean > most else ""
    middle = "" if beyond else f'<i class="mid" style="left:{place(mean)}%"></i>'
    return Markup(
        f'<span class="interval{beyond}" aria-hidden="true">'
        f'<i class="unit" style="left:{zero}%;width:{place(1.0) - zero:.1f}%"></i>'
        f'<i class="range" style="left:{left}%;width:{round(place(high) - left, 1)}%"></i>{middle}</span>'
    )


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
_COLOURS, _GREY = 7, 8


@dataclass(frozen=True)
class AgentStyle:
    """How an agent is drawn.

    Args:
        name: the agent, as tables call it. colour: 1 to 8, of the CSS variables `--series-N`.
        dash, symbol: names that Plotly knows, keys of `DASHES` and `SYMBOLS`.
    """

    name: str
    colour: int
    dash: str
    symbol: str


def agent_styles(names: Sequence[str]) -> tuple[AgentStyle, ...]:
    """Return a style for each agent, in the order given; agents that learn nothing are grey."""
    dashes, symbols = list(DASHES), list(SYMBOLS)
    found, learners, baselines = [], 0, 0
    for name in names:
        if name in BASELINES:
            dash, symbol = (("dot", "circle"), ("dashdot", "square"))[baselines % 2]
            found.append(AgentStyle(name, _GREY, dash, symbol))
            baselines += 1
        else:
            turn, colour = divmod(learners, _COLOURS)
            symbol = symbols[(learners + turn) % len(symbols)]
            found.append(AgentStyle(name, 1 + colour, dashes[turn % len(dashes)], symbol))
            learners += 1
    return tuple(found)
