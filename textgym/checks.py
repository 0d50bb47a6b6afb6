"""Check arguments, suggest the nearest name to a misspelt one, show values and docstrings; shared types."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
JsonObject = dict[str, Any]

MOST_ROWS = 2**20
"""The most rows, such as sub-environments, at once: more would keep a machine busy before anything is seen."""


class TextGymWarning(UserWarning):
    """A warning: the run goes on, but its user has to know."""


def shown(value: object, most: int = 80) -> str:
    """Return the beginning of the `repr` of a value; its type where that fails, as for the greatest integers."""
    try:
        return f"{value!r:.{most}}"
    except Exception:
        return f"({type(value).__name__})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; '' where it has none."""
    return str(error).strip().partition("\n")[0]


def check_choice(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is one of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{argument}={shown(value)}: one of {allowed} is allowed")


def check_flag(argument: str, value: object) -> None:
    """Raise ValueError unless a value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}={shown(value)}: True or False is allowed")


def check_count(argument: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless a value is an int of at least `least`; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}={value!r}: allowed is an int from {least} on")


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the nearest of `allowed`, or '' when none is near."""
    near = difflib.get_close_matches(name if isinstance(name, str) else shown(name), list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def not_one_of(argument: str, name: object, allowed: Iterable[str]) -> str:
    """Return the message for a `name` passed as `argument` that is not among `allowed`."""
    names = sorted(allowed)
    listed = ", ".join(names) if names else "(none)"
    return f"{argument} {shown(name)}: not one of {listed}.{did_you_mean(name, names)}"


def docstring(documented: ModuleType | type | Callable[..., object]) -> str:
    """Return the docstring of a module, class or function, from its source under `PYTHONOPTIMIZE=2`."""
    if sys.flags.optimize > 1:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(documented)))
        except (OSError, TypeError):
            pass  # made at run time, with a docstring that was set then
        else:
            return ast.get_docstring(tree if inspect.ismodule(documented) else tree.body[0]) or ""  # type: ignore[arg-type]
    return inspect.getdoc(documented) or ""
