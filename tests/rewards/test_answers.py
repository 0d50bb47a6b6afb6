"""Final answers, expressions, Countdown and steps: numbers by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from textgym.rewards import Scorer, make_reward
from textgym.rewards.answers import FinalAnswer, evaluated, final_answer


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,000 eggs \nmore", "1,000 eggs"),
        ("#### 1\n#### 2", "2"),
        (r"so \boxed{\frac{1}{2}}, done", r"\frac{1}{2}"),
        (r"\boxed{1} or #### 2", "2"),
        (r"#### 2 or \boxed{ 1 }", "1"),
        ("<answer> 5 </answer> 6", "5"),
        ("<answer>5", ""),
        (r"\boxed{5", ""),
        ("####", ""),
        ("I say 5.", "I say 5."),
    ],
)
def test_the_last_mark_has_the_final_answer(text: str, wanted: str) -> None:
    assert final_answer(text) == wanted


def test_other_rewards_are_asked_about_final_answers_alone() -> None:
    reward = make_reward("final_answer")
    right = ["3 + 4 = 7\n#### 7"] * 7
    texts = [
        "#### 7",
        "#### 7.0 and 9 more",
        r"9 and \boxed{7} of 8",
        "it is 7",
        "#### 8\n7",
        "7 \\boxed{}",
        "<answer>7",
    ]
    assert reward(["p"] * 7, texts, answer=right) == [1, 0, 1, 1, 0, 0, 0]
    assert reward(["p"] * 2, ["#### 7", "7"], answer=[7, None]) == [1, None]
    assert Scorer(reward).term_names == ("arithmetic",)
    strict = make_reward({"name": "final_answer", "reward": {"name": "arithmetic", "read": "whole"}, "marked": True})
    assert strict(["p"] * 7, texts, answer=right) == [1, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "#### Paris",
        "#### Paris \nmore",
        r"It is \boxed{ Paris }.",
        "<answer>Paris</answer>",
        "<answer>\nParis\n</answer>",
    ],
)
def test_a_final_answer_has_nothing_around_it(text: str) -> None:
    pattern, length = {"name": "pattern", "pattern": "Paris"}, {"name": "length", "target": 5, "unit": "characters"}
    for inner in (
        pattern,
        length,
        {"name": "weighted", "rewards": {"a": pattern, "b": length}, "weights": {"a": 0.5, "b": 0.5}},
    ):
        assert make_reward({"name": "final_answer", "reward": inner})(["p"], [text]) == [1.0]


def test_a_reward_of_ones_own_gets_what_is_boxed_as_it_stands() -> None:
    def asked(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(completions)

    seen: list[str] = []
    for said, wanted in ((None, r"\boxed{x^2}"), (True, r"\boxed{x^2}"), (False, "x^2")):
        asked.inner, asked.rewards = len, {"a": 1}  # which are no rewards
        if said is not None:
            asked.reads_latex = said
        FinalAnswer(asked)(["p"], [r"It is \boxed{x^2}."])
        assert seen.pop() == wanted


@pytest.mark.slow
def test_formulas_are_compared_where_math_verify_is_installed() -> None:
    pytest.importorskip("math_verify")
    reward = make_reward({"name": "final_answer", "reward": "math_verify"})
    solution = r"Half of it. So $x = \boxed{\frac{1}{2}}$."
    texts = [r"\boxed{0.5}", r"\boxed{\frac{2}{4}} of 3", r"\boxed{2}", "#### 1/2", r"\frac12 ... \boxed{3}"]
    assert reward(["p"] * 5, texts, answer=[solution] * 5) == [1, 1, 0, 1, 0]
    assert reward.needs_timeout
    plain = make_reward("math_verify")
    assert plain(["p"] * 2, ["0.00001", r"\boxed{e-5}"], answer=[1e-5] * 2) == [1, 0]
    assert plain(["p"], ["$0.00001$"], answer=[np.float32(1e-5)]) == [1]
    assert plain(["p"] * 2, ["10000000000000000"] * 2, answer=[1e16, np.float64(1e16)]) == [1, 1]


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("3 * 8", 24, [3, 8]),
        ("1 + 2 * 3", 7, [1, 2, 3]),
        ("(1+2)\u00d73", 9, [1, 2, 3]),
        ("8 / 3 / 4", Fraction(2, 3), [3, 4, 8]),
        ("2 - 5 \u2212 1", -4, [1, 2, 5]),
        ("7", 7, [7]),
        (" ( 7 )\n", 7, [7]),
    ],
)
def test_expressions_have_exact_values(text: str, value: Fraction | int, numbers: list[int]) -> None:
    found = evaluated(text)
    assert found is not None
    assert (found[0], sorted(found[1].elements())) == (value, numbers)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "2 ** 3",
            "7 // 2",
            "-3",
            "+3",
            "3 +",
            "(3",
            "3)",
            "1 / 0",
            "1.5 + 1",
            "x + 1",
            "3(4)",
            "3 4",
            "007",
            "()",
        ),
        *("__import__('os')", "1 + (2, 3)", "(" * 80 + "1" + ")" * 80, "1" * 400, "1" + "+1" * 200, "٣ + 1"),
    ],
)
def test_what_is_no_expression_has_no_value(text: str) -> None:
    assert evaluated(text) is None


def test_countdown_pays_for_the_target_from_the_given_numbers() -> None:
    reward = make_reward("countdown")
    texts = ["3 * 8 =", "8 * 3 = 24", "24", "8 + 8 + 8", "(8 - 5) * 8", "3 * 8 * 1", "4 * 6", "", r"\boxed{3*8=24}"]
    count = len(texts)
    pay = reward(["p"] * count, texts, numbers=[[1, 3, 8]] * count, target=[24] * count)
    assert pay == [1, 1, 0, 0, 0, 1, 0, 0, 1]
    assert reward(["p"], ["1"], numbers=[None], target=[1]) == [None]
    both = make_reward({"name": "final_answer", "reward": "countdown"})
    assert both(["p"], ["First 1 + 3. Then:\n#### 3 * 8 = 24"], numbers=[[3, 8]], target=[24]) == [1]


def test_columns_of_countdown_may_be_texts_and_arrays_and_are_checked() -> None:
    reward = make_reward("countdown")
    for numbers, target in (([8, 3], 24), (["8", "3"], "24"), (np.array([8, 3]), np.int64(24))):
        assert reward(["p"], ["8*3"], numbers=[numbers], target=[target]) == [1.0]
    assert reward(["p"], ["8*3"], numbers=[[8, 3]], target=[None]) == [None]
    for columns in ({"numbers": ["8 3"], "target": [24]}, {"numbers": [[8, 3]], "target": ["much"]}):
        with pytest.raises(ValueError, match=r"^column '(numbers|target)': .* is not a number"):
            reward(["p"], ["8*3"], **columns)


def test_steps_pay_each_right_step_once_when_its_line_ends() -> None:
    solution = "He has 48/2 = <<48/2=24>>24 of them.\nThat is 48+24 = <<48+24=72>>72 in all.\n#### 72"
    reward = make_reward("steps")

    def pay(text: str) -> float | None:
        (value,) = reward(["p"], [text], answer=[solution])
        return value

    assert pay("48 / 2 = 24\n24 + 48 = 72\n#### 72") == 1
    assert pay("48 / 2 = 24\n24 + 48 = 72") == 0.5, "its line has not ended"
    assert pay("48 / 2 = 24\n48 / 2 = 24\n") == 0.5, "once"
    assert pay("48 / 2 = 25\n1 + 1 = 2\n24 = 24\n") == 0, "wrong, of no use, and nothing calculated"
    assert pay("I take 12 \u00d7 2 = 24\n") == 0.5
    assert reward(["p"] * 2, ["1 + 1 = 2\n"] * 2, answer=[None, "72"]) == [None, None]


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("-3 + 4 = 7", False),
        ("2^3 + 4 = 7", False),
        ("5 x 3 + 4 = 7", False),
        (f"5 x{' ' * 40}3 + 4 = 7", False),
        ("3\t+ 4 = 7", True),
        (r"5 \times 3 + 4 = 7", False),
        (r"5 \div 3 + 4 = 7", False),
        ("sqrt(9 + 40) = 49", False),
        ("5 * 3 + 4 = 7 * 5", False),
        ("3 + 4 = 7 * 5", False),
        ("3 + 4 = 7 + 1", False),
        ("3 + 4 = 7 x 5", False),
        (r"3 + 4 = 7 \times 5", False),
        ("3 + 4 = 7^2", False),
        ("3 + 4 = 7e5", False),
        ("3 + 4 = 7%", False),
        ("3 + 4 = 7/2", False),
        ("3 + 4 = 70", False),
        ("3 + 4 = 7,500", False),
        ("2 + 2 = 3 + 4 = 7", False),
        (".5 + 7 = 7", False),
        ("7.0 = 7", False),
        ("-7 = -7", False),
        ("1. 3 + 4 = 7", True),
        ("(1) 3 + 4 = 7", True),
        ("- 3 + 4 = 7", True),
        ("* **3 + 4 = 7**", True),
        ("3.0 + 4 = 7", True),
        ("3.5 * 2 = 7.0", True),
        ("0.5 * 14 = 7", True),
        ("-3 + 10 = 7", True),
        ("(1) + 6 = 7", True),
        ("Done. 3 + 4 = 7, so 7", True),
        ("First, 3 + 4 = 7 - the rest", True),
        ("x = 3 + 4 = 7", True),
        ("3 + 4 = 7kg", True),
        ("Monday - 3 + 4 = 7 eggs", True),
        ("Cost \u2212 3 + 4 = 7", True),
        ("x - 3 + 4 = 7", False),
        ("2 - 3 + 4 = 7", False),
        ("(5) - 3 + 4 = 7", False),
        (".5 * 14 = 7", True),
        ("14 * .5 = 7", True),
        ("3 + 4 = <<3+4=7>>7 of them.", True),
        ("1,000 - 993 = 7", True),
    ],
)
def test_a_step_is_a_whole_equation_that_holds(line: str, holds: bool) -> None:
    reward = make_reward("steps")
    assert reward(["p"], [f"{line}\n"], answer=["2 + 5 = 7\n#### 7"]) == [float(holds)]
    if holds:  # it is read in solutions alike
        assert reward(["p"], ["3 + 4 = 7\n"], answer=[line]) == [1.0]


def test_a_step_may_come_to_nothing() -> None:
    reward = make_reward("steps")
    solution = "He has 10-10=<<10-10=0>>0 left\nSo 5*3=<<5*3=15>>15\n#### 15"
    assert reward(["p"] * 3, ["5*3=15\n", "7 - 7 = 0\n", "3+2=5, 5-5=0\n"], answer=[solution] * 3) == [0.5, 0.5, 0.5]


def test_steps_of_decimals_count() -> None:
    assert make_reward("steps")(["p"], ["7/2=3.5\n"], answer=["7/2=3.5\n3.5*4=14"]) == [0.5]


def test_steps_and_outcome_are_logged_side_by_side_and_steps_are_paid_as_they_come() -> None:
    spec = {"name": "weighted", "rewards": {"answer": "final_answer", "steps": "steps"}, "weights": {"steps": 0.5}}
    scorer = Scorer({"name": "shaped", "reward": spec})
    texts = ["2 + 3 = 5", "2 + 3 = 5\n", "2 + 3 = 5\n#### 5"]
    scores = scorer.score(["p"] * 3, texts, {"answer": ["2 + 3 = 5\n#### 5"] * 3})
    assert scores.terms["steps"].tolist() == [0, 0.5, 0.5]
    assert scores.terms["answer"].tolist() == [1, 1, 1]
    assert scorer.term_names == ("answer", "steps")
