"""Data columns that a reward reads by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textgym.messages import shown


def read_column(columns: Mapping[str, Any], column: str, reward: str) -> Sequence[Any]:
    """The values of a data column. Raises: ValueError if it is missing."""
    if column not in columns:
        raise ValueError(
            f"columns={sorted(columns)}: {column!r} is needed by reward {reward!r}; give the task that data "
            "column, or the reward another column="
        )
    values: Sequence[Any] = columns[column]
    return values


def check_column(column: Any) -> None:
    """Raise ValueError unless `column` is a name that a data column can have."""
    if not isinstance(column, str) or not column:
        raise ValueError(f"column={shown(column)}: the name of a data column is allowed")
