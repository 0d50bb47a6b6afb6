"""JSON schemas that are self-contained and checked before use: nothing is fetched, no pattern backtracks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

from textgym.messages import shown
from textgym.rewards.extras import import_extra
from textgym.rewards.regex import Regex

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
        schema: JSON values, of Draft 2020-12. `pattern` runs on re2.
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
    schema = _plain(schema)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "top"
        raise ValueError(f"{argument}: not a JSON schema, at {place}: {error.message:.200}") from error
    registry, resolver = _closed_world(schema)
    _check_part(schema, resolver, argument)
    validator = _validator_class()(schema, registry=registry)
    try:
        validator.is_valid(None)
    except RecursionError as error:
        raise ValueError(f"{argument}: refers to itself without end") from error
    return validator


def _plain(schema: Any) -> Any:
    """Mappings as dicts and tuples as lists, which is all that the validator knows."""
    if isinstance(schema, Mapping):
        return {key: _plain(value) for key, value in schema.items()}
    return [_plain(value) for value in schema] if isinstance(schema, list | tuple) else schema


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
    jsonschema = import_extra("jsonschema", _REWARD)
    return import_extra("jsonschema.validators", _REWARD).extend(
        jsonschema.Draft202012Validator, {"pattern": _pattern}
    )


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern`, by re2 (the package's own is Python's, which may take exponential time)."""
    if validator.is_type(instance, "string"):
        regex = Regex(pattern, "search", argument="pattern", reward=_REWARD)
        if not regex.matches([instance])[0]:
            error = import_extra("jsonschema", _REWARD).ValidationError
            yield error(f"{instance!r} does not match {pattern!r}")
