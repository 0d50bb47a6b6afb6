"""JsonSchema: pays for JSON that is valid against a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from textgym.messages import shown
from textgym.rewards.base import TermReward, Values
from textgym.rewards.data_columns import check_column, read_column
from textgym.rewards.extras import Rebuilt
from textgym.rewards.json_text import parse_json
from textgym.rewards.schemas import make_validator
from textgym.rewards.values import is_finite

Schema = Mapping[str, Any] | bool


@dataclass(frozen=True)
class JsonSchema(Rebuilt, TermReward):
    """Pays for a completion that is JSON and valid against a schema. Range [0, 1].

    Terms: `parses`, paid for any JSON (read strictly, see `textgym.rewards.json_text`); `valid`, the rest of
    1, for JSON that is valid.

    Args:
        schema: a JSON Schema (Draft 2020-12) for every prompt; None: `column` has one for each. Nothing is
            ever fetched: a reference that leads out of the schema is refused.
        column: data column with a schema (or its JSON text) for every prompt; None there abstains.
        parses: pay for the first term, in [0, 1].

    Raises: ValueError for a schema that is none, or not self-contained; ModuleNotFoundError without jsonschema.
    """

    schema: Schema | None = None
    column: str = "schema"
    parses: float = 0.2
    name = "json_schema"
    maximum = 1.0
    term_names = ("parses", "valid")

    def __post_init__(self) -> None:
        check_column(self.column)
        if not is_finite(self.parses) or not 0 <= self.parses <= 1:
            raise ValueError(f"parses={shown(self.parses)}: a number in 0..1 is allowed")
        if self.schema is not None:
            assert self._validator is not None  # a bad schema is refused now, not when it is first used

    @cached_property
    def _validator(self) -> Any:
        return make_validator(self.schema, "schema")

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Score every completion. Raises: ValueError if the column is missing, or has a bad schema."""
        if self.schema is not None:
            validators = [self._validator] * len(completions)
        else:
            validators = [self._from_row(row) for row in read_column(columns, self.column, self.name)]
        rows = [
            (None, None) if validator is None else self._score(text, validator)
            for text, validator in zip(completions, validators, strict=True)
        ]
        return {"parses": [row[0] for row in rows], "valid": [row[1] for row in rows]}

    def _from_row(self, row: Any) -> Any:
        if row is None:
            return None
        argument = f"column {self.column!r}"
        if not isinstance(row, str):
            row = json.dumps(row)
        return _cached_validator(row, argument)

    def _score(self, text: str, validator: Any) -> tuple[float, float]:
        try:
            value = parse_json(text)
        except ValueError:
            return 0.0, 0.0
        try:
            valid = validator.is_valid(value)
        except RecursionError:  # deeper than a schema that refers to itself can be followed
            valid = False
        return self.parses, (1.0 - self.parses) * valid


@lru_cache(maxsize=256)
def _cached_validator(text: str, argument: str) -> Any:
    try:
        schema = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{argument}: {text!r:.80} is no JSON ({error})") from error
    return make_validator(schema, argument)
