"""Grade exercises: call what a student wrote, and compare with the solver or an independent computation.

What is called may be anything, so files are graded in a child process with a deadline (`grade_file`); that is no
sandbox. `check` does the same in a notebook, for one function.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np

from textgym.checks import JsonObject
from textgym.processes import kill_all
from textgym_benchmarks.course import solutions
from textgym_benchmarks.course.chapters import code_of, read_notebook
from textgym_benchmarks.course.exercises import Case, Exercise, Function, exercise_of, numbers
from textgym_benchmarks.engines.jobs import fresh_python

DEADLINE: Final = 60.0
"""Seconds that the exercises of a file may take."""
_CHILD = "from textgym_benchmarks.course.grading import answer_from_input; answer_from_input()"


@dataclass(frozen=True)
class Grade:
    """How an exercise was answered.

    Args:
        exercise: its name. state: "open" where nothing was written yet.
        hint: of a wrong answer, the quantity that is off, what was found and what is right; else "".
    """

    exercise: str
    state: Literal["right", "wrong", "open"]
    hint: str = ""


def check(function: Function) -> None:
    """Print whether a function solves the exercise of its name, and a hint if it does not.

    Raises: ValueError for a function that no exercise asks for.
    """
    name = getattr(function, "__name__", str(function))
    print(sentence(judge(exercise_of(name), answers(exercise_of(name), function))))


def sentence(grade: Grade) -> str:
    """Return a grade in one line, as in "3.1 discounted_returns: right"."""
    number = numbers()[grade.exercise]
    said = {"right": "right", "open": "not answered yet", "wrong": f"not right. {grade.hint}"}
    return f"{number} {grade.exercise}: {said[grade.state]}"


def answers(exercise: Exercise, function: Function) -> Iterator[JsonObject]:
    """Call a function with every case of an exercise. Yields: {"value": JSON}, {"open": True} or {"error": text}."""
    for case in exercise.cases():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = function(*_own_copies(case.arguments))
            if found is None and not _is_stub(function):
                yield {"error": "it returned nothing (None)"}
            else:
                yield {"open": True} if found is None or found is ... else {"value": _plain(found)}
        except NotImplementedError:
            yield {"open": True}
        except Exception as error:
            yield {"error": f"{type(error).__name__}: {error}{_line(error, function)}"}


def _own_copies(arguments: tuple[object, ...]) -> list[object]:
    """Return arguments of which a function may change arrays, lists and tensors without changing another call's."""
    changeable = (np.ndarray, list, dict)
    return [
        copy.deepcopy(each) if isinstance(each, changeable) or hasattr(each, "clone") else each for each in arguments
    ]


def _stub(*arguments: object) -> None:
    """Do nothing, as what stands in the place of a solution does."""
    ...


def _is_stub(function: Function) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_code == _stub.__code__.co_code


def _line(error: BaseException, function: Function) -> str:
    """Return where in the student's own code an error arose."""
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f" (line {lines[-1]} of its cell)" if lines else ""


def _plain(value: object) -> object:
    """Return an answer as JSON: numbers, texts, and lists of them. Raises: TypeError for anything else."""
    detach = getattr(value, "detach", None)
    value = detach().cpu().numpy() if detach else value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the answer is a {type(value).__name__}; allowed are numbers, texts, arrays and tuples of them")


def judge(exercise: Exercise, answered: Iterable[JsonObject]) -> Grade:
    """Compare answers with what is right, case by case, up to the first that is not."""
    found = list(answered)
    for case, answer in zip(exercise.cases(), found, strict=False):
        if answer.get("open"):
            return Grade(exercise.name, "open")
        hint = answer.get("error") or _difference(exercise, case, answer["value"])
        if hint:
            place = f" Given {case.said}." if case.said else ""
            return Grade(exercise.name, "wrong", f"{hint}.{place}{_slip(exercise, found)}")
    return Grade(exercise.name, "right")


def _difference(exercise: Exercise, case: Case, value: object) -> str:
    """Return which quantity is off, what was found and what is right; "" where all agree."""
    names, several = list(case.expected), len(case.expected) > 1
    if several and (not isinstance(value, list) or len(value) != len(names)):
        return f"Expected a tuple ({', '.join(names)}), found {_short(value)}"
    parts = value if several and isinstance(value, list) else [value]
    for (name, right), part in zip(case.expected.items(), parts, strict=True):
        if said := compare(part, right, exercise.tolerance):
            return f"{name}{said}"
    return ""


