"""Every public name says what it takes, what it returns and what it raises, in a form that the site understands."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import FunctionType

import pytest

pytest.importorskip("stable_baselines3")

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "_ext"))
import docstrings
from textgym_agents.config import require

from textgym import checks

MAKES = ("Make", "Build", "Read")  # verbs whose object is what comes back
AS = re.compile(r"\bas `(\w+)`")  # where an error is told
OURS = ("textgym", __name__)  # how the modules begin whose functions are followed


def things() -> Iterator[tuple[str, object]]:
    """Every public class and function, and the public methods that are written in a class of them."""
    for module, names in docstrings.public_names().items():
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            yield f"{module}.{name}", thing
            for own, value in vars(thing).items() if inspect.isclass(thing) else ():
                method = getattr(value, "__func__", value)
                inherited = any(hasattr(base, own) for base in thing.__mro__[1:])
                set_in_class = is_dataclass(thing) and own in {field.name for field in fields(thing)}
                if inspect.isfunction(method) and not own.startswith("_") and not inherited and not set_in_class:
                    yield f"{module}.{name}.{own}", method


def described(thing: object) -> set[str]:
    """The fields of a dataclass that have a text of their own."""
    bodies = [ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body for each in own_classes(thing)]
    return {
        str(getattr(getattr(node, "target", None), "id", ""))
        for body in bodies
        for node, below in pairwise(body)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def own_classes(thing: object) -> list[type]:
    return [each for each in getattr(thing, "__mro__", ()) if each.__module__.startswith(OURS)]


def called_with(thing: object) -> list[str]:
    """The names of its parameters, without *arguments and **columns."""
    kinds = inspect.signature(thing).parameters if docstrings.parameters(thing) else {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, each in kinds.items() if name not in ("self", "cls") and each.kind not in several]


def mentions(text: str, name: str) -> bool:
    return bool(re.search(rf"\b{name.rstrip('s')}s?\b", text))


def raises(function: object) -> bool:
    """Whether its own code raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def constructors(kind: type) -> Iterator[FunctionType]:
    """Yield what runs where a class is called: its own and what its bases in this project have, but nothing generated.

    `__new__` is one of them too, and dataclasses generate an `__init__` that calls `__post_init__`.
    """
    for each in own_classes(kind):
        for name in ("__new__", "__init__", "__post_init__"):
            method = getattr(vars(each).get(name), "__func__", vars(each).get(name))
            if inspect.isfunction(method) and method.__code__.co_filename == inspect.getfile(each):
                yield method


def called(function: FunctionType, owner: type | None) -> Iterator[object]:
    """Yield the functions and classes of this project that a function calls by name, of a module or of `self`.

    Args:
        owner: the class of `self`.
    """
    inside = inspect.getclosurevars(function)
    scope = {**inside.globals, **inside.nonlocals}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        callee = node.func if isinstance(node, ast.Call) else None
        found = scope.get(getattr(callee, "id", ""))
        if isinstance(callee, ast.Attribute) and isinstance(callee.value, ast.Name):
            holder = owner if callee.value.id == "self" else scope.get(callee.value.id)
            found = getattr(holder, callee.attr, None) if inspect.ismodule(holder) or holder is owner else None
        if str(getattr(found, "__module__", "")).startswith(OURS):
            yield found


def can_fail(thing: object, owner: type | None = None, seen: set[object] | None = None) -> bool:
    """Whether a function, or a class when it is called, raises: its own code, or what it calls of this project."""
    seen = set() if seen is None else seen
    inner = inspect.unwrap(thing) if callable(thing) else thing
    if inner in seen:
        return False
    seen.add(inner)
    if inspect.isclass(inner):
        return not issubclass(inner, BaseException) and any(can_fail(each, inner, seen) for each in constructors(inner))
    if not inspect.isfunction(inner):
        return False
    return raises(inner) or any(can_fail(each, owner, seen) for each in called(inner, owner))


def faults(thing: object) -> Iterator[str]:
    """What the docstring of a class or a function leaves out, or says of a parameter that is not there."""
    text = inspect.cleandoc(thing.__doc__ or "")
    if not text:
        yield "has no docstring"
        return
    known, parts = set(docstrings.parameters(thing)), dict(docstrings.sections(text))
    listed = docstrings.items(parts.get("Args", ""), {*re.findall(r"\w+", text)})
    named = {name.lstrip("*") for names, _ in listed for name in names.split(", ")} - {""}
    if named - known:
        yield f"Args has {sorted(named - known)}, its parameters are {sorted(known)}"
    told = described(thing) | named if is_dataclass(thing) else named
    built = inspect.isfunction(thing) or is_dataclass(thing) or {"__init__", "__new__"} & {*vars(thing)}
    silent = [name for name in called_with(thing) if built and name not in told and not mentions(text, name)]
    elsewhere = re.search(r"[Ss]ee `|^`\w+` of ", text)
    if silent and not elsewhere:
        yield f"does not say what {silent} are"
    if inspect.isclass(thing) and can_fail(thing) and not parts.get("Raises"):
        yield "does not say what its constructor raises"
    if not inspect.isfunction(thing):
        return
    back = inspect.signature(thing).return_annotation
    returns = {"Returns", "Yields"} & {*parts} or re.search(r"\b(return|yield)", text.lower()) or text.startswith(MAKES)
    block = inspect.isgeneratorfunction(inspect.unwrap(thing)) and not inspect.isgeneratorfunction(thing)
    if back not in (None, "None", inspect.Signature.empty) and not returns and not block and not elsewhere:
        yield f"does not say what it returns ({back})"
    if raises(thing) and not re.search(r"\braise", text.lower()) and not elsewhere:
        yield "does not say what it raises"


