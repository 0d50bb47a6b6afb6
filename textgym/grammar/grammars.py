"""The grammars that masks are made of: JSON by a schema, and regular expressions."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

# Without it a text that is forced could be written in one tokenisation only.
_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'


def import_llguidance() -> Any:
    """The package `llguidance`. Raises: ModuleNotFoundError that says what to install."""
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'a grammar mask needs llguidance, which is not installed: pip install "textgym[rewards]"'
        ) from error


def json_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of compact JSON that is valid against a schema.

    Compact: no white space outside of strings; the keys of an object in the order of the schema's
    `properties`, other keys (where the schema allows them; these can stand twice) after them; characters of
    strings as they are, escaped only where JSON needs it; integers without point and exponent, bounded
    numbers without exponent, minus zero only where there are negative numbers. Of the many spellings of a
    value these are all that is legal.

    Args:
        schema: JSON Schema, Draft 2020-12, that refers to nothing outside of it.

    Raises: ValueError for a schema that cannot be made a grammar.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"schema={schema!r:.80}: an object is allowed")
    try:
        compact = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
    except RecursionError as error:
        raise ValueError("schema: nested too deeply to be made a grammar") from error
    return _checked(f"{_OPTIONS}start: %json {compact}", "schema", schema)


def regex_grammar(pattern: str, *, dot_all: bool = False) -> str:
    """The grammar of the texts that a regular expression matches as a whole, with ASCII's classes.

    Raises: ValueError for a pattern that cannot be made a grammar, as one with anchors or word boundaries.
    """
    llguidance = import_llguidance()
    source = f"(?s:{pattern})" if dot_all else pattern
    try:
        body = llguidance.regex_to_lark(source, "dws")
    except ValueError as error:
        raise ValueError(f"pattern={pattern!r}: cannot be made a grammar ({error})") from error
    if re.search(r"\\[sS]", pattern):  # the vertical tab is no white space to re2
        body = body.replace(r" \t\n\r\f\v", r" \t\n\r\f")
    return _checked(f"{_OPTIONS}start: TEXT\nTEXT: /{body}/", "pattern", pattern)


def _checked(grammar: str, argument: str, value: Any) -> str:
    failed, messages = import_llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if failed or messages:
        reason = messages[0].partition("\n")[0].partition("): ")[2] or messages[0]
        raise ValueError(f"{argument}={value!r:.200}: cannot be made a grammar ({reason:.300})")
    return grammar
