"""Pay for JSON: valid against a schema that is self-contained, or saying the right things."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property, lru_cache
from types import ModuleType
from typing import Any, Final, Protocol

from textgym.checks import check_number, shown
from textgym.files import refuse_constant, unique_keys
from textgym.rewards.base import (
    Column,
    NamedReward,
    Rebuilt,
    TermReward,
    Values,
    check_column,
    import_extra,
    read_column,
)
from textgym.rewards.patterns import Regex

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
Schema = Mapping[str, object] | bool
_REWARD: Final = "json_schema"
_DATA: Final = ("enum", "const", "default", "examples")  # values, in which "$ref" is a key like any other
_REFUSED: Final = {
    "patternProperties": "its expressions would not run in linear time; name the properties",
    "$recursiveRef": "it belongs to an older draft; $dynamicRef is allowed",
}
_MOST_DIGITS: Final = 4000
"""Of an integer that Python reads; longer ones are decimals."""
_MOST_EXPONENT: Final = 17
"""Digits of an exponent that a decimal has; larger ones all count as the largest of that many digits."""


def parse_json(text: str) -> object:
    """Return the value of a JSON text; numbers with a point or an exponent are `Decimal`s, exactly what is written.

    Raises: ValueError for what is no JSON (RFC 8259), has a key twice in an object, or is nested deeper than Python's
        recursion limit.
    """
    try:
        value: object = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def exact(value: object) -> object:
    """Return JSON values with every float as the decimal that it is written as, as `parse_json` reads it.

    Raises: ValueError for NaN and infinities.
    """
    if isinstance(value, float):
        return Decimal(repr(float(value))) if math.isfinite(value) else refuse_constant(str(value))
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    return [exact(inner) for inner in value] if isinstance(value, list) else value


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _MOST_DIGITS else Decimal(digits)


def _decimal(digits: str) -> Decimal:
    mantissa, _, exponent = digits.lower().partition("e")
    if len(exponent.lstrip("+-0")) > _MOST_EXPONENT:
        exponent = ("-" if exponent[0] == "-" else "") + "9" * _MOST_EXPONENT
    return Decimal(f"{mantissa}e{exponent or 0}")


_DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_int=_integer, parse_float=_decimal
)


class Validator(Protocol):
    """A validator of the package `jsonschema`."""

    def is_valid(self, instance: object) -> bool:
        """Return whether a value is valid."""


def make_validator(schema: object, argument: str) -> Validator:
    """Return the validator of a schema.

    Args:
        schema: JSON values, of Draft 2020-12. `pattern` runs on re2; numbers are exact decimals, as `parse_json`
            reads them.
        argument: what it is called in messages.
    Raises: ValueError where it is no valid schema, is nested too deeply, refers to what it does not contain, or
        to itself without end; ModuleNotFoundError without jsonschema, or without google-re2 where it has a pattern.
    """
    jsonschema = _extra("jsonschema")
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{argument}={shown(schema)}: an object or a bool is allowed")
    if isinstance(schema, Mapping) and schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise ValueError(f"{argument}: $schema is {schema['$schema']!r}, only {DIALECT!r} is allowed")
    try:
        plain = _plain(schema)
        # Without formats: patterns are for re2 to judge, which runs them.
        jsonschema.Draft202012Validator.check_schema(plain, format_checker=jsonschema.FormatChecker(()))
        # A registry that holds this schema alone, and retrieves nothing.
        resource = _resource(plain)
        registry = _extra("referencing").Registry().with_resource(resource.id() or "", resource).crawl()
        _check_part(plain, registry.resolver(resource.id() or ""))
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "top"
        reason = re.sub(r"Decimal\('([^']*)'\)", r"\1", error.message)
        raise ValueError(f"{argument}: not a JSON schema, at {place}: {reason:.200}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{argument}: nested too deeply") from error
    validator: Validator = _validator_class()(plain, registry=registry)
    try:
        validator.is_valid(None)
    except RecursionError as error:
        raise ValueError(f"{argument}: refers to itself without end") from error
    return validator


def _extra(module: str) -> ModuleType:
    return import_extra(module, f"reward {_REWARD!r}")


def _plain(value: object) -> object:
    """Return JSON values as the validator knows them: dicts, lists, exact numbers, whole ones as integers.

    Raises: ValueError for what is no JSON.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"a key {shown(key)} is no JSON, a text is allowed")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    value = exact(value)
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if _is_integer(value) and value.adjusted() < _MOST_DIGITS else value
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(f"{shown(value)} is no JSON; an object, a list, a text, a number, a bool or None is allowed")


def _resource(schema: object) -> Any:
    return _extra("referencing.jsonschema").DRAFT202012.create_resource(schema)


def _check_part(part: object, resolver: Any) -> None:
    """Raise ValueError for anything that a schema may not hold, at any depth."""
    if isinstance(part, dict):
        if isinstance(part.get("$id"), str):
            resolver = resolver.in_subresource(_resource(part))
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(part.get(keyword), str):
                try:
                    resolver.lookup(part[keyword])
                except _extra("referencing.exceptions").Unresolvable as error:
                    raise ValueError(
                        f"{keyword} {part[keyword]!r} is not in the schema; nothing is fetched, so put what it "
                        "refers to under $defs"
                    ) from error
        for keyword, reason in _REFUSED.items():
            if keyword in part:
                raise ValueError(f"{keyword!r} is not allowed: {reason}")
        if isinstance(part.get("pattern"), str):
            Regex(part["pattern"], "search", reward=_REWARD)
    for inner in _parts(part):
        _check_part(inner, resolver)


