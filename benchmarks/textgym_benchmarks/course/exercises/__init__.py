"""What the exercises ask, and what is right: the module of chapter N is chNN, with the constant EXERCISES."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from textgym.checks import not_one_of

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
def all_exercises() -> Mapping[str, tuple[str, Exercise]]:
    """Return every exercise with its number, as "3.1", by name."""
    found: dict[str, tuple[str, Exercise]] = {}
    for module in sorted(each.name for each in iter_modules(__path__)):
        chapter = import_module(f"{__name__}.{module}")
        for place, exercise in enumerate(chapter.EXERCISES, 1):
            found[exercise.name] = (f"{int(module[2:])}.{place}", exercise)
    return found


def exercise_of(name: str) -> Exercise:
    """Return the exercise of a name. Raises: ValueError for a name that no exercise has."""
    if name not in all_exercises():
        raise ValueError(not_one_of("exercise", name, all_exercises()))
    return all_exercises()[name][1]
