"""Check arguments, suggest the nearest name to a misspelt one, show values and docstrings; shared types."""

from __future__ import annotations

import ast
import difflib
import inspect
import linecache
import math
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from textgym.sources import PACKAGES

Floats = NDArray[np.float64]
"""An array of float64."""
Ints = NDArray[np.int64]
"""An array of int64."""
Bools = NDArray[np.bool_]
"""An array of bool."""
JsonObject = dict[str, Any]

MOST_ROWS = 2**20
"""The most rows, such as sub-environments, at once: more would keep a machine busy before anything is seen."""


def equal_parts(rows: int, most: int) -> list[slice]:
    """Cut rows into as few parts as hold at most so many, and one at least, all of about the same size."""
    size = -(-rows // -(-rows // max(most, 1)))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


class TextGymWarning(UserWarning):
    """A warning about something that the user should know; the run continues."""


def shown(value: object, most: int = 80) -> str:
    """Return the beginning of the `repr` of a value; its type where that fails, as for the greatest integers."""
    try:
        return f"{value!r:.{most}}"
    except Exception:
        return f"({type(value).__name__})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; '' where it has none."""
    return str(error).strip().partition("\n")[0]


def users_line(error: BaseException) -> str:
    """Return where an error arose in a file of the user's, as " (my_reward.py, line 3: return 1 / 0)"; '' for none.

    A file of the user's is neither TextGym's, nor Python's, nor that of an installed package. Of an error and its
    causes, the first one to arise counts; of its frames, the innermost.
    """
    found = ""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = traceback.walk_tb(cause.__traceback__)
        places = [(frame.f_code.co_filename, line) for frame, line in frames if not _is_ours(frame.f_globals)]
        if isinstance(cause, SyntaxError):
            places.append((cause.filename or "", cause.lineno or 0))
        users = [place for place in places if _is_users(place[0])]
        found = _quoted(*users[-1]) if users else found
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def users_function(function: object) -> str:
    """Return where a function of the user's is, in the form of `users_line`; '' for any other."""
    inner = inspect.unwrap(function) if callable(function) else None
    code = getattr(inner, "__code__", None)
    if code is None or _is_ours(getattr(inner, "__globals__", {})) or not _is_users(code.co_filename):
        return ""
    return _quoted(code.co_filename, code.co_firstlineno)


def _quoted(file: str, line: int) -> str:
    path = Path(file)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f" ({near}, line {line}: {linecache.getline(file, line).strip():.100})"


def _is_ours(names: dict[str, object]) -> bool:
    return str(names.get("__name__")).partition(".")[0] in PACKAGES


def _is_users(file: str) -> bool:
    path, library = Path(file), Path(traceback.__file__).parent
    installed = {"site-packages", "dist-packages"}.intersection(path.parts) or path.is_relative_to(library)
    try:
        return path.is_file() and not installed
    except PermissionError:
        return False


def check_choice(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless a value is one of some names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{argument}={shown(value)}: one of {allowed} is allowed")


def check_flag(argument: str, value: object) -> None:
    """Raise ValueError unless a value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument}={shown(value)}: True or False is allowed")


def check_count(argument: str, value: object, least: int = 1, most: int | None = None, unit: str = "") -> int:
    """Return an integer, Python's or numpy's, as an int. Raises: ValueError unless it is in `least`..`most`."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
        if number >= least and (most is None or number <= most):
            return number
    allowed = f">= {least}" if most is None else f"in {least}..{most}"
    raise ValueError(f"{argument}={shown(value)}: allowed is an integer {allowed}{f' ({unit})' if unit else ''}")


def check_number(argument: str, value: object, low: float = -math.inf, high: float = math.inf, unit: str = "") -> float:
    """Return a real number as a float. Raises: ValueError unless it is finite and in [`low`, `high`]."""
    if is_finite(value) and low <= value <= high:
        return float(value)
    allowed = "a finite number" if high == math.inf else f"a number in {low:g}..{high:g}"
    allowed += f" >= {low:g}" if high == math.inf and low > -math.inf else ""
    raise ValueError(f"{argument}={shown(value)}: allowed is {allowed}{f' ({unit})' if unit else ''}")


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite real number, Python's or numpy's; bools do not count."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def are_integers(values: object) -> TypeGuard[tuple[int, ...]]:
    """Return whether a value is a tuple of integers, Python's or numpy's; bools do not count."""
    kinds = {*map(type, values)} if isinstance(values, tuple) else {object}
    return all(each is int or (issubclass(each, int | np.integer) and each is not bool) for each in kinds)


def check_batch(observation: Mapping[str, NDArray[np.generic]]) -> None:
    """Raise ValueError for the observation of a single environment, which has no axis of states."""
    if np.ndim(mask := observation["attention_mask"]) != 2:
        raise ValueError(
            f"observation: attention_mask has shape {np.shape(mask)}, allowed is a batch (B, L); of a single "
            "environment's observation, {name: values[None] for name, values in observation.items()} makes a batch of 1"
        )


def token_counts(observation: Mapping[str, NDArray[np.generic]]) -> Ints:
    """Return the number of tokens of each of B states, prompts included, (B,). Raises: as `check_batch` does."""
    check_batch(observation)
    return np.asarray(np.count_nonzero(observation["attention_mask"], axis=1))


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
