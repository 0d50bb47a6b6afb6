"""Numbers that rewards read in a text: by hand, in every notation, beside any symbol and letter."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import (
    Arithmetic,
)
from textgym.rewards.numbers import last_number, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 plus 5 is 12.", 12),
        ("so 3, 4, and 12, then", 12),
        ("1,2,3", 3),
        ("1,234.5!", Fraction(2469, 2)),
        ("-1,234,567", -1234567),
        ("1,2345", None),  # two numbers, or a decimal comma
        ("about 0.50", Fraction(1, 2)),
        ("-.25", Fraction(-1, 4)),
        ("x = \u22123", -3),
        ("+8", 8),
        ("10-12", None),
        ("(2)-5", None),
        ("6/8 of it", Fraction(3, 4)),
        ("2.5/5", Fraction(1, 2)),
        ("7/0", None),
        ("twelve", None),
        ("", None),
        ("\u0663", None),  # an Arabic three
        ("9" * 1001, None),
        ("9" * 1000, 10**1000 - 1),
    ],
)
def test_the_last_number_of_a_text(text: str, number: Any) -> None:
    assert last_number(text) == number


DOCS = Path(__file__).resolve().parents[2] / "docs" / "rewards.md"


def notations() -> list[tuple[str, str]]:
    """What the table of docs/rewards.md says: a text, and its value or "unreadable"."""
    table = DOCS.read_text(encoding="utf-8").partition("### Numbers")[2].partition("## ")[0]
    rows = [re.fullmatch(r"\| .*? \| (`.*`) \| (.*) \|", line) for line in table.splitlines()]
    found = []
    for row in filter(None, rows):
        written, values = re.findall(r"`(.+?)`(?=,|$)", row[1]), row[2].split(", ")
        assert len(values) in (1, len(written))
        found += zip(written, values * len(written) if len(values) == 1 else values, strict=False)
    return found


@pytest.mark.parametrize("around", ["{}", "It is {}", "{} I say", "\n{}\n", "So ({} it is)"])
def test_every_notation_is_read_as_the_table_says(around: str) -> None:
    table = notations()
    assert len(table) > 240
    for written, value in table:
        if written in ("- 5", "-> 5") and around[0] not in "{\n":
            continue  # a bullet begins a line
        want = None if value == "unreadable" else Fraction(value)
        assert last_number(around.format(written)) == want, (around, written)


UNREADABLE = [written for written, value in notations() if value == "unreadable"]


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=4, max_size=8),
    st.sampled_from(UNREADABLE),
    st.sampled_from([1, -1]),
)
def test_what_is_unreadable_pays_for_none_of_its_parts(word: str, written: str, sign: int) -> None:
    parts = [sign * int(part) for part in re.findall("[0-9]+", written)]
    texts = [f"{word} {written}"] * len(parts)
    assert Arithmetic()(["p"] * len(parts), texts, answer=parts) == [0.0] * len(parts)


SYMBOLS = [
    chr(code) for code in range(0x21, 0x3100) if unicodedata.category(chr(code))[0] in "PSC" and not chr(code).isspace()
]
MINUS = "-\u2010\u2011\u2012\u2013\u2212"
CURRENCIES = "".join(symbol for symbol in SYMBOLS if unicodedata.category(symbol) == "Sc")
MARKS = "\u2705\u2713\u2714\u2b50\u2764"
ENDS = "=;|\u2248\u2192\u21d2.,:!?\u2026\"'\u201d\u2019\u00bb)]}\u3001\u3002\u300d\u300f\u3011\u037e"
OPENS = "=;|\u2248\u2192\u21d2.,:!?\u2026\"'\u201c\u2018\u00ab\u201e([{`*_~#\u00bf\u00a1\u3002\u300c\u300e\u3010\u037e"
BEFORE_BLANK = f"{OPENS}\u2014\u201d\u2019\u00bb)]\u3001\u300d\u300f\u3011>\u221e{MARKS}"


@pytest.mark.parametrize(
    ("around", "known"),
    [
        ("{}7", OPENS + CURRENCIES + MINUS + "+"),
        ("{} 7", BEFORE_BLANK + MINUS + "$*+"),
        ("7{}", ENDS + CURRENCIES + MARKS + "%\u2030\u00b0"),
        ("7 {}", ENDS + CURRENCIES + MARKS + "%\u2030\u00b0([\u201c\u2014"),
        ("7 {} n", ENDS + MARKS + "([\u201c\u2014"),
        ("3{}7", "=;|\u2248\u2192\u21d2\u037e./"),
        ("3 {} 7", BEFORE_BLANK + MINUS + "$"),
    ],
)
def test_a_symbol_beside_a_number_is_listed_or_makes_it_unreadable(around: str, known: str) -> None:
    listed = {symbol for symbol in SYMBOLS if unicodedata.normalize("NFC", symbol) in known}
    read = {symbol for symbol in SYMBOLS if last_number(around.format(symbol)) is not None}
    assert read <= listed, sorted(read - listed)


UNLISTED = st.text(
    st.characters(categories=["Sm", "So", "Sk"], exclude_characters="=|~`\u1fef>\u00b0" + BEFORE_BLANK + ENDS),
    min_size=1,
    max_size=3,
).filter(
    lambda junk: (
        not re.search("[-+\u2212\u2248\u2192\u21d2\uff0b\U0001f300-\U0001faff]", unicodedata.normalize("NFKC", junk))
    )
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.integers(1, 9999), UNLISTED, st.integers(1, 9999), st.sampled_from(["", " "]))
def test_symbols_that_are_not_listed_leave_no_part(left: int, junk: str, right: int, blank: str) -> None:
    for text in (
        f"{left}{junk}{right}",
        f"{left} {junk} {right}",
        f"{left}{junk} {right}",
        f"{left} {junk}{right}",
    ):
        assert last_number(text) is None, text
    assert last_number(f"so {left}{blank}{junk}") is None
    assert last_number(f"so {junk}{blank}{right}") is None


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 9999),
    st.text(st.characters(categories=["Lu", "Ll", "Lt"]), min_size=1, max_size=5),
    st.integers(1, 9999),
)
def test_letters_between_two_numbers_leave_no_part(left: int, letters: str, right: int) -> None:
    assert last_number(f"{left}{letters}{right}") is None
    assert last_number(f"{left}.{letters}{right}") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 12\n", 12),
        ("-7/2", Fraction(-7, 2)),
        ("1,000", 1000),
        ("1,00", None),
        ("12.", None),
        ("12 13", None),
        ("is 12", None),
        ("1e3", None),
        ("", None),
    ],
)
def test_a_text_that_is_a_number(text: str, number: Any) -> None:
    assert whole_number(text) == number
