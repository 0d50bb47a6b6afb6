"""Arithmetic, Keywords, Format and Pattern: numbers by hand, any text, refused parameters."""

from __future__ import annotations

import math
import pickle
import re
import sys
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import (
    Arithmetic,
    Format,
    JsonSchema,
    Keywords,
    Pattern,
    RewardError,
    Scorer,
    make_reward,
)
from textgym.rewards.numbers import last_number

any_text = st.text(st.characters(exclude_categories=()), max_size=30)


def ask(reward: Any, *texts: str, **columns: Any) -> Any:
    return reward(["p"] * len(texts), list(texts), **columns)


def test_arithmetic() -> None:
    answers = [12, "12", 0.1, "1/2", None, Fraction(1, 3), "0.3333"]
    texts = ["12", "It is 12.0.", ".1", "0.5", "5", "1/3", "1/3"]
    assert ask(Arithmetic(), *texts, answer=answers) == [1, 1, 1, 1, None, 1, 0]
    # Exact: a float would take these two for equal.
    assert ask(Arithmetic(), str(2**60 + 1), answer=[2**60]) == [0.0]
    assert ask(Arithmetic(read="whole"), "12", "12 apples", answer=[12, 12]) == [1.0, 0.0]
    assert ask(Arithmetic(column="total"), "so 3", total=["3"]) == [1.0]


def test_arithmetic_says_what_is_wrong_with_the_answers() -> None:
    with pytest.raises(ValueError, match=r"columns=\['completion_ids'\]: 'answer' is needed by reward 'arith"):
        ask(Arithmetic(), "1", completion_ids=[[1]])
    for bad in ("twelve", True, float("nan"), float("inf"), [12], "1/0"):
        with pytest.raises(ValueError, match=r"column 'answer': .* is not a number"):
            ask(Arithmetic(), "1", answer=[bad])
    with pytest.raises(ValueError, match="read='first'"):
        Arithmetic(read="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="column=''"):
        Arithmetic(column="")


@settings(deadline=None, max_examples=100)
@given(any_text, st.fractions(max_denominator=10**9), any_text)
def test_a_number_at_the_end_of_any_text_is_found(before: str, number: Fraction, after: str) -> None:
    last_number(before + after)  # never raises
    assert ask(Arithmetic(), f"{before} = {number}", answer=[number]) == [1.0]


def test_keywords() -> None:
    reward = Keywords(["cat", "the hat", "c++"])
    texts = ["The CAT in the hat.", "concat, cats, cat_1", "I write c++, cat!", "c++11 cat", ""]
    assert ask(reward, *texts) == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3, 0])
    assert ask(Keywords(["cat", "hat"], mode="all"), "hat, cat", "cat") == [1.0, 0.0]
    assert ask(Keywords(["Cat"], ignore_case=False), "cat", "a Cat") == [0.0, 1.0]
    assert ask(Keywords(["stra\u00dfe"]), "STRASSE") == [1.0]
    assert ask(Keywords(["cat"]), "\u00e9cat cat\u00e9") == [0.0]
    # The first place is inside another word, the second is not.
    assert ask(Keywords(["cat"]), "cats and a cat") == [1.0]


def test_keywords_of_a_column() -> None:
    reward = make_reward({"name": "keywords", "column": "words", "mode": "share"})
    words = [["a", "b"], ("c",), None]
    assert ask(reward, "a", "c d", "e", words=words) == [0.5, 1.0, None]
    with pytest.raises(ValueError, match=r"'words' is needed by reward 'keywords'"):
        ask(reward, "a")
    with pytest.raises(ValueError, match=r"column 'words', row='a b'"):
        ask(reward, "a", words=["a b"])


@pytest.mark.parametrize(
    "parameters",
    [{}, {"words": ["a"], "column": "b"}, {"words": "cat"}, {"words": []}, {"words": ["a"], "mode": "any"}],
)
def test_keywords_refuses(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"words=|mode="):
        Keywords(**parameters)


