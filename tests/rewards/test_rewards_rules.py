"""The rule rewards: numbers by hand, ranges, refused parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import Charset, ContainsAll, Length


def ask(reward: Any, *texts: str, **columns: Any) -> Any:
    return reward(["p"] * len(texts), list(texts), **columns)


def test_contains_all() -> None:
    reward = ContainsAll(["cat", "mat", "the hat"])
    assert ask(reward, "the cat on the mat", "the hat", "Cat", "") == [
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
        0,
        0,
    ]
    assert ask(ContainsAll(["Cat", "MAT"], ignore_case=True), "cAt mat", "CAT") == [1.0, 0.5]
    assert ContainsAll(["a"]) == ContainsAll(("a",))


@pytest.mark.parametrize("words", ["cat", [], ["cat", ""], ["cat", 1], ["\u00ad"], ["cat", "\ufe0f"], None, 3])
def test_contains_all_refuses(words: Any) -> None:
    with pytest.raises(ValueError, match="words="):
        ContainsAll(words)


def test_length() -> None:
    assert ask(Length(4), "a b c d", "a b", "", "  a  b c d e\n", "a b c d e f g h i") == [
        1.0,
        0.5,
        0.0,
        0.75,
        0.0,
    ]
    assert ask(Length(3, "characters", width=2), "abc", "ab", "abcde", "abcdef") == [1.0, 0.5, 0.0, 0.0]
    assert ask(Length(2, "tokens"), "", "", completion_ids=[[5, 1], [5, 6, 1]]) == [1.0, 0.5]
    assert ask(Length(0), "", "a") == [1.0, 0.0]


@pytest.mark.parametrize(
    "parameters",
    [{"target": -1}, {"target": 1.5}, {"target": True}, {"unit": "lines"}, {"width": 0}, {"width": -1.0}],
)
def test_length_refuses(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Length(**parameters)


def test_charset() -> None:
    assert ask(Charset("aab"), "abba", "abcd", "", "xyz", "a c") == [1.0, 0.5, 0.0, 0.0, pytest.approx(1 / 3)]
    for bad in ("", None, ["a"]):
        with pytest.raises(ValueError, match="characters="):
            Charset(bad)  # type: ignore[arg-type]


RULES = [
    ContainsAll(["a", "e\u0301"], ignore_case=True),
    Charset("a\u0130\U0001f600"),
    Length(3),
    Length(2, "characters"),
]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=20), min_size=1, max_size=4))
def test_any_text_earns_from_0_to_1_and_each_for_itself(texts: list[str]) -> None:
    for reward in RULES:
        together = ask(reward, *texts)
        assert all(0.0 <= value <= 1.0 for value in together)
        assert together == [ask(reward, text)[0] for text in texts]
