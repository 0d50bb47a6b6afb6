"""JsonSchema and JsonValues: what is JSON, what is valid, and schemas that are refused."""

from __future__ import annotations

import json
import pickle
import socket
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import JsonSchema, JsonValues, make_reward
from textgym.rewards.json import parse_json

DEEP: Any = {}
for _ in range(3000):
    DEEP = {"allOf": [DEEP]}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "bear"]}, "count": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def terms(reward: Any, *texts: str, **columns: Any) -> list[tuple[Any, Any]]:
    found = reward.terms(["p"] * len(texts), list(texts), **columns)
    return list(zip(found["parses"], found["valid"], strict=True))


def test_json_schema() -> None:
    reward = JsonSchema(SCHEMA)
    assert terms(reward, '{"name":"fox","count":2}', ' {"name": "bear"}\n') == [(0.2, 0.8)] * 2
    assert terms(reward, '{"name":"cat"}', "3", '{"count":1}', '{"name":"fox","x":1}') == [(0.2, 0.0)] * 4
    assert terms(reward, "", "fox", '{"name":"fox"', '{"name":"fox"} x', "{'name':'fox'}") == [(0, 0)] * 5
    assert reward(["p"], ['{"name":"fox"}']) == [1.0]
    assert JsonSchema(SCHEMA, parses=0.5)(["p"] * 2, ['{"name":"fox"}', "1"]) == [1.0, 0.5]
    assert make_reward({"name": "json_schema", "schema": SCHEMA}) == reward
    assert pickle.loads(pickle.dumps(reward)) == reward


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        '{"a":1,"a":1}',
        '[{"b":{"a":1,"a":2}}]',
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 50_000,
        "\ufeff1",
        '"\n"',
        "01",
        "[1,]",
        "// a\n1",
    ],
)
def test_what_is_no_json(text: str) -> None:
    assert terms(JsonSchema(True), text) == [(0.0, 0.0)]


def test_what_is_json() -> None:
    assert terms(JsonSchema(True), "null", '"\\ud800"', "-0.0e-5", '{"a":{"a":1}}') == [(0.2, 0.8)] * 4
    assert terms(JsonSchema(False), "null") == [(0.2, 0.0)]


def test_schemas_of_a_column() -> None:
    schemas = [{"type": "string"}, json.dumps({"type": "integer"}), None, True]
    assert terms(JsonSchema(), "1", "1", "1", "1", schema=schemas) == [
        (0.2, 0.0),
        (0.2, 0.8),
        (None, None),
        (0.2, 0.8),
    ]
    with pytest.raises(ValueError, match="'schema' is needed by reward 'json_schema'"):
        terms(JsonSchema(), "1")
    with pytest.raises(ValueError, match="column 'schema': not a JSON schema"):
        terms(JsonSchema(), "1", schema=[{"type": "integr"}])
    with pytest.raises(ValueError, match=r"column 'schema': '{' is no JSON"):
        terms(JsonSchema(), "1", schema=["{"])


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "https://example.org/schema.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "other.json"}}}, r"\$ref 'other.json' is not in the schema"),
        ({"$ref": "#/$defs/missing"}, r"'#/\$defs/missing' is not in the schema"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"$dynamicRef": "https://example.org/a"}, r"\$dynamicRef"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"type": "strin"}, "not a JSON schema, at type"),
        pytest.param(DEEP, "nested too deeply", id="deep"),
        (
            {"$schema": "http://json-schema.org/draft-07/schema#"},
            "only 'https://json-schema.org/draft/2020-12",
        ),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "pattern='.*lookahead"),
        ({"patternProperties": {"a": {}}}, "'patternProperties' is not allowed"),
        (3, "an object or a bool"),
        ([], "an object or a bool"),
    ],
)
def test_schemas_that_are_refused(schema: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(ValueError, match=f"^schema.*{reason}"):
        JsonSchema(schema)


def test_references_inside_a_schema() -> None:
    tree = {
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "$ref": "#/$defs/node",
    }
    deep = "[" * 3000 + "]" * 3000
    assert [valid for _, valid in terms(JsonSchema(tree), "[[],[[]]]", "[1]", deep)] == [0.8, 0.0, 0.0]
    named = {
        "$id": "https://example.org/a",
        "$ref": "b",
        "$defs": {"b": {"$id": "b", "type": "string", "$ref": "#/$defs/c", "$defs": {"c": {"minLength": 2}}}},
    }
    assert [valid for _, valid in terms(JsonSchema(named), '"ab"', '"a"', "1")] == [0.8, 0.0, 0.0]
    # In these places it is a key, and no reference.
    assert JsonSchema({"properties": {"$ref": {"const": {"$ref": "https://example.org"}}}})


@pytest.mark.parametrize(
    ("text", "schema", "valid"),
    [
        ("1e999", {"type": "integer"}, True),
        ("-1e999", {"maximum": -1e308}, True),
        ("1e-999", {"type": "integer"}, False),
        ("1E99999999999999999999", {"multipleOf": 7}, False),
        ("7E99999999999999999999", {"multipleOf": 7}, True),
        ("-0e99999999999999999999", {"const": 0}, True),
        ("9" * 5000, {"type": "integer", "multipleOf": 9}, True),
        ("9" * 5000, {"multipleOf": 2}, False),
        ("5.06", {"multipleOf": 0.01}, True),
        ("5.065", {"multipleOf": 0.01}, False),
        ("1e2", {"type": "integer", "multipleOf": 50}, True),
        ("0.30000000000000000001", {"maximum": 0.3}, False),
        ("0.29999999999999999999", {"exclusiveMaximum": 0.3}, True),
        ("0.3", {"enum": [0.3]}, True),
        ("3.0", {"const": 3}, True),
    ],
)
def test_numbers_are_the_decimals_that_are_written(text: str, schema: Any, valid: bool) -> None:
    assert terms(JsonSchema(schema), text) == [(0.2, 0.8 if valid else 0.0)]


@settings(deadline=None, max_examples=200)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.decimals("0.0001", 1000, places=4))
def test_a_multiple_is_a_whole_number_of_steps(value: Decimal, step: Decimal) -> None:
    whole = (Fraction(value) / Fraction(step)).denominator == 1
    schema = f'{{"multipleOf": {step}}}'
    assert JsonSchema()(["p"], [str(value)], schema=[schema]) == [1.0 if whole else 0.2]
    assert JsonSchema()(["p"], [str(step * 12345)], schema=[schema]) == [1.0]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_of_json_is_in_no_schema(number: float) -> None:
    with pytest.raises(ValueError, match=f"^schema: {number} is no JSON"):
        JsonSchema({"maximum": number})


