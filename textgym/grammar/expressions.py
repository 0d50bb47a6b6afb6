r"""Regular expressions and JSON schemas as grammars.

Engines differ in what `\s`, `\w`, `\p{L}` or `[a&&b]` stand for, and in the version of Unicode that they know. So
re2 is asked which characters each of them matches, and the grammar is made of these.

A grammar cannot tell whether a key stands twice, which no reader takes. So an object has the keys that its schema
names, and where it names none, one key at most. Numbers of a schema are those that a float holds exactly.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

from textgym.checks import JsonObject
from textgym.rewards.base import import_extra
from textgym.rewards.patterns import Regex, pattern_tokens

_OPERATORS: Final = frozenset(".|)*+?^$")
_EDGES: Final = {r"\A": "^", r"\z": "$"}
_NO_NUL: Final = r'U+0000 is allowed in classes alone that have " and \ in them too'


def spelled_out(pattern: str, *, quoted: bool = False) -> str:
    r"""Return a pattern that means the same to every engine, made of literals, ranges, groups and repetitions.

    Args:
        pattern: in the syntax of re2; `(?i)` at its start only.
        quoted: leave U+0000 out of classes without `"` or `\`. A mask writes such strings as JSON, and llguidance
            quotes a set of all control characters as if it had these two in it.
    Raises: ValueError for a pattern that re2 does not take, or that cannot be spelled out.
    """
    Regex(pattern)
    flags = re.match(r"\(\?([a-zA-Z]*)i([a-zA-Z]*)\)", pattern)
    rest = pattern[flags.end() :] if flags else pattern
    kept = "".join(flags.groups()) if flags else ""
    try:
        spelled = [_spelled(kind, token, flags is not None, quoted) for kind, token in pattern_tokens(rest)]
    except ValueError as error:
        raise ValueError(f"pattern={pattern!r}: cannot be made a grammar ({error})") from error
    return "".join([f"(?{kept})" if kept else "", *spelled])


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
    """Return the characters that a token stands for, as a class."""
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
    """Return the code points, as ranges with both ends, that an expression of one character matches on re2."""
    re2 = import_extra("re2", "reward 'pattern'")
    text = _every_character()
    return tuple(
        # Skip whatever the edge of a window cuts in two.
        (
            ord(text[found.start() : found.start() + 4].decode(errors="ignore")[0]),
            ord(text[found.end() - 4 if found.end() > 4 else 0 : found.end()].decode(errors="ignore")[-1]),
        )
        for found in re2.finditer(f"(?:{token})+", text)
    )


@functools.cache
def _every_character() -> bytes:
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode()


Schema = Mapping[str, object]
_NAMED_PARTS: Final = ("properties", "$defs", "definitions")
_BOTH: Final = ("allOf", "anyOf", "oneOf")
"""Keywords of schemas that hold beside the one that they stand in."""
_LISTED_PARTS: Final = (*_BOTH, "prefixItems")
_PARTS: Final = ("items", "additionalProperties")
_ELSEWHERE: Final = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Keywords that say elsewhere which objects and arrays there are."""
_REFUSED: Final = ("$anchor", "$dynamicAnchor", "$dynamicRef")
_EXCLUSIVE: Final = {"exclusiveMinimum": ("minimum", 1, max), "exclusiveMaximum": ("maximum", -1, min)}
_HOLDS: Final[Mapping[str, Callable[[Decimal, Decimal], bool]]] = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
_BOUNDS: Final = tuple(_HOLDS)
_NUMBERS: Final = ("enum", "const", "multipleOf", "minimum", "maximum", *_EXCLUSIVE)
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_SAYS_NOTHING: Final[Schema] = {
    "uniqueItems": False,
    "not": False,
    "propertyNames": True,
    "unevaluatedItems": True,
    "unevaluatedProperties": True,
    "dependentRequired": {},
    "dependentSchemas": {},
}
"""Keywords that llguidance refuses even where they change nothing."""
_MOST_DIGITS: Final = 15
"""Before the decimal point, and behind it: what a float keeps of a decimal number."""


def narrowed(schema: Schema) -> JsonObject:
    """Return the schema that a grammar is made of.

    Raises: ValueError for what no grammar has in common with the reward.
    """
    # A definition of any JSON, under a name that is nowhere in the schema, neither as it is nor in a reference.
    written = str(schema)
    names = itertools.chain(["any JSON"], map("any JSON {}".format, itertools.count(2)))
    name = next(name for name in names if name not in written and quote(name) not in written)
    reference = {"$ref": "#/$defs/" + quote(name)}
    part = _part(schema, reference, alone=not _holds(schema, ("$ref", *_BOTH)))
    if reference["$ref"] not in str(part):
        return part
    anything = {"items": reference, "additionalProperties": reference, "maxProperties": 1}
    return part | {"$defs": part.get("$defs", {}) | {name: anything}}


def as_rewarded(schema: Schema) -> JsonObject:
    """Return the schema as the reward reads it: patterns spelled out, formats ignored, objects left open."""
    return _part(schema, None)


def has_one_of(schema: object) -> bool:
    """Return whether `oneOf` stands anywhere in a schema."""
    return _holds(schema, ("oneOf",))


def _holds(schema: object, keywords: Sequence[str]) -> bool:
    if isinstance(schema, Mapping):
        return any(key in schema for key in keywords) or any(_holds(part, keywords) for part in schema.values())
    return isinstance(schema, list | tuple) and any(_holds(part, keywords) for part in schema)


def _part(
    schema: Schema,
    anything: Schema | None,
    root: bool = True,
    around: frozenset[str] = frozenset(),
    alone: bool = False,
) -> JsonObject:
    """Return a schema for a grammar; closed, if there is a reference to the schema of `anything`.

    Args:
        around: the keys of the same object that stand in schemas which hold beside this one.
        alone: whether no other schema can hold for the same value.
    """
    for keyword in (*_REFUSED, *(() if root else ("$id",))):
        if keyword in schema:
            raise ValueError(f"{keyword!r} inside of a schema is not allowed, write $ref and $defs")
    schema = schema if anything is None else _typed(schema)
    named = around | _keys(schema, _BOTH)
    if anything is not None and (refs := _references(schema)) and (refs > 1 or named):
        raise ValueError(
            "'$ref' beside properties, or beside another '$ref' in 'allOf', is not allowed; write all properties of an "
            "object into one schema"
        )
    part = {
        key: _value(key, value, anything, around | _keys(schema, tuple(each for each in _BOTH if each != key)))
        if key in ("anyOf", "oneOf")
        else _value(key, value, anything, named, alone)
        for key, value in schema.items()
        if (anything is not None or key != "format") and not (key in _SAYS_NOTHING and value == _SAYS_NOTHING[key])
    }
    if anything is not None:
        if part.get("type") != "integer":
            _exclude_bounds(part, alone)
        if not any(key in part for key in _ELSEWHERE):
            _close(part, anything, around)
            if alone and (more := _cut_off(part)):
                return {"anyOf": [part, {"enum": more}]}
    return part


def _typed(schema: Schema) -> Schema:
    """Give the type of a schema to those beside it that have none: llguidance intersects no two schemas of anything."""
    if "type" not in schema:
        return schema
    kind = {"type": schema["type"]}
    return {
        key: [{**kind, **each} if isinstance(each, Mapping) and "$ref" not in each else each for each in value]
        if key in _BOTH and isinstance(value, list | tuple)
        else value
        for key, value in schema.items()
    }


def _keys(schema: object, through: Sequence[str]) -> frozenset[str]:
    """Return the keys of an object that a schema names, itself and in the schemas of these keywords."""
    if not isinstance(schema, Mapping):
        return frozenset()
    deeper = (_keys(part, _BOTH) for keyword in through for part in schema.get(keyword, ()))
    return frozenset(schema.get("properties", {})).union(schema.get("required", ()), *deeper)


def _references(schema: object) -> int:
    """Return how many references hold at once for an object of a schema."""
    if not isinstance(schema, Mapping):
        return 0
    return ("$ref" in schema) + sum(map(_references, schema.get("allOf", ())))


def _value(key: str, value: Any, anything: Schema | None, named: frozenset[str], alone: bool = False) -> object:
    if key in _NAMED_PARTS:
        return {name: _inner(part, anything, alone=alone) for name, part in value.items()}
    if key in _BOTH:
        return [_inner(part, anything, named) for part in value]
    if key in _LISTED_PARTS:
        return [_inner(part, anything, alone=alone) for part in value]
    if key in _PARTS:
        return _inner(value, anything, alone=alone)
    if key in _COUNTS:
        return int(value)
    if key in _NUMBERS:
        _check_numbers(key, value)
    return spelled_out(value, quoted=anything is not None) if key == "pattern" else value


def _inner(
    schema: bool | Schema, anything: Schema | None, around: frozenset[str] = frozenset(), alone: bool = False
) -> object:
    if isinstance(schema, bool):
        return dict(anything) if schema and anything is not None else schema
    return _part(schema, anything, root=False, around=around, alone=alone)


def _exclude_bounds(part: JsonObject, alone: bool) -> None:
    """Put exclusive bounds of decimals one step of the 15th digit inside, where llguidance may let the bound pass.

    It may between bounds that are less than 1 apart, and with two on the same side.
    """
    ends = [Decimal(str(part[key])) for key in _BOUNDS if key in part]
    kept = alone and (len(ends) == 1 or (len(ends) == 2 and abs(ends[0] - ends[1]) >= 1))
    for exclusive, (bound, sign, tighter) in _EXCLUSIVE.items():
        if exclusive in part and not (kept and bound not in part):
            number = Decimal(str(part.pop(exclusive)))
            step = Decimal(1).scaleb(max(number.adjusted() + 1, 0) - _MOST_DIGITS)
            allowed = float(number + sign * step)
            part[bound] = tighter(allowed, part.get(bound, allowed))


def _cut_off(part: JsonObject) -> list[float]:
    """Return numbers in the bounds that llguidance leaves out: a bound cut off at fewer decimals, as 9.9 of 9.99."""
    if "number" not in part.get("type", ()) or "multipleOf" in part:
        return []
    bounds = {key: Decimal(str(part[key])) for key in _BOUNDS if key in part}
    found: dict[float, None] = {}
    for key, bound in bounds.items():
        if (bound > 0) == ("Maximum" in key or key == "maximum"):
            whole, _, decimals = f"{bound:f}".partition(".")
            cut = [f"{whole}.{decimals[:count]}" for count in range(1, len(decimals))]
            found |= dict.fromkeys(float(text) for text in cut if _within(Decimal(text), bounds))
    return list(found)


def _within(number: Decimal, bounds: Mapping[str, Decimal]) -> bool:
    return all(_HOLDS[key](number, bound) for key, bound in bounds.items())


def _close(part: JsonObject, anything: Schema, around: frozenset[str]) -> None:
    """Leave an array no items but those that are closed themselves, and an object no keys that could stand twice."""
    types = part.get("type", ("array", "object"))
    if "array" in types:
        part.setdefault("items", anything)
    if "object" not in types or part.get("additionalProperties") is False:
        return
    bound = "additionalProperties" in part  # else what a key beside may hold is said where it is named
    others = part.setdefault("additionalProperties", anything)
    named = part.get("properties", {})
    required = {name: others for name in part.get("required", ()) if name not in named}
    required |= dict.fromkeys(sorted(around - named.keys() - required.keys()), others if bound else True)
    if named or required:
        part |= {"properties": {**named, **required}, "additionalProperties": False}
    else:
        part["maxProperties"] = min(part.get("maxProperties", 1), 1)


def _check_numbers(keyword: str, value: object) -> None:
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