@pytest.mark.slow
def test_every_public_name_says_what_it_takes_returns_and_raises() -> None:
    found = [f"{name}: {fault}" for name, thing in things() for fault in faults(thing)]
    assert not found, "\n".join(found)


def test_every_public_constant_has_a_text_below_it() -> None:
    known = {name for name, _ in things()}
    constants = {
        (module, name)
        for module, names in docstrings.public_names().items()
        for name in names
        if f"{module}.{name}" not in known
    }
    assert ("textgym.solver", "MAX_STATES") in constants
    assert not [each for each in sorted(constants) if not docstrings.constant(*each)[1]]


def bad_one(first: int, second: int) -> int:
    """Add.

    Args:
        first: a number. third: another.
    """
    if first < 0:
        raise ValueError(first)
    return first + second


def good_one(first: int, second: int) -> int:
    """Return a sum. Raises: ValueError for a `first` below 0, or a bad `second`."""
    if first < 0:
        raise ValueError(first)
    return first + second


def test_what_is_left_out_is_found() -> None:
    assert list(faults(good_one)) == []
    assert list(faults(bad_one)) == [
        "Args has ['third'], its parameters are ['first', 'second']",
        "does not say what ['second'] are",
        "does not say what it returns (int)",
        "does not say what it raises",
    ]


class Checked:
    """A number. Args: number: one."""

    def __init__(self, number: int) -> None:
        self.number = self._checked(number)

    def _checked(self, number: int) -> int:
        return checks.check_count("number", number)


class Below(Checked):
    """`Checked`, whose number it takes."""


class Holder:
    """Something that makes another."""

    def __init__(self) -> None:
        self.held = Below(1)


@dataclass
class Settings:
    """Settings."""

    number: int = 0
    """A number."""

    def __post_init__(self) -> None:
        require("number", self.number, self.number == 0, "0")


class Told(Checked):
    """`Checked`, whose number it takes. Raises: ValueError for a `number` below 1."""


class Unfailing:
    """A `number`, cut to what is allowed; refused by a method alone."""

    def __init__(self, number: int) -> None:
        self.number = max(number, 1)

    def refuse(self) -> None:
        """Raise ValueError."""
        raise ValueError(self.number)


@pytest.mark.parametrize("kind", [Checked, Below, Holder, Settings])
def test_a_class_that_hides_what_its_constructor_raises_is_found(kind: type) -> None:
    assert list(faults(kind)) == ["does not say what its constructor raises"]


@pytest.mark.parametrize("kind", [Told, Unfailing])
def test_a_class_that_hides_nothing_is_not_found(kind: type) -> None:
    assert list(faults(kind)) == []


def test_errors_that_are_told_elsewhere_are_told_there() -> None:
    """A class that says "Raises: as `Other` does" names something public that says itself what it raises."""
    told = {name.rpartition(".")[2]: dict(docstrings.sections(thing.__doc__ or "")) for name, thing in things()}
    classes = {thing.__name__ for _, thing in things() if inspect.isclass(thing)}
    pointers = {(name, other) for name in classes for other in AS.findall(told[name].get("Raises", ""))}
    assert ("LMPPO", "A2C") in pointers
    assert not [each for each in pointers if "Error" not in told.get(each[1], {}).get("Raises", "")]


@pytest.mark.parametrize("name", ["third", "first, third"])
def test_a_parameter_that_is_not_there_is_found(name: str) -> None:
    def function(first: int, second: int) -> None:
        pass

    function.__doc__ = f"Do it.\n\nArgs:\n    {name}: a number. second: another."
    assert "Args has ['third'], its parameters are ['first', 'second']" in list(faults(function))


def test_several_arguments_of_a_line_are_several_items() -> None:
    text = """Do it. Raises: ValueError for `a`.

    Args:
        a, b: (T,), in [0, 1]. c: one of
            - "x": a text;
            - None. None: all.
        d: see e: it is not known. *rest: more.
    Returns: (T,), reward units.
    """
    parts = list(docstrings.sections(text))
    assert [name for name, _ in parts] == ["", "Raises", "Args", "Returns"]
    assert docstrings.items(parts[2][1], {"a", "b", "c", "d"}) == [
        ("a, b", "(T,), in [0, 1]."),
        ("c", 'one of\n- "x": a text;\n- None. None: all.'),
        ("d", "see e: it is not known. *rest: more."),
    ]
    assert parts[3][1] == "(T,), reward units."


def test_markdown_becomes_restructured_text() -> None:
    def function(a: int, b_: int) -> None:
        pass

    text = "Take `a`, a * b_ | c.\n\n### Part\nAs in\n- one\n\n    code_(*a)\n\nArgs:\n    a: `x` of *b*. b_: more."
    assert docstrings.to_rst(text, function, lambda code: f"``{code}``") == [
        r"Take ``a``, a \* b\_ \| c.",
        "",
        ".. rubric:: Part",
        "",
        "As in",
        "",
        "- one",
        "",
        ".. code-block:: python",
        "",
        "    code_(*a)",
        "",
        ":Parameters:",
        r"    * **a** -- ``x`` of \*b\*.",
        r"    * **b_** -- more.",
        "",
    ]