def test_keywords_of_a_column_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="column 'words' has 1 values; one for each of 2 prompts is allowed"):
        Keywords(column="words")(["p", "p"], ["a", "b"], words=[["a"]])


def test_format() -> None:
    reward = Format("<think>{thought}</think><answer>{answer}</answer>")
    good = "<think>7.\n+5\u00e9</think><answer>12</answer>"
    assert ask(reward, good, good + " ", "x" + good, good.replace("12", ""), "") == [1, 0, 0, 0, 0]
    # What is special in a regular expression, or in Python's own formatting, is plain text here.
    assert ask(Format("[a.b*] ({x})? {{y}}"), "[a.b*] (1)? {y}", "[aXb*] (1)? {y}") == [1.0, 0.0]
    assert ask(Format("{all}"), "a", "", "\n") == [1.0, 0.0, 1.0]


def test_format_pays_for_parts() -> None:
    reward = Format("<a>{x}</a>{y}<b>", partial=0.6)  # three parts: 0.2 each
    texts = ["<a>1</a>2<b>", "<a>", "</a>", "<b>", "<a></a><b>", "<b></a><a>", "-<a>", "</a><a>"]
    assert ask(reward, *texts) == pytest.approx([1.0, 0.2, 0.2, 0.2, 0.6, 0.2, 0.0, 0.2])
    # The most that stand in order count, whatever stands in front of them.
    reward = Format("{a}<1>{b}<2>{c}<3>{d}", partial=0.9)
    assert ask(reward, "a<2>b<3>c", "a<2>b<3>c<1>", "<3><1>", "<1><3><2>") == pytest.approx([0.6, 0.6, 0.3, 0.6])
    assert ask(Format("<1>{a}<1>{b}", partial=0.5), "<1>", "<1>x<1") == [0.25, 0.25]
    assert ask(Format("ab{x}bc{y}cd", partial=0.9), "abcd") == pytest.approx([0.6])  # ab and cd; bc is over both
    # The parts may not overlap.
    assert ask(Format("aa{x}aa", partial=0.5), "aaa", "aaaa", "aaaaa") == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "a text with slots"),
        ("no slot", "at least one"),
        ("{a}{a}", "each only once"),
        ("{}", "not a plain name"),
        ("{a.b}", "not a plain name"),
        ("{a:>3}", "not a plain name"),
        ("{a!r}", "not a plain name"),
        ("{a", "a slot is {name}"),
        ("{a} }", "a slot is {name}"),
    ],
)
def test_format_refuses(template: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"template=.*{re.escape(reason)}"):
        Format(template)
    for partial in (1, "x", None, True, math.nan):
        with pytest.raises(ValueError, match=f"partial={partial!r}: a share from 0"):
            Format("{a}", partial=partial)


