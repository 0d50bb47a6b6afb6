"""Tables, marks and intervals as HTML: not by a template, since a report has tens of thousands of cells."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from textgym_benchmarks.pages.html import visible
from textgym_benchmarks.report.marks import Mark
from textgym_benchmarks.report.tables import Bar, Column, Table, Value


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