def compare(found: object, right: object, tolerance: float) -> str:
    """Return where two values differ, as in "[2]: found 1, expected 0.5"; "" where they agree.

    Texts are compared as they are, numbers and arrays of numbers up to the tolerance, absolute and relative.
    """
    if isinstance(right, str):
        return "" if found == right else f": found {_short(found)}, expected {right!r}"
    expected = np.asarray(_plain(right), dtype=np.float64)
    try:
        array = np.asarray(found)
    except ValueError:
        array = np.asarray("uneven")
    if array.dtype.kind not in "biuf":
        return f": found {_short(found)}, expected numbers of shape {expected.shape}"
    if array.shape != expected.shape:
        return f": found the shape {array.shape}, expected {expected.shape}"
    off = ~np.isclose(array, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not off.any():
        return ""
    place = tuple(int(i) for i in np.argwhere(off)[0])
    where = f"[{', '.join(map(str, place))}]" if place else ""
    return f"{where}: found {array[place]:.6g}, expected {expected[place]:.6g}"


def _slip(exercise: Exercise, found: Sequence[JsonObject]) -> str:
    """Return the well-known mistake that gives the answers to all cases."""
    for said, function in exercise.slips.items():
        with contextlib.suppress(Exception):
            cases = exercise.cases()
            if len(cases) == len(found) and all(
                "value" in answer and not _difference(exercise, _as_if_right(case, function), answer["value"])
                for case, answer in zip(cases, found, strict=True)
            ):
                return f" That is what comes out if {said}."
    return ""


def _as_if_right(case: Case, function: Function) -> Case:
    """Return a case whose expected values are those that a function gives."""
    wrong = function(*_own_copies(case.arguments))
    parts = wrong if isinstance(wrong, tuple) and len(case.expected) > 1 else [wrong]
    return Case("", (), dict(zip(case.expected, parts, strict=True)))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def definitions(source: str) -> ast.Module:
    """Return what a function may stand on: imports, functions, classes, and names of what needs no computation.

    A notebook's computations are left out: an exercise is a function of its arguments. So are the lines that a notebook
    reads as commands ("%%time", "!ls").

    Raises: SyntaxError.
    """
    tree = _without_commands(source.split("\n"))
    return ast.Module([statement for statement in tree.body if _is_definition(statement)], type_ignores=[])


def _without_commands(lines: list[str]) -> ast.Module:
    """Return what lines of Python say, without those that a notebook reads as commands. Raises: SyntaxError."""
    replaced: set[int] = set()
    while True:
        try:
            return ast.parse("\n".join(lines))
        except SyntaxError as error:
            place = (error.lineno or 1) - 1
            command = lines[place].lstrip() if place < len(lines) else ""
            if place not in replaced and not command.startswith(("%", "!")):
                raise
            # Blank where it is indented as no statement may be.
            lines[place] = lines[place].removesuffix(command) + ("" if place in replaced else "pass")
            replaced ^= {place}


def _is_definition(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return statement.value is not None and not any(
            isinstance(node, _COMPUTES) for node in _outside(statement.value)
        )
    return isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


_COMPUTES = (ast.Call, ast.Pow, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Await, ast.NamedExpr)


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of an expression but for those inside a lambda, which runs later."""
    yield node
    if not isinstance(node, ast.Lambda):
        for inner in ast.iter_child_nodes(node):
            yield from _outside(inner)


def functions_of(sources: Sequence[str]) -> dict[str, Function]:
    """Return the functions that cells define under names of exercises; a cell that fails stops no other.

    An exercise in a cell that cannot be read has a function that raises the SyntaxError.
    """
    scope: dict[str, object] = {"__name__": "student"}
    for source in sources:
        try:
            for statement in definitions(source).body:
                with contextlib.suppress(Exception):
                    exec(compile(ast.Module([statement], []), "student", "exec"), scope)
        except SyntaxError as error:
            scope |= {name: partial(_raise, error) for name in re.findall(r"^def (\w+)\(", source, re.MULTILINE)}
    found = {name: scope[name] for name in numbers() if callable(scope.get(name))}
    ours = solutions.__name__
    return {name: each for name, each in found.items() if not str(getattr(each, "__module__", "")).startswith(ours)}  # type: ignore[misc]


def _raise(error: SyntaxError, *arguments: object) -> None:
    raise SyntaxError(f"{error.msg} (line {error.lineno} of its cell)")


def answer_from_input() -> None:
    """Answer the exercises in the cells that come as JSON on the standard input; write a line for each answer.

    What a student's code prints goes to the standard error.
    """
    given = json.load(sys.stdin)
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name, function in functions_of(given["sources"]).items():
        if name not in given["known"]:
            print(json.dumps([name, None]), file=lines, flush=True)
            for answer in answers(exercise_of(name), function):
                print(json.dumps([name, answer]), file=lines, flush=True)
    print(json.dumps(None), file=lines, flush=True)


def grade_file(path: Path, deadline: float = DEADLINE) -> list[Grade]:
    """Grade the exercises that a notebook answers, in a process of their own.

    Where an answer ends the process or does not come in time, the next process goes on after it.

    Args:
        path: .ipynb, or a text that Jupytext reads: .md, .py. deadline: seconds for each process.
    Returns: a grade for each exercise of which there is a function, in the order of the course.
    Raises: ValueError for a file that holds no notebook.
    """
    found: dict[str, list[JsonObject]] = {}
    sources = code_of(read_notebook(path))
    while True:
        lines, end = _answer_lines({"sources": sources, "known": list(found)}, deadline)
        name = ""
        for line in lines:
            if line is not None:
                name, answer = line
                found.setdefault(name, []).extend([] if answer is None else [answer])
        if not name or lines[-1] is None:
            return [judge(exercise_of(each), given) for each, given in found.items()]
        found[name].append({"error": end})


def _answer_lines(given: JsonObject, deadline: float) -> tuple[list[tuple[str, JsonObject | None] | None], str]:
    """Return the lines of `answer_from_input`, the last one None if it came to its end, and how its process ended."""
    end = "its process ended before it returned"
    with subprocess.Popen(
        fresh_python(_CHILD),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            out, _ = process.communicate(json.dumps(given).encode(), deadline)
        except subprocess.TimeoutExpired:
            end = f"it did not return within {deadline:g} s"
            kill_all(process)
            out, _ = process.communicate()
        kill_all(process)
    whole = out.decode().rpartition("\n")[0]
    return [line and tuple(line) for line in map(json.loads, whole.splitlines())], end
