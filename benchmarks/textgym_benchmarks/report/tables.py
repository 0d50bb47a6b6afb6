"""Tables as data: what a template writes and a reader sorts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from textgym_benchmarks.pages.html import number


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        label: its head.
        title: what it means, for a tooltip.
        numeric: set to the right.
        descending: whether the first click puts the greatest on top.
        bar: whether its values have intervals that are drawn.
        sorted: whether the rows are sorted by it, the greatest on top.
    """

    label: str
    title: str = ""
    numeric: bool = True
    descending: bool = True
    bar: bool = False
    sorted: bool = False


@dataclass(frozen=True)
class Bar:
    """An interval drawn in a cell, in percent of its width.

    Args:
        left, width: of the interval. mid: the estimate; None where it lies outside. zero, one: of the scores 0 and 1.
        beyond: "low" or "high" where the estimate lies outside.
    """

    left: float
    width: float
    mid: float | None
    zero: float
    one: float
    beyond: str = ""


@dataclass(frozen=True)
class Value:
    """One cell of a table.

    Args:
        text: what it says. note: softer words behind it.
        sort: what it is sorted by, None for last; by default its text.
        bar: an interval in front of it.
        href: where it leads.
        agent: index of the agent whose mark stands before it.
        tone: "bad", "soft" or "".
        tint: 0 to 100, how strongly it is coloured; None: not at all.
    """

    text: str
    note: str = ""
    sort: float | str | None = ""
    bar: Bar | None = None
    href: str = ""
    agent: int | None = None
    tone: str = ""
    tint: int | None = None


@dataclass(frozen=True)
class Table:
    """A table: its columns, its rows, whether a reader may sort it. The first value of a row is its head."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    sortable: bool = False


def words(text: str) -> Value:
    """A value that is a text."""
    return Value(text)


def figure(value: float | None, digits: int = 3) -> Value:
    """A value that is a number, or a dash."""
    return Value(number(value, digits), sort=value, tone="soft" if value is None else "")


def estimate(value: Mapping[str, Any] | None, digits: int = 3, bar: Bar | None = None) -> Value:
    """A value {mean, low, high} with its interval as a note, where it has one."""
    if value is None or value.get("mean") is None:
        return figure(None)
    return Value(number(value["mean"], digits), interval(value, digits), value["mean"], bar)


def interval(value: Mapping[str, Any], digits: int = 3) -> str:
    """[low, high], or nothing where they are unknown or read the same as the mean."""
    low, high = value.get("low"), value.get("high")
    if low is None or high is None:
        return ""
    ends = number(low, digits), number(high, digits)
    same = ends[0] == ends[1] == number(value["mean"], digits)
    return "" if same else f"[{ends[0]}, {ends[1]}]"


def bar_scale(values: Sequence[Mapping[str, Any] | None]) -> tuple[float, float]:
    """Ends of the scale on which the bars of a column are drawn: [0, 1], wider where scores need it, to a limit."""
    ends = [
        value[end] for value in values if value for end in ("mean", "low", "high") if value[end] is not None
    ]
    return max(-0.5, min([0.0, *ends])), min(1.5, max([1.0, *ends]))


def bar(value: Mapping[str, Any] | None, scale: tuple[float, float]) -> Bar | None:
    """The interval of an estimate on a scale."""
    if value is None or value["mean"] is None:
        return None
    least, most = scale

    def place(score: float) -> float:
        return round(100 * (min(max(score, least), most) - least) / (most - least), 1)

    low = value["mean"] if value["low"] is None else value["low"]
    high = value["mean"] if value["high"] is None else value["high"]
    beyond = "low" if value["mean"] < least else "high" if value["mean"] > most else ""
    mid = None if beyond else place(value["mean"])
    return Bar(place(low), round(place(high) - place(low), 1), mid, place(0.0), place(1.0), beyond)
