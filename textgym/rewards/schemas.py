"""JSON schemas that are self-contained and checked before use: nothing is fetched, no pattern backtracks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Final

from textgym.messages import shown
from textgym.rewards.extras import import_extra
from textgym.rewards.json_text import exact
from textgym.rewards.regex import Regex

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REWARD: Final = "json_schema"
_MOST_DIGITS: Final = 4000
"""Of a whole number that is made an integer; larger ones stay decimals."""
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
