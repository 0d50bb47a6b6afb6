"""What the exercises ask, and what is right: the module of chapter N is chNN, with the constant EXERCISES."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

from textgym.checks import not_one_of
from textgym_benchmarks.course import solutions

Function = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """One call of a student's function.

    Args:
        said: what is given, in words for a hint, as in "rewards 0, 0, 1 and gamma 0.5".
        arguments: of the call.
        expected: what is right, by the name of the quantity: a number, a text, or an array of numbers. A function with
            one quantity returns it; one with several returns a tuple of them, in this order.
    """

    said: str
    arguments: tuple[object, ...]
    expected: Mapping[str, object]


@dataclass(frozen=True)
class Exercise:
    """What is asked.

    Args:
        name: of the function that the student writes; no other exercise of the course has it.
        asks: the task in one line.
        cases: makes the calls anew each time, so that no function can change what the next one gets.
        slips: well-known mistakes: what was done, to a function that does so. A hint names the one whose result was
            found.
        tolerance: absolute, and relative to the expected value.
    """

    name: str
    asks: str
    cases: Callable[[], Sequence[Case]]
    slips: Mapping[str, Function] = field(default_factory=dict)
    tolerance: float = 1e-6


@cache
def numbers() -> Mapping[str, str]:
    """Return the number of every exercise, as "3.1", by name, in order: each has a function in its chapter's solutions.

    Nothing is imported.
    """
    found: dict[str, str] = {}
    for path in sorted(Path(solutions.__path__[0]).glob("ch[0-9][0-9].py")):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        names = [each.name for each in statements if isinstance(each, ast.FunctionDef)]
        found |= {name: f"{int(path.stem[2:])}.{place}" for place, name in enumerate(names, 1)}
    return found


def exercise_of(name: str) -> Exercise:
    """Return the exercise of a name. Raises: ValueError for a name that no exercise has."""
    if name not in numbers():
        raise ValueError(not_one_of("exercise", name, numbers()))
    chapter = int(numbers()[name].partition(".")[0])
    exercises: tuple[Exercise, ...] = import_module(f"{__name__}.ch{chapter:02}").EXERCISES
    return next(each for each in exercises if each.name == name)
