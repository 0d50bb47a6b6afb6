"""What a notebook shows of a solution, an optimum and an evaluation: the right numbers, and every text as text."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from textgym.estimates import Estimate
from textgym.evaluate import evaluate
from textgym.optimum import Optimum, optimum_of
from textgym.prompts import prompt_set
from textgym.render import html_table
from textgym.solver import solve
from textgym.task import Task, make_reference, make_task
from textgym.vocab import load_vocabulary

HOSTILE = "<script>alert(1)</script>&\x1b[31m"


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_a_cell_is_text():
    assert cells(html_table((HOSTILE, 1), heads=("a", "b"))) == [["a", "b"], [HOSTILE.replace("\x1b", "\\x1b"), "1"]]
    assert "<script" not in html_table((HOSTILE,), heads=(HOSTILE,))


def test_a_solution_shows_both_ends_and_answers():
    # Copy: one answer of 216 pays 1 and shares pay less; the numbers of the quick start.
    solution = solve(make_task("Copy"), split="eval")
    rows = cells(solution._repr_html_())
    assert rows[1] == ["J", "0.167", "0.512"]
    assert rows[3][:2] == ["KL, nats", "0.000"]
    assert rows[6] == ["copy b e e :", "0.512", "b e e", "0.611"]
    assert len(rows) == 5 + 1 + 5


def test_hostile_prompts_of_a_solution_stay_text():
    prompts = prompt_set([HOSTILE])
    vocabulary = load_vocabulary(["a", "b", HOSTILE])
    task = Task(
        name="Own",
        prompts={"train": prompts, "eval": prompts},
        vocabulary=vocabulary,
        reward=lambda prompts, completions, **_: [0.0 for _ in completions],
        reward_name="own",
        max_new_tokens=1,
    )
    page = solve(task)._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page


def test_an_optimum_shows_j_and_how_it_is_known():
    task = make_task("Copy")
    assert dict(cells(optimum_of(task)._repr_html_()))["J*"] == "0.512"
    unknown = Optimum(None, Estimate(0.1, 0.0, 0.2), 0.1, "eval", effective_samples=3.0, unknown="too <few>")
    shown = dict(cells(unknown._repr_html_()))
    assert shown["J*"] == "not known: too <few>"
    assert shown["J of the reference"] == "0.100 [0.000, 0.200]"
    assert shown["effective samples a prompt"] == "3"


def test_an_evaluation_shows_every_measure():
    task = make_task("Copy")
    found = evaluate(make_reference(task), task, per_prompt=1)
    noisy = replace(found, kl=Estimate(-6.5e-08, -2e-07, 1e-07), gold=None, failures={HOSTILE: 2})
    shown = dict(cells(noisy._repr_html_()))
    assert shown["reward"] == "0.167"
    assert shown["KL to the reference, nats"] == "0.000 [0.000, 0.000]"
    assert "gold reward" not in shown
    assert shown["failures: " + HOSTILE.replace("\x1b", "\\x1b")] == "2"
    assert "<script" not in noisy._repr_html_()


@pytest.mark.parametrize(("mean", "shown"), [(-6.5e-08, "0.000"), (-0.25, "-0.250")])
def test_a_number_that_rounds_to_0_has_no_sign(mean, shown):
    assert str(Estimate(mean, mean, mean)) == shown
