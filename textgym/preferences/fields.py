"""Values of JSON by their types, with errors that say where, what was found and what is allowed."""

from __future__ import annotations

from typing import Any

_NAMES = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a text", "bool": "true or false"}
_NAMES |= {"int": "a number", "float": "a number"}


def text(value: Any, what: str, allowed: str = "a text") -> str:
    """Raises: ValueError, as all here, for a value of another type; `what` names it."""
    return str(_typed(value, what, (str,), allowed))


def array(value: Any, what: str) -> list[Any]:
    """A list."""
    return list(_typed(value, what, (list,), "a list"))


def flag(value: Any, what: str) -> bool:
    """True or false; no number."""
    return bool(_typed(value, what, (bool,), "true or false"))


def number(value: Any, what: str) -> float:
    """A number as a float; JSON's true is none."""
    try:
        return float(_typed(value, what, (int, float), "a number"))
    except OverflowError:
        raise ValueError(f"{what} is too large a number") from None


def _typed(value: Any, what: str, types: tuple[type, ...], allowed: str) -> Any:
    # A bool is an int to Python.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{what} is {_NAMES[type(value).__name__]}, allowed is {allowed}")
    return value
