"""Reading JSON strictly: what no JSON reader agrees on is no JSON here."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Refused, beyond what the grammar of JSON (RFC 8259) refuses: a key that stands twice in an object; and, as
    beyond a reader's limits, numbers out of a float's range, integers with more digits than Python reads
    (4,300 by default), and nesting deeper than its recursion limit.

    Raises: ValueError for anything that is refused.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` that repairs nothing. Raises: ValueError if a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_constant, parse_float=_float)
