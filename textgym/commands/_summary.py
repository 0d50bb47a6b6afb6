"""Tables of measures: one policy with its intervals, or before and after learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from textgym.commands._console import untrusted

MEASURES = {
    "reward": "reward",
    "gold": "gold reward",
    "kl": "KL to the reference, nats",
    "objective": "objective J",
    "optimality": "optimality",
    "entropy": "entropy, nats",
    "length": "length, tokens",
    "stop_rate": "ended by itself",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
}
Row = Mapping[str, Any]


def measures_table(columns: Mapping[str, Row], names: list[str] | None = None) -> Table:
    """A row per measure, a column per policy, with 95% intervals; what failed, in completions.

    Args:
        columns: heading -> flat measures under `eval/...`.
        names: of the measures; None shows all that are there, and the reward's terms.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("measure")
    for heading in columns:
        table.add_column(heading, justify="right")
    wanted = names or [
        name for name in MEASURES if any(row.get(f"eval/{name}") is not None for row in columns.values())
    ]
    for name in wanted:
        table.add_row(MEASURES[name], *(cell(row, name) for row in columns.values()))
    if names is None:
        _add_group(table, columns, "terms", "term", "-")
        _add_group(table, columns, "failures", "failures:", "0")
    return table


def how_measured(evaluation: Any, optimum: Any) -> str:
    """Return which measures of an evaluation are exact and which were sampled, in a sentence."""
    if evaluation.exact:
        return (
            "Exact, over all answers: reward, KL, J, entropy, length and how many ended by themselves. "
            "Sampled: terms and distinct words."
        )
    sampled = "Sampled, with 95% intervals (none at one completion a prompt): reward, KL, J and the rest."
    return f"{sampled} J* is exact." if optimum.exact else sampled


def _add_group(table: Table, columns: Mapping[str, Row], group: str, title: str, absent: str) -> None:
    """A row for every measure under `eval/GROUP/`."""
    prefix = f"eval/{group}/"
    for key in dict.fromkeys(key for row in columns.values() for key in row if key.startswith(prefix)):
        label = key.removeprefix(prefix)
        cells = [cell(row, f"{group}/{label}") if key in row else absent for row in columns.values()]
        table.add_row(untrusted(f"  {title} {label}"), *cells)


def cell(row: Row, name: str) -> str:
    """A measure as text: "0.912 [0.901, 0.922]", without the bracket where it has no interval, or "-"."""
    value, low, high = (row.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    # A difference of 1e-18 is no "-0.000".
    text = f"{value + 0.0:.3f}".replace("-0.000", "0.000")
    return (
        text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")
    )