def test_a_pattern_is_judged_by_the_engine_that_runs_it() -> None:
    for pattern, text in [(r"^\p{L}+$", "h\u00e9llo"), (r"^\pN$", "5"), (r"\Aa\z", "a")]:
        schema = {"type": "string", "pattern": pattern}
        assert terms(JsonSchema(schema), f'"{text}"', '"-"') == [(0.2, 0.8), (0.2, 0.0)]


def test_a_pattern_in_a_schema_runs_in_linear_time() -> None:
    reward = JsonSchema({"type": "string", "pattern": "^(a+)+$"})
    assert terms(reward, '"aa"', f'"{"a" * 20_000}b"', '"\\ud800"') == [(0.2, 0.8), (0.2, 0.0), (0.2, 0.0)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(json_values, st.sampled_from([SCHEMA, {"type": ["integer", "string"]}, {"maxItems": 1}]))
def test_every_value_that_is_written_is_read_and_judged_as_the_library_judges(value: Any, schema: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text, parse_float=Decimal)
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert terms(JsonSchema(schema), text) == [(0.2, 0.8 if valid else 0.0)]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_no_text_is_too_odd(text: str) -> None:
    assert terms(JsonSchema(SCHEMA), text)[0] in [(0.0, 0.0), (0.2, 0.0), (0.2, 0.8)]
    assert JsonValues()(["p"], [text], value=[{"a": 1}])[0] in (0.0, 1.0)


def test_json_values() -> None:
    right = {"a": 1, "b": [True, {"c": 2.0}]}
    texts = ['{"b":[true,{"c":2}],"a":1.0}', '{"a":1,"b":[1,{"c":2}],"x":0}', '{"a":true}', "[1]", "{", "1"]
    values = [right] * 5 + [None]
    assert JsonValues()(["p"] * 6, texts, value=values) == [1.0, 0.5, 0.0, 0.0, 0.0, None]
    with pytest.raises(ValueError, match="'value' is needed by reward 'json_values'"):
        JsonValues()(["p"], ["{}"])
    for bad in ({}, [1], "a"):
        with pytest.raises(ValueError, match=r"column 'value': .*an object with at least one key"):
            JsonValues()(["p"], ["{}"], value=[bad])
