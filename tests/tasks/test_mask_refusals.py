"""What schemas and patterns a mask takes, passes over and refuses."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from tasks.drawn_grammars import VOCABULARY, ends

from textgym.grammar import GrammarMask, json_grammar, regex_grammar
from textgym.rewards import JsonSchema
from textgym.task import make_task


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
    ("bounds", "inside", "outside"),
    [
        ({"maximum": 9.99}, ["9", "9.9", "9.90", "9.99", "-12"], ["10", "9.991"]),
        ({"minimum": 0.5, "maximum": 0.145e2}, ["0.5", "14.4", "14.5"], ["0.4", "14.51"]),
        ({"minimum": -0.145, "maximum": -0.1}, ["-0.1", "-0.14", "-0.145"], ["-0.146", "-0.09"]),
        ({"minimum": 0, "exclusiveMaximum": 1}, ["0", "0.9", "0.99", "0.999999"], ["1", "1.0"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0.4", "0.49", "0.1"], ["0", "0.0", "0.5"]),
        ({"exclusiveMaximum": 0.55}, ["0.5", "0.549"], ["0.55", "0.550"]),
    ],
)
def test_a_mask_has_every_number_in_the_bounds(bounds: Any, inside: list[str], outside: list[str]) -> None:
    price = {"type": "object", "properties": {"price": {"type": "number", **bounds}}, "required": ["price"]}
    for schema, text in (({"type": "number", **bounds}, "{}"), (price, '{{"price":{}}}')):
        mask = GrammarMask(VOCABULARY, json_grammar(schema))
        assert [text for text in map(text.format, inside) if not ends(mask, text)] == []
        assert [text for text in map(text.format, outside) if ends(mask, text)] == []


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


INTEGER = {"type": "integer"}
A, B, C = ({"properties": {name: INTEGER}} for name in "abc")


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": INTEGER, "b": INTEGER}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**A, "allOf": [B]},
        {"allOf": [A, B, {"required": ["a"]}]},
        {"allOf": [{"required": ["a"]}, {"anyOf": [B, {"required": ["b"], **A}]}], **C},
        {"allOf": [A, {"anyOf": [B, {"minProperties": 1, **B}]}]},
        {"properties": {"a": {"type": ["object", "integer"], "allOf": [A, B]}, "b": INTEGER}},  # another object
    ],
)
def test_keys_of_schemas_that_hold_together_are_those_of_one_object(schema: dict[str, Any]) -> None:
    schema = {"type": "object", **schema}
    mask, reward = GrammarMask(VOCABULARY, json_grammar(schema)), JsonSchema(schema)
    legal = 0
    for values in itertools.product((None, 1, "x", {"a": 1}), repeat=3):
        found = {name: value for name, value in zip("abc", values, strict=True) if value is not None}
        text = json.dumps(found, separators=(",", ":"))
        pays = sum(term[0] for term in reward.terms([""], [text]).values()) == 1.0
        if found.keys() <= _named(schema):
            assert ends(mask, text) is pays, text
            legal += pays
        else:
            assert not ends(mask, text), text
    assert legal > 1


def test_branches_name_keys_for_themselves() -> None:
    inner = GrammarMask(VOCABULARY, json_grammar({"properties": {"a": {"type": "object", "allOf": [A, B]}}}))
    assert ends(inner, '{"a":{"a":1,"b":2}}')
    assert not ends(inner, '{"a":{"a":1,"c":2}}')
    branches = [{**B, "required": ["b"]}, {**C, "required": ["c"]}]
    mask = GrammarMask(VOCABULARY, json_grammar({"type": "object", **A, "anyOf": branches}))
    for text in ('{"b":1}', '{"a":1,"b":1}', '{"a":1,"c":1}'):
        assert ends(mask, text), text
    for text in ("{}", '{"a":1}', '{"b":1,"c":1}', '{"a":"x","b":1}'):
        assert not ends(mask, text), text


def _named(schema: dict[str, Any]) -> set[str]:
    deeper = [_named(part) for keyword in ("allOf", "anyOf") for part in schema.get(keyword, ())]
    return {*schema.get("properties", ()), *schema.get("required", ())}.union(*deeper)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", **B},
        {"allOf": [{"$ref": "#/$defs/a"}, B]},
        {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]},
        {**B, "anyOf": [{"$ref": "#/$defs/a"}, C]},
    ],
)
def test_a_reference_beside_properties_is_refused(schema: dict[str, Any]) -> None:
    schema = {"type": "object", "$defs": {"a": A, "b": B}, **schema}
    with pytest.raises(ValueError, match=r"'\$ref' beside properties"):
        json_grammar(schema)
    alone = {"$defs": {"a": A, "b": B}, "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, C]}
    assert ends(GrammarMask(VOCABULARY, json_grammar(alone)), '{"c":1}')
