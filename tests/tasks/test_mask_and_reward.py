"""Whatever a mask lets end is paid in full: schemas and patterns drawn from all that is taken, and walks to an end."""

from __future__ import annotations

import json
import random
from collections import Counter
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textgym.grammar import GrammarMask, json_grammar, regex_grammar
from textgym.rewards import JsonSchema, Pattern
from textgym.state import Prompt, TokenState
from textgym.task import make_task
from textgym.vocab import load_vocabulary

VOCABULARY = load_vocabulary()
PROMPT = Prompt("p", (1,), None)
BYTE = {piece: i for i, piece in reversed(list(enumerate(VOCABULARY.decoder.table))) if len(piece) == 1}
CLOSING = [BYTE[bytes([byte])] for byte in b'"]}0']
# Spaces and line ends that engines disagree on; odd cases; edges of Unicode; what has to be escaped.
ODD = (
    *"\u00a0\u2003\u2028\u2029\u0085\u180e\u200b\ufeff\x7f\x0b\x0c\r\t",
    *"\u212a\u017f\u00df\u1e9e\u0130\u0660\u00bd\u0915\u4e2d\U00010d4a",
    *'\ud7ff\ue000\uffff\U0010ffff\U0001f600&|~[]/\\"aK5_',
    "e\u0301",
)
# What JSON writes with a backslash.
ESCAPED = tuple(map(json.dumps, ['"', "\\", 'a"b', "a\\b", '""', "\0", "\n", "\x1f", "\x1fa"]))
NUMBERS = (
    *[
        "-0",
        "0",
        "1e999",
        "-1e400",
        "1e-999",
        "1E99999999999999999999",
        "0e5",
        "-0.0",
        "1.0",
        "100",
        "5.06",
        "0.3",
    ],
    *["0.30000000000000000001", "0.29999999999999999999", "9007199254740992", "9007199254740993"],
    "1" * 25,
    "9" * 4301,
)
TEXTS = (
    *NUMBERS,
    *["{}", "[]", "null", "true", '{"a":1}', '{"a":1,"a":1}', '{"b":1,"b":2}', "[[],{}]", '[{"a":1,"a":2}]'],
)


def ends(mask: GrammarMask, text: str) -> bool:
    """Whether the mask allows every byte of a text, and then to stop."""
    ids = [BYTE[bytes([byte])] for byte in text.encode()]
    place: tuple[int, ...] = ()
    for token in ids:
        if not mask([TokenState(PROMPT, place)])[0][token]:
            return False
        place = (*place, token)
    return bool(mask([TokenState(PROMPT, place)])[0][VOCABULARY.stop_ids[0]])


def walked(mask: GrammarMask, draw: random.Random, steps: int = 80) -> str | None:
    """A text that a walk under the mask ends with; None where it is too long for that."""
    ids: tuple[int, ...] = ()
    for step in range(steps):
        row = mask([TokenState(PROMPT, ids)])[0]
        legal = np.flatnonzero(row).tolist()
        going = [i for i in legal if i not in VOCABULARY.stop_ids]
        if not going or (len(going) < len(legal) and draw.random() < 0.3):
            return str(VOCABULARY.decode([ids])[0])
        closing = [i for i in CLOSING if row[i]]
        hurry = 0.3 if step < steps // 2 else 0.95
        ids += (draw.choice(closing if closing and draw.random() < hurry else going),)
    return None


def texts_of(mask: GrammarMask, seed: int, candidates: tuple[str, ...]) -> list[str]:
    draw = random.Random(seed)
    found = {text for text in (walked(mask, draw) for _ in range(4)) if text is not None}
    return sorted(found | {text for text in draw.sample(candidates, 12) if ends(mask, text)})


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


def check_schema(schema: dict[str, Any], seed: int, seen: Counter[str]) -> None:
    try:
        mask = GrammarMask(VOCABULARY, json_grammar(schema))
    except ValueError:
        seen["refused"] += 1
        return
    odd = tuple(json.dumps(text, ensure_ascii=False) for text in ODD)
    texts = texts_of(mask, seed, TEXTS + odd)
    texts += [text for text in ESCAPED if ends(mask, text) and text not in texts]
    seen["ended" if texts else "endless"] += 1
    seen["texts"] += len(texts)
    paid = JsonSchema(schema)(["p"] * len(texts), texts)
    assert paid == [1.0] * len(texts), dict(zip(texts, paid, strict=True))