def test_pattern() -> None:
    assert ask(Pattern(r"\d+ apples?"), "3 apples", "3 apple", "3 apples.", "") == [1, 1, 0, 0]
    assert ask(Pattern(r"\bapple\b", "search", ignore_case=True), "An APPLE.", "apples") == [1.0, 0.0]
    assert ask(Pattern("a.b"), "a\nb", "a\u00e9b") == [0.0, 1.0]
    assert ask(Pattern("a.b", dot_all=True), "a\nb") == [1.0]
    assert ask(Pattern("^b$", "search"), "a\nb") == [0.0]
    assert ask(Pattern("^b$", "search", multi_line=True), "a\nb") == [1.0]
    assert ask(Pattern(".*"), "a\ud800", "ok", "\udfff") == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(a)\1", "a backreference"),
        (r"(?P<n>a)(?P=n)", "a backreference"),
        (r"a(?=b)", "lookahead"),
        (r"a(?!b)", "lookahead"),
        (r"(?<=a)b", "lookbehind"),
        (r"(?P<n>a)(?<!a)b", "lookbehind"),
        (r"(?>a)", "an atomic group"),
        (r"a++", "a possessive repetition"),
        (r"(a)(?(1)b|c)", "a conditional group"),
        (r"a\Z", r"write \z"),
        (r"(?#note)a", "a comment"),
        ("(", "not a regular expression of re2 (missing )"),
        ("[a", "not a regular expression of re2 (missing ]"),
        ("a{,2}", "{,n} is plain text to re2"),
        ("x[0-9]{,3}", "{,n} is plain text to re2"),
        ("a{,}", "{,n} is plain text to re2"),
        ("[]a]", "write \\]"),
        (r"a\C", "half a character"),
        ("a{1001}", "invalid repetition size"),
        ("\ud800", "cannot be written as UTF-8"),
        ("", "not empty"),
        (3, "not empty"),
    ],
)
def test_pattern_says_what_re2_cannot_express(pattern: Any, named: str, capfd: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        Pattern(pattern)
    assert str(caught.value).startswith(f"pattern={pattern!r}: ")
    assert capfd.readouterr().err == ""  # re2 writes its errors there unless it is told not to


def test_a_pattern_that_takes_others_exponential_time_is_quick() -> None:
    start = time.perf_counter()
    assert ask(Pattern("(a+)+$"), "a" * 20_000 + "b") == [0.0]
    assert time.perf_counter() - start < 1.0


REWARDS = [
    Arithmetic(),
    Keywords(["a", "e\u0301", "+"]),
    Format("{a}a{b}", partial=0.5),
    Pattern(r"(?i)[a-z]*\W.?", "search"),
]


@settings(deadline=None, max_examples=100)
@given(st.lists(any_text, min_size=1, max_size=4))
def test_any_text_earns_from_0_to_1_and_each_for_itself(texts: list[str]) -> None:
    for reward in REWARDS:
        together = ask(reward, *texts, answer=[1] * len(texts))
        assert all(0.0 <= value <= 1.0 for value in together)
        assert together == [ask(reward, text, answer=[1])[0] for text in texts]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.name)
def test_rewards_survive_a_child_process(reward: Any) -> None:
    again = pickle.loads(pickle.dumps(reward))
    assert again == reward
    assert ask(again, "a a b 1", answer=[1]) == ask(reward, "a a b 1", answer=[1])
    assert Scorer(again).term_names == (reward.name,)


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("re2", lambda: Pattern("never compiled before")),
        ("re2", lambda: Format("never {compiled} before")),
        ("jsonschema", lambda: JsonSchema({"type": "integer"})),
    ],
)
def test_a_missing_package_is_named(module: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {module}.*pip install "textgym\[rewards\]"'):
        make()


@pytest.mark.slow
def test_math_verify_compares_formulas() -> None:
    pytest.importorskip("math_verify")
    scorer = Scorer("math_verify", timeout=60)
    rows = {
        r"so it is \boxed{\frac{1}{2}}": ("1/2", 1.0),
        "It is $0.5$": ("1/2", 1.0),
        r"$\frac{2}{3}$": ("1/2", 0.0),
        "12,000 people": (12000, 1.0),
        r"it is $\sqrt{8}$": (r"2\sqrt{2}", 1.0),
        "no idea": ("7", 0.0),
        "anything": (None, 0.0),
    }
    answers, wanted = zip(*rows.values(), strict=True)
    found = scorer.score(["p"] * len(rows), list(rows), {"answer": answers})
    assert found.total.tolist() == list(wanted)
    assert np.isnan(found.terms["math_verify"]).tolist() == [answer is None for answer in answers]
    with pytest.raises(RewardError, match="column 'answer': '' is no number or formula"):
        scorer.score(["p"], ["7"], {"answer": [""]})
    scorer.close()
    with pytest.raises(ValueError, match=r"timeout=None: reward 'math_verify' may take for ever"):
        Scorer("math_verify")
