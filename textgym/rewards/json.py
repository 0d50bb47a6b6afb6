"""Pay for JSON: valid against a schema that is self-contained, or saying the right things."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property, lru_cache
from typing import Any, Final

from textgym.checks import shown
from textgym.files import refuse_constant, unique_keys
from textgym.rewards.base import (
    NamedReward,
    Rebuilt,
    TermReward,
    Values,
    check_column,
    import_extra,
    read_column,
)
from textgym.rewards.calling import is_finite
from textgym.rewards.patterns import Regex

_MOST_DIGITS: Final = 4000
"""Of an integer that Python reads; longer ones are decimals."""
_MOST_EXPONENT: Final = 17
"""Digits of an exponent that a decimal has; larger ones all count as the largest of that many digits."""


def parse_json(text: str) -> Any:
    """The value of a JSON text; numbers with a point or an exponent are `Decimal`s, exactly what is written.

    Refused, beyond what the grammar of JSON (RFC 8259) refuses: a key that stands twice in an object, and nesting
    deeper than Python's recursion limit.

    Raises: ValueError for anything that is refused.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def exact(value: Any) -> Any:
    """JSON values with every float as the decimal number that it is written as, as `parse_json` reads it.

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


DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REWARD: Final = "json_schema"
_DATA: Final = ("enum", "const", "default", "examples")  # values, in which "$ref" is a key like any other
_REFUSED: Final = {
    "patternProperties": "its expressions would not run in linear time; name the properties",
    "$recursiveRef": "it belongs to an older draft; $dynamicRef is allowed",
}


def make_validator(schema: Any, argument: str) -> Any:
    """A validator of the `jsonschema` package for a schema; its `is_valid(value)` answers.

    Args:
        schema: JSON values, of Draft 2020-12. `pattern` runs on re2; numbers are exact decimals, as `parse_json`
            reads them.
        argument: what it is called in messages.

    Raises: ValueError where it is no valid schema, is nested too deeply, refers to what it does not contain, or
        to itself without end; ModuleNotFoundError without jsonschema, or without google-re2 where it has a pattern.
    """
    try:
        return _make(schema, argument)
    except RecursionError as error:
        raise ValueError(f"{argument}: nested too deeply") from error


def _make(schema: Any, argument: str) -> Any:
    jsonschema = import_extra("jsonschema", _REWARD)
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"{argument}={shown(schema)}: an object or a bool is allowed")
    if isinstance(schema, Mapping) and schema.get("$schema", DIALECT) not in (DIALECT, f"{DIALECT}#"):
        raise ValueError(f"{argument}: $schema is {schema['$schema']!r}, only {DIALECT!r} is allowed")
    try:
        schema = _plain(schema)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    try:
        # Without formats: patterns are for re2 to judge, which runs them.
        jsonschema.Draft202012Validator.check_schema(schema, format_checker=jsonschema.FormatChecker(()))
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "top"
        reason = re.sub(r"Decimal\('([^']*)'\)", r"\1", error.message)
        raise ValueError(f"{argument}: not a JSON schema, at {place}: {reason:.200}") from error
    registry, resolver = _closed_world(schema)
    _check_part(schema, resolver, argument)
    validator = _validator_class()(schema, registry=registry)
    try:
        validator.is_valid(None)
    except RecursionError as error:
        raise ValueError(f"{argument}: refers to itself without end") from error
    return validator


def _plain(value: Any) -> Any:
    """JSON values as the validator knows them: dicts, lists, and numbers as they are written, whole ones as integers.

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
    raise ValueError(
        f"{shown(value)} is no JSON; an object, a list, a text, a number, a bool or None is allowed"
    )


