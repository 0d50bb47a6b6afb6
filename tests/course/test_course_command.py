"""`textgym course`: chapters are listed and copied, files are graded, and nothing a student writes stops the rest."""

from __future__ import annotations

import json

import jupytext
import pytest
from textgym_benchmarks.course import slider
from textgym_benchmarks.course.chapters import read_notebook
from textgym_benchmarks.course.grading import compare, grade_file

from textgym.cli import main

RIGHT = """
def discounted_returns(rewards, gamma):
    return [sum(gamma ** (j - t) * rewards[j] for j in range(t, len(rewards))) for t in range(len(rewards))]
"""


def write(path, *cells):
    notebook = jupytext.reads("\n\n".join(f"```python\n{cell}\n```" for cell in cells), fmt="md")
    jupytext.write(notebook, path)
    return path


def run(capsys, *words):
    code = main(["course", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_chapter_is_copied_once(tmp_path, capsys):
    code, out, _ = run(capsys, "get", "3", "--out", tmp_path)
    path = tmp_path / "03_trajectories.ipynb"
    assert (code, "".join(out.split())) == (0, str(path))
    notebook = read_notebook(path)
    assert notebook.cells[0].source.startswith("# 3. Trajectories")
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    code, _, err = run(capsys, "get", "3", "--out", tmp_path)
    assert code == 2
    assert "is there already; allowed is another folder" in err


def test_what_is_graded_is_kept_and_listed(tmp_path, capsys):
    path = write(tmp_path / "mine.ipynb", RIGHT, "def longest_wait(gamma, share):\n    return 7")
    code, out, _ = run(capsys, "grade", path)
    assert code == 1
    assert out.splitlines() == [
        "3.2 discounted_returns: right",
        "3.4 longest_wait: not right. k: found 7, expected 459. Given gamma 0.99 and share 0.01.",
    ]
    code, out, _ = run(capsys, "list", "--out", tmp_path, "--json")
    assert [row["right"] for row in json.loads(out) if row["chapter"] == 3] == [1]
    write(path, RIGHT.replace("j - t", "j"))
    run(capsys, "grade", path)
    code, out, _ = run(capsys, "list", "--out", tmp_path, "--json")
    assert [row["right"] for row in json.loads(out) if row["chapter"] == 3] == [0]


def test_a_table_for_many_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.ipynb", RIGHT)
    write(tmp_path / "b.ipynb", "def discounted_returns(rewards, gamma):\n    return rewards")
    code, out, _ = run(capsys, "grade", "a.ipynb", "b.ipynb")
    assert code == 1
    assert [line.split() for line in out.splitlines() if ".ipynb" in line] == [
        ["a.ipynb", "1", "0", "0"],
        ["b.ipynb", "0", "1", "0", "3.2"],
    ]
    assert not (tmp_path / "textgym-course.json").exists()


def test_whatever_an_answer_does_the_next_one_is_graded(tmp_path, capsys):
    cells = [
        "def trajectory_log_probability(start, chosen):\n    raise KeyError('x')",
        "def discounted_returns(rewards, gamma):\n    import os; os._exit(1)",
        "def expected_return(log_probabilities, rewards, gamma):\n    return rewards[:2]",
        "def longest_wait(gamma, share):\n    return object()",
        "import nowhere",
        "1 +",
        "raise SystemExit",
        "slow = sum(range(10**12))",
        "def textbook_values(values, gamma):\n    print('noise')\n    return values / gamma ** np.arange(len(values))",
        "import numpy as np",
    ]
    code, out, _ = run(capsys, "grade", write(tmp_path / "mine.ipynb", *cells), "--json")
    (grades,) = json.loads(out).values()
    assert code == 1
    assert [grade["state"] for grade in grades] == ["wrong"] * 4 + ["right"]
    said = [
        "KeyError: 'x'",
        "Its process ended, or ran out of time",
        "J: found the shape (2, 3), expected ()",
        "the answer is a object",
        "",
    ]
    assert all(text in grade["hint"] for text, grade in zip(said, grades, strict=True))


def test_an_answer_that_takes_for_ever_runs_out_of_time(tmp_path):
    path = write(tmp_path / "mine.ipynb", "def discounted_returns(rewards, gamma):\n    while True: pass", "x = 1")
    (grade,) = grade_file(path, deadline=8)
    assert (grade.state, grade.hint) == ("wrong", "Its process ended, or ran out of time, before it returned.")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get", "x"), "course get x: allowed are numbers of chapters"),
        (("get", "99"), "chapter 99: allowed are"),
        (("get",), "course get: name at least one chapter"),
        (("grade",), "course grade: name at least one file"),
        (("list", "3"), "course list 3: allowed is nothing behind list"),
        (("grade", "nowhere.ipynb"), "nowhere.ipynb: cannot be read"),
        (("grade", "x.ipynb", "--deadline", "0"), "deadline=0"),
    ],
)
def test_a_command_that_cannot_be_run_says_what_is_allowed(words, said, capsys):
    code, _, err = run(capsys, *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("content", ["", "{", '{"cells": 3}', "[1]"])
def test_a_file_that_is_no_notebook_is_refused_by_name(content, tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    code, _, err = run(capsys, "grade", path)
    assert code == 2
    assert "broken.ipynb" in err


def test_comparison_says_where_and_what():
    assert compare([1, 2.0000001], [1, 2], 1e-6) == ""
    assert compare([1, 3], [1, 2], 1e-6) == "[1]: found 3, expected 2"
    assert compare(0.5, [1, 2], 1e-6) == ": found the shape (), expected (2,)"
    assert compare(float("nan"), 1.0, 1e-6) == ": found nan, expected 1"
    assert compare("a", "b", 1e-6) == ": found 'a', expected 'b'"


def test_a_slider_shows_one_figure_at_a_time():
    from matplotlib.figure import Figure

    shown = slider("beta", {value: Figure(figsize=(1, 1)) for value in (0.1, 1.0)})
    page = shown._repr_html_()
    assert page.count("<img ") == 2
    assert page.count("<div hidden>") == 1
    assert 'max="1"' in page
    assert "http" not in page
    assert str(shown) == "Slider(beta: 0.1, 1.0)"
    with pytest.raises(ValueError, match="at least one figure"):
        slider("beta", {})