def _parts(part: object) -> Iterator[object]:
    """Yield what may be a schema inside a schema; a property's name is no keyword."""
    if isinstance(part, list):
        yield from part
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("properties", "$defs", "dependentSchemas") and isinstance(value, dict):
                yield from value.values()
            elif key not in _DATA:
                yield value


@cache
def _validator_class() -> type:
    """Return the package's class with exact numbers and with patterns in linear time."""
    draft = _extra("jsonschema").Draft202012Validator
    made: type = _extra("jsonschema.validators").extend(
        draft,
        {"pattern": _pattern, "multipleOf": _multiple_of},
        type_checker=draft.TYPE_CHECKER.redefine("integer", lambda _, value: _is_integer(value)),
    )
    return made


def _is_integer(value: object) -> bool:
    if isinstance(value, Decimal):
        return _lowest_terms(value)[1] >= 0
    return isinstance(value, int) and not isinstance(value, bool)


def _multiple_of(_: object, step: int | Decimal, instance: object, schema: object) -> Iterator[Exception]:
    """Check the keyword `multipleOf` exactly (the package's own divides floats)."""
    if isinstance(instance, bool) or not isinstance(instance, int | Decimal):
        return
    # In integers, for a decimal's own remainder has limits.
    of_step, power_of_step = _lowest_terms(Decimal(step))
    value, power = _lowest_terms(Decimal(instance))
    if power >= power_of_step:
        value = value * pow(10, power - power_of_step, of_step) % of_step
    if value:
        yield _extra("jsonschema").ValidationError(f"{instance} is not a multiple of {step}")


def _lowest_terms(number: Decimal) -> tuple[int, int]:
    """Return an integer without zeros at its end, and the power of ten that it is multiplied by."""
    _, digits, exponent = number.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    return int(Decimal(kept or 0)), int(exponent) + len(digits) - len(kept)


def _pattern(_: object, pattern: str, instance: object, schema: object) -> Iterator[Exception]:
    """Check the keyword `pattern` by re2 (the package's own is Python's, which may take exponential time)."""
    if isinstance(instance, str) and not Regex(pattern, "search", reward=_REWARD).matches([instance])[0]:
        yield _extra("jsonschema").ValidationError(f"{instance!r} does not match {pattern!r}")


@dataclass(frozen=True)
class JsonSchema(Rebuilt, TermReward):
    """Pays for a completion that is JSON and valid under a schema. Range [0, 1].

    Terms: `parses`, paid for any JSON (read strictly, see `textgym.rewards.json`); `valid`, the rest of
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
        check_number("parses", self.parses, 0, 1)
        if self.schema is not None:
            assert self._validator is not None  # a bad schema is refused now, not when it is first used

    @cached_property
    def _validator(self) -> Validator:
        return make_validator(self.schema, "schema")

    def terms(self, prompts: list[str], completions: list[str], **columns: Column) -> dict[str, Values]:
        """Score every completion. Raises: ValueError if the column is missing, or has a bad schema."""
        if self.schema is None:
            validators = [self._from_row(row) for row in read_column(columns, self.column, self.name)]
        else:
            validators = [self._validator] * len(completions)
        rows = [
            (None, None) if validator is None else self._score(text, validator)
            for text, validator in zip(completions, validators, strict=True)
        ]
        return {"parses": [row[0] for row in rows], "valid": [row[1] for row in rows]}

    def _from_row(self, row: object) -> Validator | None:
        if row is None:
            return None
        return _cached_validator(row if isinstance(row, str) else json.dumps(row), f"column {self.column!r}")

    def _score(self, text: str, validator: Validator) -> tuple[float, float]:
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
def _cached_validator(text: str, argument: str) -> Validator:
    try:
        schema = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{argument}: {text!r:.80} is no JSON ({error})") from error
    return make_validator(schema, argument)


@dataclass(frozen=True)
class JsonValues(NamedReward):
    """Pays the share of the right object's keys that have the same value in the completion. Range [0, 1].

    The completion has to be a JSON object; other keys in it are passed over. Values are compared as JSON
    compares them: 1 and 1.0 are equal, 1 and true are not. Numbers are exact decimals: 0.1 is what the float 0.1 is
    written as.

    Args:
        column: data column with the right object of every prompt, at least one key; None abstains.
    Raises: ValueError for a `column` that is no name.
    """

    column: str = "value"
    name = "json_values"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_column(self.column)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing or holds what is no object."""
        right = read_column(columns, self.column, self.name)
        return [
            None if wanted is None else self._share(text, wanted)
            for text, wanted in zip(completions, right, strict=True)
        ]

    def _share(self, text: str, wanted: object) -> float:
        if not isinstance(wanted, Mapping) or not wanted:
            raise ValueError(f"column {self.column!r}: {wanted!r:.80}: an object with at least one key is allowed")
        try:
            found = parse_json(text)
        except ValueError:
            return 0.0
        if not isinstance(found, dict):
            return 0.0
        right = [key in found and same_json(found[key], value) for key, value in wanted.items()]
        return sum(right) / len(right)


def same_json(a: object, b: object) -> bool:
    """Return whether two JSON values are equal."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_json, a, b))
    return bool(exact(a) == exact(b))
