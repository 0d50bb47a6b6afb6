"""`textgym course`: chapters are listed and copied, files are graded, and nothing a student writes stops the rest."""

from __future__ import annotations

import json
import os
import re
import time

import jupytext
import psutil
import pytest
from textgym_benchmarks.course import slider
from textgym_benchmarks.course.chapters import all_chapters, read_notebook, student_notebook
from textgym_benchmarks.course.exercises import Case, Exercise
from textgym_benchmarks.course.grading import answers, compare, grade_file, judge

from textgym.cli import main

pytestmark = pytest.mark.slow

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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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
        "its process ended before it returned",
        "J: found the shape (2, 3), expected ()",
        "the answer is a object",
        "",
    ]
    assert all(text in grade["hint"] for text, grade in zip(said, grades, strict=True))


CELLS = """
%matplotlib inline
import numpy as np
LOG = np.log
SMALL: float = 0.0
twice = lambda value: 2 * value
slow = [value for value in range(10**12)]

def discounted_returns(rewards, gamma):
    found, later = [], SMALL
    for reward in rewards[::-1]:
        later = reward + gamma * later
        found.append(later)
    rewards *= 0
    return found[::-1]

textbook_values = lambda values, gamma: values / gamma ** np.arange(len(values))

def longest_wait(gamma, share):
    k = -(-LOG(share) // LOG(gamma))

def expected_return(log_probabilities, rewards, gamma):
    raise ValueError("far away")
"""


def test_what_a_notebook_can_do_a_file_can(tmp_path):
    path = write(tmp_path / "mine.ipynb", CELLS, "def trajectory_log_probability(start, chosen):\n    return (1")
    found = {grade.exercise: (grade.state, grade.hint) for grade in grade_file(path)}
    assert found["discounted_returns"] == ("right", "")  # though it overwrites what it was given
    assert found["textbook_values"] == ("right", "")
    assert found["longest_wait"] == ("wrong", "it returned nothing (None). Given gamma 0.9 and share 0.5.")
    assert found["expected_return"][1].startswith("ValueError: far away (line 23 of its cell)")
    assert found["trajectory_log_probability"][1].startswith("SyntaxError: '(' was never closed (line 2 of its cell)")


def test_a_line_of_a_formula_is_no_command_of_the_notebook(tmp_path):
    commands = "\n%load_ext autoreload\n\n  !ls\n"
    cell = f"{commands}def longest_wait(gamma, share):\n    %time 1\n    return (7\n        % 4) / 0\n"
    found = {grade.exercise: grade.hint for grade in grade_file(write(tmp_path / "mine.ipynb", cell))}
    assert found["longest_wait"].startswith("ZeroDivisionError: division by zero (line 7 of its cell)")


def test_a_slip_is_named_where_it_gives_all_answers():
    cases = [Case("0", (0,), {"y": 1.0}), Case("2", (2,), {"y": 5.0})]
    exercise = Exercise("line", "2 x + 1", lambda: cases, {"1 is left out": lambda x: 2 * x})

    def hint(function):
        return judge(exercise, answers(exercise, function)).hint

    assert hint(lambda x: 2 * x) == "y: found 0, expected 1. Given 0. That is what comes out if 1 is left out."
    assert hint(lambda x: 3 * x) == "y: found 0, expected 1. Given 0."  # equal in the first case alone


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="on Windows what a process has started outlives it")
def test_what_an_answer_has_started_ends_with_its_process(tmp_path):
    cell = f"""
def longest_wait(gamma, share):
    import os, time
    if not os.fork():
        time.sleep(600)
    time.sleep(600)

def textbook_values(values, gamma):
    from subprocess import DEVNULL, Popen
    child = Popen(["sleep", "600"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
    return values / gamma ** __import__("numpy").arange(len(values))
"""
    late, right = grade_file(write(tmp_path / "mine.ipynb", cell), deadline=8)
    assert (late.state, late.hint) == ("wrong", "it did not return within 8 s. Given gamma 0.9 and share 0.5.")
    assert right.state == "right"
    end = time.monotonic() + 10
    while runs(int((tmp_path / "child").read_text())):
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.05)


def runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_a_file_that_cannot_be_graded_stands_in_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.ipynb", RIGHT)
    (tmp_path / "x.txt").write_text("nothing")
    write(tmp_path / "b.ipynb", "x = 1")
    code, out, _ = run(capsys, "grade", "a.ipynb", "x.txt", "b.ipynb")
    assert code == 1
    assert ["a.ipynb", "1", "0", "0"] in [line.split() for line in out.splitlines()]
    assert "x.txt: allowed are notebooks, .ipynb, .md, .py" in out
    assert "b.ipynb: has no function of an exercise" in out


def test_the_reference_solutions_are_nobodys_answers(tmp_path):
    path = write(tmp_path / "mine.ipynb", "from textgym_benchmarks.course.solutions.ch03 import *")
    assert grade_file(path) == []


def test_progress_of_another_form_is_refused(tmp_path, capsys):
    (tmp_path / "textgym-course.json").write_text('{"right": 3}')
    code, _, err = run(capsys, "list", "--out", tmp_path)
    assert code == 2
    assert '"right" must be a list of names of exercises' in err


def test_a_copied_chapter_has_no_link_that_leads_nowhere():
    for chapter in all_chapters():
        for cell in student_notebook(chapter).cells:
            assert cell.cell_type != "markdown" or not re.search(r"\]\((?!http)", cell.source), cell.source


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
    assert compare("7", 7, 1e-6) == ": found '7', expected numbers of shape ()"
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
