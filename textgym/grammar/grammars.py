"""The grammars that masks are made of: JSON by a schema, and regular expressions."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, Final

from textgym.grammar.patterns import spelled_out
from textgym.grammar.schemas import as_rewarded, has_one_of, narrowed
from textgym.rewards.schemas import make_validator

# Without it a text that is forced could be written in one tokenisation only.
_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'
_SCHEMA: Final = f"{_OPTIONS}start: %json "
_PATTERN: Final = f"{_OPTIONS}start: TEXT\nTEXT: "


def import_llguidance() -> Any:
    """The package `llguidance`. Raises: ModuleNotFoundError that says what to install."""
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'a grammar mask needs llguidance, which is not installed: pip install "textgym[rewards]"'
        ) from error


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of compact JSON that is valid against a schema: the reward `json_schema` pays all of it in full.

    Compact: no white space outside of strings; the keys of an object in the order of the schema's
    `properties`, and no others; one key at most where the schema names none (a grammar cannot tell whether a key
    stands twice); characters of strings as they are, escaped only where JSON needs it; integers without point
    and exponent, bounded numbers without exponent, minus zero only where there are negative numbers; U+0000 of a
    pattern only where a class has quotes and backslashes too. These spellings are all that is legal.

    Args:
        schema: JSON Schema, Draft 2020-12, that refers to nothing outside of it. Its patterns are those of re2.

    Raises: ValueError for a schema that the reward refuses, or that cannot be made a grammar.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"schema={schema!r:.80}: an object is allowed")
    make_validator(schema, "schema")
    try:
        part, open_part = narrowed(schema), as_rewarded(schema)
    except ValueError as error:
        raise ValueError(f"schema={schema!r:.200}: cannot be made a grammar ({error})") from error
    if has_one_of(schema):  # whether the alternatives exclude each other is for the whole schema to say
        _json_grammar(open_part, schema)
    return _json_grammar(part, schema)


def _json_grammar(part: dict[str, Any], schema: Mapping[str, Any]) -> str:
    compact = json.dumps({**part, "x-guidance": {"whitespace_flexible": False}}, default=float)
    return _checked(f"{_SCHEMA}{compact}", "schema", schema)


def regex_grammar(pattern: str, *, dot_all: bool = False) -> str:
    """The grammar of the texts that a regular expression of re2 matches as a whole.

    Raises: ValueError for a pattern that re2 does not take or that cannot be made a grammar, as one with anchors or
        word boundaries.
    """
    body = spelled_out(pattern).replace("/", r"\/")
    body = f"(?s:{body})" if dot_all else body
    return _checked(f"{_PATTERN}/{body}/", "pattern", pattern)


def source(grammar: str) -> str:
    """What a grammar was made of, as messages name it: the schema or the pattern, spelled out for the mask."""
    for argument, start in (("schema", _SCHEMA), ("pattern", _PATTERN)):
        if grammar.startswith(start):
            return f"{argument}={grammar.removeprefix(start)}"
    return f"grammar={grammar!r}"


def _checked(grammar: str, argument: str, value: Any) -> str:
    failed, messages = import_llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if failed or messages:
        reason = messages[0].partition("\n")[0].partition("): ")[2] or messages[0]
        raise ValueError(f"{argument}={value!r:.200}: cannot be made a grammar ({reason:.300})")
    return grammar
