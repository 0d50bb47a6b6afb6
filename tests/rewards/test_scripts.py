"""Texts in every script and normal form: the same text earns the same, and what cannot be read is said."""

from __future__ import annotations

import unicodedata
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize

from textgym.rewards import TextGymWarning, make_reward
from textgym.rewards.words import _SAID, words

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# A sentence and a word of it: Latin with marks, Greek, Cyrillic, Vietnamese, Hindi, Arabic, Hebrew, Korean, Thai,
# Chinese, Japanese, Khmer, emoji of several characters, ligatures and full width.
SENTENCES = {
    "The caf\u00e9 is na\u00efve.": "caf\u00e9",
    "\u039f \u03c3\u03ba\u03cd\u03bb\u03bf\u03c2": "\u03c3\u03ba\u03cd\u03bb\u03bf\u03c2",
    "\u043c\u043e\u0439 \u0438\u043e\u0434 \u0438 \u0451\u043b\u043a\u0430": "\u0451\u043b\u043a\u0430",
    "t\u00f4i \u0103n ph\u1edf b\u00f2": "ph\u1edf",
    "\u092e\u0947\u0930\u093e \u0928\u093e\u092e \u0930\u093e\u092e \u0939\u0948": "\u0928\u093e\u092e",
    "\u0627\u0644\u0642\u0637\u0629 \u0646\u0627\u0626\u0645\u0629": "\u0646\u0627\u0626\u0645\u0629",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05dc\u05da": "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\uace0\uc591\uc774 \uc790\uc694": "\uace0\uc591\uc774",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u4e00\u53ea\u72d0\u72f8\u5728\u5403": "\u72d0\u72f8",
    "\u6211\u559c\u6b22cat\u5417": "cat",
    "\u30ac\u30e9\u30b9\u3092\u98df\u3079\u308b": "\u30ac\u30e9\u30b9",
    "\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a": "\u1781\u17d2\u1798\u17c2\u179a",
    "ok \U0001f468\u200d\U0001f469\u200d\U0001f467 yes": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a \ufb01le, \uff46\uff55\uff4c\uff4c": "\ufb01le",
}


def ask(spec: Any, text: str, **columns: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextGymWarning)
        return make_reward(spec)(["p"], [text], **columns)[0]


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("form", FORMS)
def test_a_word_is_found_in_every_form(sentence: str, form: str) -> None:
    written = unicodedata.normalize(form, sentence)
    for other in FORMS:
        word = unicodedata.normalize(other, SENTENCES[sentence])
        for ignore_case in (True, False):
            assert ask({"name": "keywords", "words": [word], "ignore_case": ignore_case}, written) == 1.0
            assert ask({"name": "contains_all", "words": [word], "ignore_case": ignore_case}, written) == 1.0
        assert ask({"name": "keywords", "words": [word + "x"]}, written) == 0.0


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("stra\u00dfe", "STRASSE", True),
        ("\u03c3\u03ba\u03cd\u03bb\u03bf\u03c2", "\u03a3\u039a\u038e\u039b\u039f\u03a3", True),
        ("\u0130stanbul", "\u0130STANBUL", True),
        # A mark goes on with a word, and so does what is joined to an emoji.
        ("\u0928\u093e\u092e", "\u0928\u093e\u092e\u094b\u0902", False),
        ("cafe", "cafe\u0301", False),
        ("\U0001f468", "\U0001f468\u200d\U0001f469", False),
        ("\U0001f44d", "\U0001f44d\U0001f3fd", False),
        ("\u2764", "\u2764\ufe0f", True),
        ("cat", "\u00e9cat", False),
        ("cat", "\u0e14\u0e35cat", True),
        ("\u0e14", "\u0e14\u0e35", False),
        ("c++", "c++, \u00e9", True),
    ],
)
def test_where_a_word_ends(word: str, text: str, found: bool) -> None:
    assert ask({"name": "keywords", "words": [word]}, text) == float(found)


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("name", ["rouge", "bleu", "chrf"])
def test_a_perfect_answer_earns_1_in_every_script_and_form(sentence: str, name: str) -> None:
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, sentence)
        assert ask(name, written, reference=[sentence]) == pytest.approx(1.0)
        assert ask(name, written, reference=[["other", unicodedata.normalize("NFD", sentence)]]) == pytest.approx(1.0)
        if name != "bleu":
            assert ask(name, written[: len(written) // 2], reference=[sentence]) < 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 2 o'clock", ["it", "s", "2", "o", "clock"]),
        ("Caf\u00e9s, cafe\u0301s", ["caf\u00e9s", "caf\u00e9s"]),
        ("\u4f60\u597d GPT4\u6a21", ["\u4f60", "\u597d", "gpt4", "\u6a21"]),
        ("\u0e14\u0e35 \u0928\u093e\u092e", ["\u0e14\u0e35", "\u0928\u093e\u092e"]),
        ("\U0001f600 !", []),
    ],
)
def test_words_by_hand(text: str, found: list[str]) -> None:
    assert words(text) == found


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_words_of_ascii_are_those_of_the_package(text: str) -> None:
    assert words(text) == tokenize(text, None)


MEASURES: list[Any] = [
    {"name": "length", "target": 9, "unit": "characters"},
    {"name": "length", "target": 3},
    {"name": "length_penalty", "limit": 4, "unit": "characters"},
    {"name": "no_repeat", "n": 1, "unit": "characters"},
    {"name": "no_repeat", "n": 1},
    {"name": "charset", "characters": "\u00e9\u0451a"},
    {"name": "format", "template": "{all}\u00e9{end}", "partial": 0.5},
    {"name": "keywords", "words": ["\u00e9", "a", "\u0451\u0301"]},
    {"name": "sentiment"},
]


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ae\u0301\u0308\u00e9\u0451 "), max_size=12))
def test_a_text_earns_the_same_composed_and_decomposed(text: str) -> None:
    for spec in MEASURES:
        earned = {ask(spec, unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
        assert len(earned) == 1, spec


@pytest.mark.parametrize(
    ("spec", "text", "said", "earned"),
    [
        ({"name": "rouge"}, "\U0001f600!", "'rouge' sees no word", None),
        ({"name": "bleu"}, "\u4f60\u597d", "'bleu' counts what spaces separate", 1.0),
        (
            {"name": "length", "target": 1},
            "\u0e2a\u0e27\u0e31",
            "unit='words' counts what spaces separate",
            1.0,
        ),
        ({"name": "no_repeat", "n": 1}, "\u4f60\u597d", "unit='words' counts what spaces separate", 1.0),
        ({"name": "sentiment"}, "\u043f\u043b\u043e\u0445\u043e", "'sentiment' reads English", 0.5),
    ],
)
def test_what_a_reward_cannot_read_it_says_once(spec: Any, text: str, said: str, earned: Any) -> None:
    _SAID.clear()
    reward = make_reward(spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert reward(["p"] * 2, [text] * 2, reference=[text] * 2) == pytest.approx([earned] * 2)
        reward(["p"], [text], reference=[text])
    (warning,) = caught
    assert said in str(warning.message)
