"""Schemas and patterns drawn from all that a mask takes, and whether it lets a text end."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from textgym.grammar import GrammarMask
from textgym.state import Prompt, TokenState
from textgym.vocab import load_vocabulary

VOCABULARY = load_vocabulary()
PROMPT = Prompt("p", (1,), None)
BYTE = {piece: i for i, piece in reversed(list(enumerate(VOCABULARY.decoder.table))) if len(piece) == 1}


def ends(mask: GrammarMask, text: str) -> bool:
    """Whether the mask allows every byte of a text, and then to stop."""
    ids = [BYTE[bytes([byte])] for byte in text.encode()]
    place: tuple[int, ...] = ()
    for token in ids:
        if not mask([TokenState(PROMPT, place)])[0][token]:
            return False
        place = (*place, token)
    return bool(mask([TokenState(PROMPT, place)])[0][VOCABULARY.stop_ids[0]])


ATOMS = (
    *[
        r"\s",
        r"\S",
        r"\w",
        r"\W",
        r"\d",
        r"\D",
        r"\p{L}",
        r"\pN",
        r"\PL",
        r"\p{Greek}",
        r"\P{Lu}",
        r".",
        r"(?s:.)",
    ],
    *[
        r"[a-c]",
        r"[^a]",
        r"[\w-]",
        r"[^\s\d]",
        r"[[:alpha:]]",
        r"[[:^space:]_]",
        r"[a&&b]",
        r"[a~~b]",
        r"[[a]",
        r"[\]\\]",
        r"[\p{Lu}5]",
    ],
    # Without what JSON writes with a backslash, or of nothing else.
    *[
        r'[^"]',
        r"[^\\]",
        r'[^"\\]',
        r'[^"a-z]',
        r"[\x00-\x1f]",
        r"[\x00-\x09\x0b-\x20]",
        r"[[:cntrl:]]",
        r"\pC",
        r"\p{Cc}",
        r"[^\x20-\x{10ffff}]",
        r"\x00",
        r"\x1f",
        r"\\",
    ],
    *[
        r"a",
        r"K",
        r"5",
        r"-",
        r"_",
        r"/",
        r'"',
        r"&",
        r"~",
        r"#",
        r"{",
        r"}",
        r"]",
        r"\.",
        r"\{",
        r"\x41",
        r"\x{e9}",
        r"\Q+*\E",
        r"\n",
        r"\t",
        r"\v",
        r"\a",
        r"\101",
        r"\-",
        r"\/",
    ],
    *"\u00df\u00e9 \u2028",
)
PARTS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=2).map("|".join).map("(?:{})".format),
        inner.map("({})".format),
        inner.map("(?P<n>{})".format),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{0,2}", "{1,}", "*?", "??"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=4,
)
FLAGS = st.sampled_from(["", "", "", "(?i)", "(?s)", "(?is)", "(?U)"])
FULL = st.builds("{}{}".format, FLAGS, PARTS)
SEARCHED = st.builds(
    "{}{}{}{}".format,
    FLAGS,
    st.sampled_from(["", "^", "^", r"\A"]),
    PARTS,
    st.sampled_from(["", "$", "$", r"\z"]),
)
SMALL = (
    st.integers(-20, 20)
    | st.decimals(-9, 9, places=2).map(float)
    | st.sampled_from([0.1, 0.3, 1e-7, -0.0, 1e14, 2**53 + 1, 12345678901234567890123, 0.1 + 0.2, 1e22])
)
NAMES = st.sampled_from(["a", "b", "\u00e9 ", "$ref"])
VALUES = st.recursive(
    st.none() | st.booleans() | SMALL | st.sampled_from(["", "a", "\u00e9\n", '"\\', "\x7f\u2028", "\U0001f600"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)
COUNT = st.integers(0, 3)
TYPES = st.sampled_from(["string", "number", "integer", "boolean", "null", "array", "object"])
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email", "hostname"]


def keywords(**given: Any) -> Any:
    return st.fixed_dictionaries({}, optional=given)


def of_type(name: str, given: Any) -> Any:
    """Keywords with the type that they are about, or without one."""
    return st.builds(lambda typed, part: {"type": name} | part if typed else part, st.integers(0, 3), given)


LEAVES = st.one_of(
    st.just({}),
    st.booleans(),
    st.builds(lambda value: {"const": value}, VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda types: {"type": types}, st.lists(TYPES, min_size=1, max_size=3, unique=True)),
    of_type("string", keywords(minLength=COUNT, maxLength=COUNT)),
    of_type("string", st.builds(lambda pattern: {"pattern": pattern}, SEARCHED)),
    of_type("string", keywords(pattern=SEARCHED, maxLength=COUNT)),
    of_type("string", st.builds(lambda form: {"format": form}, st.sampled_from(FORMATS))),
    *[
        of_type(
            name,
            keywords(
                minimum=SMALL,
                exclusiveMaximum=SMALL,
                multipleOf=st.sampled_from([0.01, 0.1, 3, 2.5, 1e-7, 7]),
            ),
        )
        for name in ("number", "integer")
    ],
    of_type("number", keywords(exclusiveMinimum=SMALL, maximum=SMALL)),
    of_type("number", st.builds(lambda step: {"multipleOf": step}, st.sampled_from([0.01, 0.1, 0.3, 7]))),
)


def composed(inner: Any) -> Any:
    parts = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        of_type("array", keywords(items=inner, prefixItems=parts, minItems=COUNT, maxItems=COUNT)),
        of_type(
            "object",
            keywords(
                properties=st.dictionaries(NAMES, inner, max_size=3),
                required=st.lists(NAMES, max_size=2, unique=True),
                additionalProperties=inner,
                minProperties=st.integers(0, 1),
                maxProperties=COUNT,
            ),
        ),
        of_type("object", st.builds(lambda part: {"properties": part}, st.dictionaries(NAMES, inner, max_size=3))),
        *[st.builds(lambda parts, key=key: {key: parts}, parts) for key in ("anyOf", "oneOf", "allOf")],
        st.builds(
            lambda part, key, more: {**part, key: more} if isinstance(part, dict) else part,
            inner,
            st.sampled_from(["anyOf", "oneOf", "allOf"]),
            parts,
        ),
        st.just({"$ref": "#/$defs/tree"}),
        st.builds(lambda part: {"$ref": "#/$defs/tree", **part} if isinstance(part, dict) else part, inner),
    )


SCHEMAS = st.builds(
    lambda part, tree: {**part, "$defs": {"tree": tree}},
    st.recursive(LEAVES, composed, max_leaves=4).filter(lambda part: isinstance(part, dict)),
    st.sampled_from(
        [
            {"type": "string", "maxLength": 2},
            {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/tree"}}},
            {"anyOf": [{"type": "null"}, {"additionalProperties": {"$ref": "#/$defs/tree"}}]},
        ]
    ),
)
STRINGS = st.builds(lambda pattern: {"type": "string", "pattern": pattern}, SEARCHED)
