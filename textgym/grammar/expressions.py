r"""Regular expressions and JSON schemas as grammars.

Engines differ in what `\s`, `\w`, `\p{L}` or `[a&&b]` stand for, and in the version of Unicode that they know. So
re2 is asked which characters each of them matches, and the grammar is made of these.

A grammar cannot tell whether a key stands twice, which no reader takes. So an object has the keys that its schema
names, and where it names none, one key at most. Numbers of a schema are those that a float holds exactly.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

from textgym.rewards.base import import_extra
from textgym.rewards.patterns import Regex, pattern_tokens

_OPERATORS: Final = frozenset(".|)*+?^$")
_EDGES: Final = {r"\A": "^", r"\z": "$"}
_NO_NUL: Final = r'U+0000 is allowed in classes alone that have " and \ in them too'


def spelled_out(pattern: str, argument: str = "pattern", *, quoted: bool = False) -> str:
    r"""A pattern that means the same to every engine, made of literals, ranges, groups and repetitions.

    Args:
        pattern: in the syntax of re2; `(?i)` at its start only.
        argument: what it is called in messages.
        quoted: leave U+0000 out of classes without `"` or `\`. A mask writes such strings as JSON, and llguidance
            quotes a set of all control characters as if it had these two in it.

    Raises: ValueError for a pattern that re2 does not take, or that cannot be spelled out.
    """
    Regex(pattern, argument=argument)
    flags = re.match(r"\(\?([a-zA-Z]*)i([a-zA-Z]*)\)", pattern)
    rest = pattern[flags.end() :] if flags else pattern
    kept = "".join(flags.groups()) if flags else ""
    before = f"(?{kept})" if kept else ""
    try:
        return before + "".join(
            _spelled(kind, token, flags is not None, quoted) for kind, token in pattern_tokens(rest)
        )
    except ValueError as error:
        raise ValueError(f"{argument}={pattern!r}: cannot be made a grammar ({error})") from error


def _spelled(kind: str, token: str, ignore_case: bool, quoted: bool) -> str:
    if kind == "set":
        return _class(f"(?i:{token})" if ignore_case else token, quoted)
    if kind == "quoted" or (kind == "plain" and token not in _OPERATORS):
        if quoted and "\0" in token:
            raise ValueError(_NO_NUL)
        letters = map(_escaped, token)
        return "".join([_class(f"(?i:{letter})", quoted) for letter in letters] if ignore_case else letters)
    if kind == "group":
        if re.match(r"\(\?[a-zA-Z-]*i", token) and "<" not in token:
            raise ValueError("(?i) is allowed at the start of a pattern alone")
        return "(" if "<" in token else token
    return _EDGES.get(token, token)


def _class(token: str, quoted: bool) -> str:
    """The characters that a token stands for, as a class."""
    ranges = matched_ranges(token)
    if not ranges:
        raise ValueError(f"no character matches {token}")
    if quoted and not all(any(a <= ord(letter) <= b for a, b in ranges) for letter in '"\\'):
        ranges = tuple((max(a, 1), b) for a, b in ranges if b > 0)
        if not ranges:
            raise ValueError(_NO_NUL)
    return "[" + "".join(f"{_escaped(chr(a))}-{_escaped(chr(b))}" for a, b in ranges) + "]"


def _escaped(letter: str) -> str:
    return letter if letter.isascii() and letter.isalnum() else rf"\x{{{ord(letter):X}}}"


@functools.lru_cache(maxsize=1024)
def matched_ranges(token: str) -> tuple[tuple[int, int], ...]:
    """The code points, as ranges with both ends, that an expression of one character matches on re2."""
    re2 = import_extra("re2", "pattern")
    text = _every_character()
    return tuple(
        # What is cut in two at the edge of a window is passed over.
        (
            ord(text[found.start() : found.start() + 4].decode(errors="ignore")[0]),
            ord(text[found.end() - 4 if found.end() > 4 else 0 : found.end()].decode(errors="ignore")[-1]),
        )
        for found in re2.finditer(f"(?:{token})+", text)
    )


@functools.cache
def _every_character() -> bytes:
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode()


_NAMED_PARTS: Final = ("properties", "$defs", "definitions")
_LISTED_PARTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_PARTS: Final = ("items", "additionalProperties")
_ELSEWHERE: Final = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Keywords that say elsewhere which objects and arrays there are."""
_REFUSED: Final = ("$anchor", "$dynamicAnchor", "$dynamicRef")
_NUMBERS: Final = (
    "enum",
    "const",
    "multipleOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
)
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_SAYS_NOTHING: Final[Mapping[str, Any]] = {
    "uniqueItems": False,
    "not": False,
    "propertyNames": True,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "dependentRequired": {},
    "dependentSchemas": {},
}
"""What llguidance refuses even where it is as good as not written."""
_MOST_DIGITS: Final = 15
"""Before the decimal point, and behind it: what a float keeps of a decimal number."""


def narrowed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a grammar is made of. Raises: ValueError for what no grammar has in common with the reward."""
    name = _free_name(schema)
    reference = {"$ref": "#/$defs/" + quote(name)}
    part: dict[str, Any] = _part(schema, reference)
    if reference["$ref"] not in str(part):
        return part
    anything = {"items": reference, "additionalProperties": reference, "maxProperties": 1}
    return part | {"$defs": part.get("$defs", {}) | {name: anything}}


def _free_name(schema: Mapping[str, Any]) -> str:
    """A name for a definition that stands nowhere in a schema, neither as it is nor in a reference."""
    written = str(schema)
    names = itertools.chain(["any JSON"], map("any JSON {}".format, itertools.count(2)))
    return next(name for name in names if name not in written and quote(name) not in written)


def as_rewarded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the reward reads it: patterns spelled out, formats passed over, objects as open as they are."""
    return dict(_part(schema, None))


def has_one_of(schema: Any) -> bool:
    """Whether `oneOf` stands anywhere in a schema."""
    if isinstance(schema, Mapping):
        return "oneOf" in schema or any(map(has_one_of, schema.values()))
    return isinstance(schema, list | tuple) and any(map(has_one_of, schema))


def _part(schema: Any, anything: Mapping[str, Any] | None, root: bool = True) -> Any:
    """A schema inside of the schema; closed, where there is a reference to the schema of `anything`."""
    close = anything is not None
    if isinstance(schema, bool):
        return dict(anything) if schema and anything is not None else schema
    for keyword in (*_REFUSED, *(() if root else ("$id",))):
        if keyword in schema:
            raise ValueError(f"{keyword!r} inside of a schema is not allowed, write $ref and $defs")
    part = {
        key: _value(key, value, anything)
        for key, value in schema.items()
        if (close or key != "format") and not (key in _SAYS_NOTHING and value == _SAYS_NOTHING[key])
    }
    if close and part.get("type") != "integer":
        _step_inside(part)
    if anything is not None and not any(key in part for key in _ELSEWHERE):
        _close(part, anything)
    return part


def _value(key: str, value: Any, anything: Mapping[str, Any] | None) -> Any:
    if key in _NAMED_PARTS:
        return {name: _part(part, anything, root=False) for name, part in value.items()}
    if key in _LISTED_PARTS:
        return [_part(part, anything, root=False) for part in value]
    if key in _PARTS:
        return value if value is False else _part(value, anything, root=False)
    if key in _COUNTS:
        return int(value)
    if key in _NUMBERS:
        _check_numbers(key, value)
    return spelled_out(value, quoted=anything is not None) if key == "pattern" else value


def _step_inside(part: dict[str, Any]) -> None:
    """Put exclusive bounds of decimals one step of the 15th digit inside: llguidance may let the bound itself pass."""
    for exclusive, bound, sign, inner in (
        ("exclusiveMinimum", "minimum", 1, max),
        ("exclusiveMaximum", "maximum", -1, min),
    ):
        if exclusive in part:
            number = Decimal(str(part.pop(exclusive)))
            step = Decimal(1).scaleb(max(number.adjusted() + 1, 0) - _MOST_DIGITS)
            inside = float(number + sign * step)
            part[bound] = inner(inside, part.get(bound, inside))


def _close(part: dict[str, Any], anything: Mapping[str, Any]) -> None:
    """Leave an array no items but those that are closed themselves, and an object no keys that could stand twice."""
    types = part.get("type", ("array", "object"))
    if "array" in types:
        part.setdefault("items", anything)
    if "object" not in types or part.get("additionalProperties") is False:
        return
    others = part.setdefault("additionalProperties", anything)
    named = part.get("properties", {})
    required = {name: others for name in part.get("required", ()) if name not in named}
    if named or required:
        part |= {"properties": {**named, **required}, "additionalProperties": False}
    else:
        part["maxProperties"] = min(part.get("maxProperties", 1), 1)


def _check_numbers(keyword: str, value: Any) -> None:
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_numbers(keyword, inner)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        number = Decimal(str(value))
        decimals = -int(number.as_tuple().exponent) if number.is_finite() else 0
        if not (number.is_finite() and abs(number) < 10**_MOST_DIGITS and decimals <= _MOST_DIGITS):
            raise ValueError(
                f"{keyword}: {value!r:.40} has more than {_MOST_DIGITS} digits before or behind the decimal point"
            )
