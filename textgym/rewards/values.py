"""Reading what a reward returned: the numbers, the abstentions, and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from textgym.rewards.base import RewardError, Values

PLAIN = frozenset({float, int, bool})
Faults = dict[int, RewardError]


def is_finite(value: Any) -> bool:
    """Whether a value is a real number, Python's or numpy's, that a float can hold; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def read_values(result: Any, count: int, name: str, faults: Faults | None = None) -> Values:
    """Turn a reward's result into `count` floats or None.

    Accepted are a list, a tuple, or a one-dimensional array or tensor of real numbers (Python's, numpy's,
    zero-dimensional arrays and tensors, bool as 0 and 1) and None. NaN and infinities pass: `find_faults`
    finds them.

    Args:
        result: what the reward returned.
        count: the size of the batch.
        name: the reward's, for messages.
        faults: where given, a value that is no number is noted here under its index, and None stands in.

    Raises: RewardError of kind "wrong_length", or "wrong_type" (of one value only where `faults` is None).
    """
    items = _as_list(result, name)
    if len(items) != count:
        raise RewardError(
            f"reward {name!r} returned {len(items)} values for {count} completions", "wrong_length"
        )
    if set(map(type, items)) == {float}:  # nearly always, and nearly free
        return items
    return [_as_number(value, index, name, faults) for index, value in enumerate(items)]


def read_terms(
    result: Any, names: Sequence[str], count: int, name: str, faults: Faults | None = None
) -> dict[str, Values]:
    """Turn the result of `terms` into `count` floats or None for each of `names`, in that order.

    Raises: RewardError of kind "wrong_type" or "wrong_length", as `read_values`.
    """
    if not isinstance(result, dict) or len(result) != len(names) or not all(key in result for key in names):
        got = sorted(map(str, result)) if isinstance(result, dict) else type(result).__name__
        raise RewardError(
            f"terms() of reward {name!r} returned {got}; a dict with the keys {list(names)} is allowed",
            "wrong_type",
        )
    return {key: read_values(result[key], count, f"{name}/{key}", faults) for key in names}


def find_faults(values: Values, name: str, faults: Faults) -> None:
    """Note every value that is neither finite nor None as a fault of kind "nan" or "inf"."""
    for index, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            faults.setdefault(index, not_finite(value, index, name))


def not_finite(value: float, index: int, name: str) -> RewardError:
    """Return the error for a value that is NaN or infinite."""
    return RewardError(
        f"reward {name!r} is {value} for completion {index}; a finite number or None is allowed",
        "nan" if math.isnan(value) else "inf",
        index,
    )


def _as_list(result: Any, name: str) -> list[Any]:
    if isinstance(result, list):
        return result
    if isinstance(result, tuple):
        return list(result)
    shape = getattr(result, "shape", None)
    if shape is not None and len(shape) == 1 and hasattr(result, "tolist"):
        return list(result.tolist())
    described = type(result).__name__ if shape is None else f"{type(result).__name__} of shape {tuple(shape)}"
    raise RewardError(
        f"reward {name!r} returned a {described}; allowed are a list, a tuple or a one-dimensional array "
        "with one number or None per completion",
        "wrong_type",
    )


def _as_number(value: Any, index: int, name: str, faults: Faults | None) -> float | None:
    if value is None:
        return None
    try:
        # float() would also take text such as "1.0" (no __float__) and arrays of one element (ndim 1).
        if type(value) in PLAIN or (hasattr(value, "__float__") and not getattr(value, "ndim", 0)):
            return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        pass
    fault = RewardError(
        f"reward {name!r} returned {value!r:.80} ({type(value).__name__}) for completion {index}; "
        "a real number or None is allowed",
        "wrong_type",
        index,
    )
    if faults is None:
        raise fault
    faults.setdefault(index, fault)
    return None
