"""JsonValues: pays for JSON that says the right things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textgym.rewards.base import NamedReward
from textgym.rewards.data_columns import check_column, read_column
from textgym.rewards.json_text import exact, parse_json


@dataclass(frozen=True)
class JsonValues(NamedReward):
    """Pays the share of the right object's keys that the completion has with the same value. Range [0, 1].

    The completion has to be a JSON object; other keys in it are passed over. Values are compared as JSON
    compares them: 1 and 1.0 are equal, 1 and true are not. Numbers are exact decimals: 0.1 is what the float 0.1 is
    written as.

    Args:
        column: data column with the right object of every prompt, at least one key; None abstains.
    """

    column: str = "value"
    name = "json_values"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_column(self.column)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Score every completion. Raises: ValueError if the column is missing or holds what is no object."""
        right = read_column(columns, self.column, self.name)
        return [
            None if wanted is None else self._share(text, wanted)
            for text, wanted in zip(completions, right, strict=True)
        ]

    def _share(self, text: str, wanted: Any) -> float:
        if not isinstance(wanted, Mapping) or not wanted:
            raise ValueError(
                f"column {self.column!r}: {wanted!r:.80}: an object with at least one key is allowed"
            )
        try:
            found = parse_json(text)
        except ValueError:
            return 0.0
        if not isinstance(found, dict):
            return 0.0
        right = [key in found and same_json(found[key], value) for key, value in wanted.items()]
        return sum(right) / len(right)


def same_json(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_json, a, b))
    return bool(exact(a) == exact(b))
