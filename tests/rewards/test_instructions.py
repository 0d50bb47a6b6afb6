"""Instructions: every kind, followed and not, and lists of them from a column."""

from __future__ import annotations

from typing import Any

import pytest

from textgym import TokenEnv
from textgym.rewards import make_reward
from textgym.rewards.instructions import KINDS

LIST = "Things to do:\n\n- eat\n- sleep\n1. run\n\nDone. Is it? Yes!"
CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"name": "amount", "of": "words", "least": 2, "most": 3}, ["a b", "a b - c", " a\nb c "], ["a", "a b c d", ""]),
    ({"name": "amount", "of": "characters", "most": 3}, ["", "abc", "ae\u0301b"], ["abcd"]),
    (
        {"name": "amount", "of": "sentences", "least": 2, "most": 2},
        ["It is 3.5 m. Yes!", 'He said "no." I left', "One\nTwo", "Wait... what?", "\u597d\u3002\u597d\u3002"],
        ["One.", "A. B. C.", "...", "It costs 3.50"],
    ),
    ({"name": "amount", "of": "paragraphs", "least": 3, "most": 3}, [LIST, "a\n\nb\n \nc"], ["a\nb\nc", "a\n\nb", ""]),
    (
        {"name": "amount", "of": "bullets", "least": 3, "most": 3},
        [LIST, "* a\n  \u2022 b\n1) c"],
        ["-a\n-b\n-c", "- a"],
    ),
    ({"name": "amount", "of": "placeholders", "least": 2}, ["[name], [your town]"], ["[name] []", "[a\nb] [c]"]),
    ({"name": "keywords", "words": ["cat", "hat"], "mode": "all"}, ["A hat, a Cat."], ["cats and hats", "cat"]),
    ({"name": "contains_all", "words": ["??"]}, ["what??"], ["what?"]),
    ({"name": "forbidden", "words": ["cat", ","]}, ["cats. all", ""], ["The Cat", "a, b", "a,b"]),
    ({"name": "letter_case", "case": "lower"}, ["it is 5.", "\u00e4\u00f6"], ["It is", "5", ""]),
    ({"name": "letter_case", "case": "upper"}, ["IT IS 5."], ["IT is", "5"]),
    ({"name": "edges", "start": "Dear ", "end": "Bye."}, [" Dear all. Bye.\n"], ["dear all. Bye.", "Dear all."]),
    ({"name": "edges", "end": "BYE", "ignore_case": True}, ["bye"], ["bye."]),
    ({"name": "json_schema", "schema": {}}, ['{"a": 1}', "[]", " 3 "], ["{a: 1}", 'Here: {"a": 1}', ""]),
    ({"name": "pattern", "pattern": "[^,]*"}, ["no comma", ""], ["one, comma"]),
]


@pytest.mark.parametrize(("spec", "yes", "no"), CASES, ids=[str(case[0]) for case in CASES])
def test_a_kind_tells_what_follows_it(spec: dict[str, Any], yes: list[str], no: list[str]) -> None:
    reward = make_reward({"name": "instructions", "instructions": [spec]})
    pay = reward(["p"] * len(yes + no), yes + no)
    assert pay == [1.0] * len(yes) + [0.0] * len(no)


def test_every_kind_has_a_case() -> None:
    assert {case[0]["name"] for case in CASES} == {*KINDS}


def test_the_share_or_all_of_a_rows_instructions() -> None:
    short, low = {"name": "amount", "of": "words", "most": 2}, {"name": "letter_case", "case": "lower"}
    rows = [[short, low], [short, low], [short], None]
    texts = ["a b", "a B", "a b c", "a"]
    assert make_reward("instructions")(["p"] * 4, texts, instructions=rows) == [1, 0.5, 0, None]
    both = make_reward({"name": "instructions", "mode": "all", "column": "asked"})
    assert both(["p"] * 4, texts, asked=rows) == [1, 0, 0, None]
    wide = [[short | {"case": None, "words": None}]]  # as parquet has it
    assert both(["p"], ["a b"], asked=wide) == [1]


def test_an_environment_takes_them_from_a_column() -> None:
    asked = [[{"name": "amount", "of": "words", "most": 1}, {"name": "edges", "start": "b"}]]
    columns = {"instructions": asked}
    words = {"tokenizer": ["a", "b", "<end>"], "stop": "<end>"}
    env = TokenEnv("Text", prompts=["a"], columns=columns, reward="instructions", max_new_tokens=3, **words)
    env.reset(seed=0)
    assert env.step(1)[1] == 0
    assert env.step(2)[1] == 1


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ([], "at least one instruction"),
        ("amount", "at least one instruction"),
        ([{"name": "os:system"}], "not one of amount"),
        ([{"name": "judge"}], "not one of amount"),
        (["amount"], "Parameters|not one of|allowed"),
        ([{"name": "amount", "of": "lines"}], "of='lines'"),
        ([{"name": "amount", "of": "words", "least": 3, "most": 2}], "most=2"),
        ([{"name": "edges"}], "at least one of them"),
        ([{"name": "edges", "start": " "}], "start=' ': a text that is more than white space"),
        ([{"name": "forbidden", "words": "cat"}], "words='cat'"),
        ([{"name": "letter_case", "case": "title"}], "case='title'"),
        ([{"name": "keywords", "words": [object()]}], "JSON values"),
    ],
)
def test_what_is_no_instruction_is_refused(wrong: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_reward({"name": "instructions", "instructions": wrong})
    with pytest.raises(ValueError, match=match):
        make_reward("instructions")(["p"], ["a"], instructions=[wrong])