def check_pattern(pattern: str, seed: int, seen: Counter[str]) -> None:
    try:
        mask = GrammarMask(VOCABULARY, regex_grammar(pattern))
    except ValueError:
        seen["refused"] += 1
        return
    texts = texts_of(mask, seed, ODD)
    seen["ended" if texts else "endless"] += 1
    seen["texts"] += len(texts)
    paid = Pattern(pattern)(["p"] * len(texts), texts)
    assert paid == [1.0] * len(texts), dict(zip(texts, paid, strict=True))
    # And the mask leaves nothing out: a short text that matches can be written.
    matching = [text for text in ODD if Pattern(pattern)(["p"], [text]) == [1.0]]
    assert all(ends(mask, text) for text in matching[:4]), matching[:4]


def sweep(check: Any, strategy: Any, examples: int) -> Counter[str]:
    """How many of the drawn ones are refused, end, and never end within a walk."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy, st.integers(0, 2**32))
    def run(drawn: Any, seed: int) -> None:
        check(drawn, seed, seen)

    run()
    return seen


@pytest.mark.parametrize(
    ("schema", "text", "beside"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.01}, "0", "0.001"),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 1.5}, "1", "1.25"),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, "-1", "-1.001"),
        ({"exclusiveMinimum": 99999.5, "minimum": 3}, "99999.5", "99999.51"),
        ({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}, "0", "0.5"),
    ],
)
def test_an_exclusive_bound_is_no_number_of_the_mask(schema: dict[str, Any], text: str, beside: str) -> None:
    mask = GrammarMask(VOCABULARY, json_grammar({"type": "number", **schema}))
    assert not ends(mask, text)
    assert not ends(mask, f"{text}.0")
    assert ends(mask, beside)


@pytest.mark.parametrize(
    "pattern",
    [
        *[
            r'^[^"]*$',
            r'^[^"\\]*$',
            r'^(?s:[^"]*)$',
            r'^[^"]{2}$',
            r'^[^"a-z]*$',
            r'[^"]',
            r"^[^\\]+$",
            r'^[^\\"]+$',
        ],
        *[
            r"^[\x00-\x1f]$",
            r"^[\x00-\x20]$",
            r"^[[:cntrl:]]$",
            r"^\pC$",
            r"^\p{Cc}$",
            r"^[^\x20-\x{10ffff}]$",
        ],
        *[r"^(?:[\x00-\x0f]|[\x10-\x1f])*$", r'^(?:[^"\\]|\\)$', r'(?i)^[^"]$', r"^[\x00-\x09\x0b-\x1f]$"],
        *[r"^.$", r"(?s)^.*$", r"^[^a]$", r"^\D*$"],
    ],
)
def test_a_class_of_a_schema_has_no_quotes_and_backslashes_that_are_not_its_own(pattern: str) -> None:
    schema = {"type": "string", "pattern": pattern}
    mask = GrammarMask(VOCABULARY, json_grammar(schema))
    texts = [json.dumps(chr(first) + second) for first in range(0x80) for second in ("", "\n", '"', "\\")]
    paid = JsonSchema(schema)(["p"] * len(texts), texts)
    ended = {text for text, pay in zip(texts, paid, strict=True) if ends(mask, text) and pay != 1.0}
    assert not ended
    assert any(pay == 1.0 and ends(mask, text) for text, pay in zip(texts, paid, strict=True))


@pytest.mark.parametrize("name", ["any JSON", "any JSON 2", "any%20JSON"])
def test_a_definition_of_the_schema_keeps_its_name(name: str) -> None:
    definitions = {"any JSON": {"const": "first"}, name: {"const": 5}}
    reference = {"$ref": "#/$defs/" + quote(name)}
    schema = {
        "$defs": definitions,
        "type": "object",
        "properties": {"a": reference, "b": {}},
        "required": ["a", "b"],
    }
    mask = GrammarMask(VOCABULARY, json_grammar(schema))
    assert ends(mask, '{"a":5,"b":[{"c":null}]}')
    assert not ends(mask, '{"a":6,"b":[]}')
    assert not ends(mask, '{"a":"first","b":[]}')


@pytest.mark.parametrize(
    "keyword",
    [
        {"uniqueItems": False},
        {"not": False},
        {"propertyNames": True},
        {"unevaluatedItems": True},
        {"unevaluatedProperties": True},
        {"dependentRequired": {}},
        {"dependentSchemas": {}},
    ],
)
def test_a_keyword_that_says_nothing_is_passed_over(keyword: dict[str, Any]) -> None:
    assert json_grammar({"items": keyword} | keyword) == json_grammar({"items": {}})


def test_a_keyword_that_says_something_is_still_refused() -> None:
    for keyword in ({"uniqueItems": True}, {"not": {"const": 1}}, {"unevaluatedProperties": False}):
        with pytest.raises(ValueError, match="Unimplemented keys"):
            json_grammar(keyword)


def test_a_count_may_be_written_as_a_decimal() -> None:
    schema = {"type": "array", "minItems": 1.0, "items": {"type": "string", "maxLength": 2.0}}
    assert json_grammar(schema) == json_grammar(json.loads(json.dumps(schema).replace(".0", "")))
    texts = ['["ab"]', "[]", '["abc"]']
    assert JsonSchema(schema)(["p"] * 3, texts) == [1.0, 0.2, 0.2]
    assert JsonSchema()(["p"] * 3, texts, schema=[json.dumps(schema)] * 3) == [1.0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"minLength": 1.5}, "at minLength: 1.5 is not of type 'integer'"),
        ({"maxItems": -1.0}, "at maxItems: -1 is less than the minimum of 0"),
        ({"const": object()}, "<object object .*> is no JSON; an object, a list, a text, .* is allowed"),
        ({"items": {"enum": [{1, 2}]}}, "{1, 2} is no JSON; an object"),
        ({"properties": {1: {}}}, "a key 1 is no JSON, a text is allowed"),
        ({"maximum": Decimal("NaN")}, "NaN.* is no JSON"),
        ({"maximum": float("inf")}, "inf is no JSON"),
    ],
)
@pytest.mark.parametrize("taker", [JsonSchema, json_grammar])
def test_a_schema_that_is_no_json_is_refused_by_its_value(taker: Any, schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^schema: .*{said}"):
        taker(schema)


LARGE = "a?" * 500
OBJECT = {"type": "object", "required": ["k", "s"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": f"^{LARGE}$"},
        {**OBJECT, "properties": {"k": {}, "s": {"type": "string", "pattern": f"^{LARGE}$"}}},
        {"type": "array", "items": {"type": "string", "pattern": f"^{LARGE}$"}},
    ],
)
def test_a_schema_that_is_too_complex_is_refused_when_the_task_is_made(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^schema=.*: too complex for a mask \(lexer error.*\).*allowed$") as caught:
        make_task("Json", schema=schema)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_is_too_complex_is_refused_when_the_task_is_made() -> None:
    with pytest.raises(ValueError, match=r"^pattern=.*: too complex for a mask \(lexer error.*\).*allowed$"):
        make_task("Pattern", pattern=LARGE, constrain=True)


def test_a_grammar_that_becomes_too_complex_later_says_so_in_one_line() -> None:
    mask = GrammarMask(VOCABULARY, regex_grammar(f"[a-z]*0{LARGE}"))
    with pytest.raises(ValueError, match=r"^pattern=.*: too complex for a mask \(lexer error.*\).*allowed$"):
        ends(mask, "b0a")


@pytest.mark.parametrize("pattern", [r"^\x00$", "^\0$", r"^a|\0$", r"(?i)\Qa" + "\0" + r"\E", r"[\x00]"])
def test_a_nul_on_its_own_is_refused_in_a_schema(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern=.*U\+0000 is allowed in classes alone that"):
        json_grammar({"type": "string", "pattern": pattern})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "strategy"),
    [(check_schema, SCHEMAS), (check_schema, STRINGS), (check_pattern, FULL)],
    ids=["schemas", "strings", "patterns"],
)
def test_a_hundred_masks_let_nothing_end_that_is_not_paid(check: Any, strategy: Any) -> None:
    seen = sweep(check, strategy, 100)
    assert seen["ended"] > 30, seen


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("check", "strategy"),
    [(check_schema, SCHEMAS), (check_schema, STRINGS), (check_pattern, FULL)],
    ids=["schemas", "strings", "patterns"],
)
def test_two_thousand_masks_let_nothing_end_that_is_not_paid(check: Any, strategy: Any) -> None:
    seen = sweep(check, strategy, 2000)
    print(dict(seen))
    assert seen["ended"] > 800, seen
