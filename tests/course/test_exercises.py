"""Right solutions are right, wrong ones are caught with a hint that names what is off, and files are graded apart."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from course_tools import answers_of
from textgym_benchmarks.course.chapters import all_chapters, chapter_of, code_of, student_notebook
from textgym_benchmarks.course.exercises import exercise_of, numbers
from textgym_benchmarks.course.grading import answers, functions_of, judge

CHAPTERS = [each.number for each in all_chapters()]


def verdict(name, function):
    return judge(exercise_of(name), answers(exercise_of(name), function))


def _exercises(number):
    return import_module(f"textgym_benchmarks.course.exercises.ch{number:02}").EXERCISES


@pytest.mark.parametrize("number", CHAPTERS)
def test_reference_solutions_are_right(number):
    module = import_module(f"textgym_benchmarks.course.solutions.ch{number:02}")
    names = chapter_of(number).exercises
    assert names == [exercise.name for exercise in _exercises(number)]
    assert [verdict(name, getattr(module, name)).hint for name in names] == [""] * len(names)


@pytest.mark.parametrize("number", CHAPTERS)
def test_two_other_right_answers_of_each_are_right(number):
    given = answers_of(number, "right")
    assert sorted(name for name, _ in given) == sorted(chapter_of(number).exercises * 2)
    assert {
        f"{name}: {found.hint}" for name, function in given if (found := verdict(name, function)).state != "right"
    } == set()


@pytest.mark.slow
@pytest.mark.parametrize("number", CHAPTERS)
def test_every_wrong_answer_gets_a_hint_that_names_the_quantity(number):
    given = answers_of(number, "wrong")
    assert len(given) >= 3 * len(chapter_of(number).exercises)
    assert {name for name, _ in given} == set(chapter_of(number).exercises)
    for name, function in given:
        found = verdict(name, function)
        quantity = function.__doc__.partition(":")[0]
        assert (found.state, found.hint.startswith(quantity)) == ("wrong", True), (function.__name__, found)
        assert " found " in found.hint
        assert " expected " in found.hint


@pytest.mark.parametrize("number", CHAPTERS)
def test_an_answer_may_overwrite_what_it_is_given(number):
    module = import_module(f"textgym_benchmarks.course.solutions.ch{number:02}")

    def answer(name, *arguments):
        result = deepcopy(getattr(module, name)(*arguments))
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                argument[...] = 0
            elif isinstance(argument, list):
                argument.clear()
        return result

    names = chapter_of(number).exercises
    assert [verdict(name, partial(answer, name)).hint for name in names] == [""] * len(names)


@pytest.mark.parametrize("number", CHAPTERS)
def test_slips_are_wrong(number):
    for name in chapter_of(number).exercises:
        for said, function in exercise_of(name).slips.items():
            found = verdict(name, function)
            assert found.state == "wrong", (name, said)


@pytest.mark.parametrize(("solved", "state"), [(False, "open"), (True, "right")])
@pytest.mark.parametrize("number", CHAPTERS)
def test_a_students_notebook_is_open_and_a_teachers_right(number, solved, state):
    found = functions_of(code_of(student_notebook(chapter_of(number), solved)))
    assert list(found) == chapter_of(number).exercises
    assert {name: verdict(name, function).state for name, function in found.items()} == dict.fromkeys(found, state)


def test_numbers_of_exercises():
    assert numbers()["discounted_returns"] == "3.2"
