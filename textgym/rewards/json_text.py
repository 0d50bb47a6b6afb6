"""Reading JSON strictly: what no JSON reader agrees on is no JSON here."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any, Final

from textgym.data_files import refuse_constant, unique_keys

_MOST_DIGITS: Final = 4000
"""Of an integer that Python reads; longer ones are decimals."""
_MOST_EXPONENT: Final = 17
"""Digits of an exponent that a decimal has; larger ones all count as the largest of that many digits."""


def parse_json(text: str) -> Any:
    """The value of a JSON text; numbers with a point or an exponent are `Decimal`s, exactly what is written.

    Refused, beyond what the grammar of JSON (RFC 8259) refuses: a key that stands twice in an object, and nesting
    deeper than Python's recursion limit.

    Raises: ValueError for anything that is refused.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def exact(value: Any) -> Any:
    """JSON values with every float as the decimal number that it is written as, as `parse_json` reads it.

    Raises: ValueError for NaN and infinities.
    """
    if isinstance(value, float):
        return Decimal(repr(float(value))) if math.isfinite(value) else refuse_constant(str(value))
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    return [exact(inner) for inner in value] if isinstance(value, list) else value


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < _MOST_DIGITS else Decimal(digits)


def _decimal(digits: str) -> Decimal:
    mantissa, _, exponent = digits.lower().partition("e")
    if len(exponent.lstrip("+-0")) > _MOST_EXPONENT:
        exponent = ("-" if exponent[0] == "-" else "") + "9" * _MOST_EXPONENT
    return Decimal(f"{mantissa}e{exponent or 0}")


_DECODER = json.JSONDecoder(
    object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_int=_integer, parse_float=_decimal
)
