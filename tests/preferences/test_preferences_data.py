"""Rankings and demonstrations: what they refuse, and a ranking's pairs."""

from __future__ import annotations

import math

import pytest

from textgym.preferences import Demonstration, Problem, Ranking, pairs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"completions": ("a",)}, "completions: 1 given"),
        ({"completions": "ab"}, "completions"),
        ({"completions": ("a", "")}, "the rejected answer is empty"),
        ({"completions": (" \n\u2003", "a")}, "the chosen answer is empty"),
        ({"completions": ("a", "b", "\t")}, "answer 3 of 3 is empty"),
        ({"completions": ("a", "a")}, "the chosen answer and the rejected answer are identical"),
        ({"completions": ("a", "b", "c", "b")}, "answer 2 of 4 and answer 4 of 4 are identical"),
        ({"completions": ("a", "\ud800")}, "lone surrogate, '\\ud800'"),
        ({"prompt": "x\udfff"}, "the prompt holds a lone surrogate"),
        ({"ended": (True,)}, "ended: 1 values for 2 completions"),
        ({"scores": (1.0, 2.0, 3.0)}, "scores: 3 values for 2 completions"),
        ({"scores": (1.0, math.nan)}, "scores: nan is not a finite number"),
        ({"margin": math.inf}, "margin: inf is not a finite number"),
    ],
)
def test_a_ranking_refuses(arguments, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Ranking(**{"prompt": "p", "completions": ("a", "b")} | arguments)
    assert said in str(caught.value)


def test_texts_must_be_texts():
    with pytest.raises(TypeError, match="the prompt is of type NoneType"):
        Ranking(None, ("a", "b"))
    with pytest.raises(TypeError, match="the completion is of type int"):
        Demonstration("p", 3)
    with pytest.raises(ValueError, match="the completion is empty"):
        Demonstration("p", " ")


def test_pairs_keep_the_order_and_what_belongs_to_each():
    ranking = Ranking("p", ("a", "b", "c"), (True, False, True), 0.5, (3.0, 1.0, 2.0))
    assert pairs(ranking) == [
        Ranking("p", ("a", "b"), (True, False), 0.5, (3.0, 1.0)),
        Ranking("p", ("a", "c"), (True, True), 0.5, (3.0, 2.0)),
        Ranking("p", ("b", "c"), (False, True), 0.5, (1.0, 2.0)),
    ]
    assert pairs(Ranking("p", ("a", "b"))) == [Ranking("p", ("a", "b"))]


def test_a_problem_says_where():
    assert str(Problem("x.jsonl", 7, "not JSON")) == "x.jsonl, line 7: not JSON"
