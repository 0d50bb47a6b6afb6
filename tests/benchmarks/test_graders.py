"""The labelled answers of graders, and the rates that the page of rewards shows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from textgym_benchmarks.graders import ANSWERS, EACH, GRADERS, graded, labelled, mistakes, rate, read_answers

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
SHOWN = {name: row for name, *row in re.findall(r"^\| (.+?) \| (\d.*?) \| (\d.*?) \|$", PAGE.read_text("utf-8"), re.M)}


def test_the_file_is_what_the_script_makes() -> None:
    answers = read_answers()
    assert answers == list(labelled())
    assert len(answers) == 1168
    assert ANSWERS.stat().st_size < 150_000
    assert set(Counter(each.form for each in answers).values()) == {EACH}
    assert sum(each.right for each in answers) == 576
    assert len({(each.answer, each.text) for each in answers}) > 1000
    for number in ("1,168 labelled", "576 of them", "16 of each of 73"):
        assert number in PAGE.read_text(encoding="utf-8")


def test_right_answers_have_the_number_and_most_wrong_ones_have_another() -> None:
    """By a plain look: a bare right answer is the number, a bare wrong one is not."""
    for each in labelled(each=4):
        if each.form in ("bare", "other number"):
            assert (each.text == each.answer) == each.right
        if each.right and each.form in ("sentence", "bold", "tags", "hashes", "corrected"):
            assert re.search(rf"(?<!\d){each.answer}(?!\d)", each.text)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", GRADERS)
def test_the_page_has_the_rates_of_a_grader(name: str) -> None:
    if "math_verify" in name:
        pytest.importorskip("math_verify")
    answers = read_answers()
    taken = graded(GRADERS[name], answers)
    found = [mistakes(answers, taken, right) for right in (False, True)]
    assert [str(rate(shares)) for shares in found] == SHOWN[name]


def test_a_rate_by_hand() -> None:
    answers = [each for each in labelled(each=2) if each.form in ("bare", "other number", "empty")]
    shares = mistakes(answers, [True, False, True, True, False, False], right=False)
    assert shares == {"other number": 1.0, "empty": 0.0}
    assert mistakes(answers, [True, False, True, True, False, False], right=True) == {"bare": 0.5}
    found = rate(shares)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


@pytest.mark.slow
def test_strict_graders_pay_no_wrong_answer_and_marks_help() -> None:
    answers = read_answers()
    strict, marked, plain = (
        mistakes(answers, graded(GRADERS[name], answers), right=False)
        for name in ("final_answer, marked and whole", "final_answer", "arithmetic")
    )
    assert not any(strict.values())
    assert {form for form, share in marked.items() if share} < {form for form, share in plain.items() if share}
