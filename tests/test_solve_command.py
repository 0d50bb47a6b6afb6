"""`textgym solve`: what it prints, as text and as JSON, and how it refuses."""

import json

import numpy as np
import pytest
from solver_tools import bigram, small_task

from textgym.cli import main
from textgym.commands.solve import draw_tree
from textgym.solver import solve

ENV = ["--env", 'prompts=["a"]', 'tokenizer=["a","[b]"]', "reward=length", "max_new_tokens=2"]


def run(capsys, *words):
    code = main(["solve", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_json_holds_the_optimum(capsys):
    code, out, _ = run(capsys, "textgym/Text-v0", "--beta", "0.5", *ENV, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["states"] == 7
    assert report["beta"] == 0.5
    (prompt,) = report["prompts"]
    assert prompt["value"] == pytest.approx(report["objective"])
    assert sum(c["probability"] for c in prompt["completions"]) == pytest.approx(1)
    assert report["objective"] == pytest.approx(report["expected_return"] - 0.5 * report["kl"])
    assert report["reference_objective"] <= report["objective"]


def test_the_table_and_the_tree_show_texts_as_they_are(capsys):
    code, out, _ = run(capsys, "Text-v0", "--beta", "0.1", *ENV)
    assert code == 0
    assert "J*" in out
    assert "[b] a" in out
    assert "└─ [b]" in out
    assert out.count("pi*") == 1 + 6  # the heading, and an edge per state below the prompt


@pytest.mark.parametrize(("columns", "cells"), [(46, 4), (120, 7)])
def test_a_narrow_table_leaves_numbers_out_and_breaks_no_word(capsys, monkeypatch, columns, cells):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = run(capsys, "Stop-v0")
    assert "word word" in out
    first = next(line for line in out.splitlines() if line.split()[:1] == ["1"])
    assert len(first.split()) == cells


def test_large_trees_are_not_drawn_and_too_large_ones_refused(capsys):
    _, out, _ = run(capsys, "Text-v0", *ENV, "--tree", "3")
    assert "└─" not in out
    code, _, error = run(capsys, "Text-v0", *ENV, "--max-states", "6")
    assert code == 2
    assert "7 states" in error
    assert "optimum_of" in error
    code, _, error = run(capsys, "Text-v0", *ENV, "--beta", "-1")
    assert code == 2
    assert "beta=-1" in error


def test_the_picture_by_hand():
    # Rewards 1 and 0, beta 0.5: V = 0.5 log((e^2 + 1) / 2) = 0.7169, pi* = e^2 / (e^2 + 1) = 0.8808.
    def first(prompts, completions, **columns):
        return [float(text == "a") for text in completions]

    def two(states):
        return np.tile([True, True, False, False], (len(states), 1))

    solution = solve(small_task(reward=first, max_new_tokens=1, mask=two, reference="uniform"), beta=0.5)
    assert draw_tree(solution).splitlines()[:3] == [
        "a     V* 0.7169",
        "├─ a  pi* 0.8808  ref 0.5000  Q* 1.0000",
        "└─ b  pi* 0.1192  ref 0.5000  Q* 0.0000",
    ]


def test_every_state_is_drawn_once():
    solution = solve(small_task(), bigram())
    assert len(draw_tree(solution).splitlines()) == solution.tree.states