def _closed_world(schema: Any) -> tuple[Any, Any]:
    """A registry that holds this schema alone and retrieves nothing, and the resolver at its root."""
    referencing = import_extra("referencing", _REWARD)
    specification = import_extra("referencing.jsonschema", _REWARD).DRAFT202012
    resource = referencing.Resource(contents=schema, specification=specification)
    uri = resource.id() or ""
    registry = referencing.Registry().with_resource(uri, resource).crawl()
    return registry, registry.resolver(uri)


def _check_part(part: Any, resolver: Any, argument: str) -> None:
    """Look at a schema and everything in it. Raises: ValueError for what may not stand in one."""
    unresolvable = import_extra("referencing.exceptions", _REWARD).Unresolvable
    referencing = import_extra("referencing", _REWARD)
    specification = import_extra("referencing.jsonschema", _REWARD).DRAFT202012
    if isinstance(part, dict):
        if isinstance(part.get("$id"), str):
            resolver = resolver.in_subresource(referencing.Resource(part, specification))
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(part.get(keyword), str):
                try:
                    resolver.lookup(part[keyword])
                except unresolvable as error:
                    raise ValueError(
                        f"{argument}: {keyword} {part[keyword]!r} is not in the schema; nothing is fetched, so "
                        "put what it refers to under $defs"
                    ) from error
        for keyword, reason in _REFUSED.items():
            if keyword in part:
                raise ValueError(f"{argument}: {keyword!r} is not allowed: {reason}")
        if isinstance(part.get("pattern"), str):
            Regex(part["pattern"], "search", argument=f"{argument}: pattern", reward=_REWARD)
    for inner in _parts(part):
        _check_part(inner, resolver, argument)


def _parts(part: Any) -> Iterator[Any]:
    """What may be a schema inside of a schema; a property's name is no keyword."""
    if isinstance(part, list):
        yield from part
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("properties", "$defs", "dependentSchemas") and isinstance(value, dict):
                yield from value.values()
            elif key not in _DATA:
                yield value


@cache
def _validator_class() -> Any:
    draft = import_extra("jsonschema", _REWARD).Draft202012Validator
    return import_extra("jsonschema.validators", _REWARD).extend(
        draft,
        {"pattern": _pattern, "multipleOf": _multiple_of},
        type_checker=draft.TYPE_CHECKER.redefine("integer", lambda _, value: _is_integer(value)),
    )


def _is_integer(value: Any) -> bool:
    if isinstance(value, Decimal):
        return _lowest_terms(value)[1] >= 0
    return isinstance(value, int) and not isinstance(value, bool)


def _multiple_of(validator: Any, step: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `multipleOf`, exactly (the package's own divides floats)."""
    if validator.is_type(instance, "number") and not _divides(Decimal(step), Decimal(instance)):
        yield import_extra("jsonschema", _REWARD).ValidationError(f"{instance} is not a multiple of {step}")


def _divides(step: Decimal, value: Decimal) -> bool:
    """Whether a value is a whole number of steps; in integers, for a decimal's own remainder has limits."""
    (of_step, power_of_step), (of_value, power) = map(_lowest_terms, (step, value))
    if power < power_of_step:
        return of_value == 0
    return of_value * pow(10, power - power_of_step, of_step) % of_step == 0


def _lowest_terms(number: Decimal) -> tuple[int, int]:
    """An integer without zeros at its end, and the power of ten that it is multiplied by."""
    _, digits, exponent = number.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    return int(Decimal(kept or 0)), int(exponent) + len(digits) - len(kept)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern`, by re2 (the package's own is Python's, which may take exponential time)."""
    if validator.is_type(instance, "string"):
        regex = Regex(pattern, "search", argument="pattern", reward=_REWARD)
        if not regex.matches([instance])[0]:
            error = import_extra("jsonschema", _REWARD).ValidationError
            yield error(f"{instance!r} does not match {pattern!r}")


Schema = Mapping[str, Any] | bool


@dataclass(frozen=True)
class JsonSchema(Rebuilt, TermReward):
    """Pays for a completion that is JSON and valid against a schema. Range [0, 1].

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
