"""Call a reward: copy its input, and read its answer as terms, numbers and abstentions."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from itertools import chain
from typing import Any

import numpy as np

from textgym.rewards.base import RewardError, Values, reward_name, reward_term_names

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


IMMUTABLE = frozenset({str, int, float, bool, bytes, type(None)})
DEPTH = 8  # levels of lists and dicts; what lies deeper, or holds itself, is left to deepcopy
Columns = Mapping[str, Sequence[Any]]


class Caller:
    """A reward together with how to call it; a reward without terms is one term, its value.

    Args:
        reward: see `Reward`.

    Attributes:
        method: "terms" where the reward has them, else "__call__".
        term_names: the keys of what `terms` returns.

    Raises: ValueError where the reward does not take every column, or names its terms badly.
    """

    def __init__(self, reward: Any) -> None:
        self.reward = reward
        self.name = reward_name(reward)
        self.term_names = reward_term_names(reward)
        self.has_terms = hasattr(reward, "terms")
        self.method = "terms" if self.has_terms else "__call__"
        _check_signature(reward.terms if self.has_terms else reward, self.name)

    def terms(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Columns,
        faults: Faults | None = None,
    ) -> dict[str, Values]:
        """Ask for the terms of B completions.

        Args:
            prompts: B texts.
            completions: B texts.
            columns: name -> B values.
            faults: where given, single values that are no numbers are noted here instead of raised.

        Returns: for each of `term_names` B floats or None.
        Raises: RewardError if the result has the wrong type or length; whatever the reward raises.
        """
        function = self.reward.terms if self.has_terms else self.reward
        with printing_to_stderr():
            result = awaited(
                function(prompts=list(prompts), completions=list(completions), **isolated(columns))
            )
        return self.read(result, len(prompts), faults)

    def read(self, result: Any, count: int, faults: Faults | None = None) -> dict[str, Values]:
        """Read what the reward returned for `count` completions, as `terms` does."""
        if self.has_terms:
            return read_terms(result, self.term_names, count, self.name, faults)
        name = self.term_names[0]
        return {name: read_values(result, count, name, faults)}

    def state_dict(self) -> Any:
        """Return the reward's own state (JSON values), None where it has none."""
        return self.reward.state_dict() if hasattr(self.reward, "state_dict") else None

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        if state is not None:
            self.reward.load_state_dict(state)


def awaited(result: Any) -> Any:
    """Return what a reward returned; of one that is `async def`, as TRL allows, what it comes to."""
    if not inspect.iscoroutine(result):
        return result
    import asyncio  # slow to import
    from concurrent.futures import ThreadPoolExecutor

    # In a thread of its own: the caller's may run an event loop already, as a notebook's does.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, result).result()
        except asyncio.CancelledError as error:  # no Exception, but no wish to stop the run either
            raise RuntimeError("its coroutine was cancelled") from error


def printing_to_stderr() -> AbstractContextManager[Any]:
    """Send to the standard error what the reward prints: the standard output may be data, such as JSON.

    Only in the main thread, since threads that swapped the stream in turn would never restore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return redirect_stdout(sys.stderr)


def isolated(columns: Columns) -> dict[str, Any]:
    """Copy the columns as deep as it takes that no change to them reaches the caller.

    What is no list of values is passed on as it is: TRL's trainers hand over their state and functions too.
    """
    return {
        # Rows of token ids are flat by contract; looking at every id would cost more than the reward.
        name: list(map(list, column)) if name == "completion_ids" else _copied(column)
        for name, column in columns.items()
    }


def check_batch(prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> None:
    """Raise ValueError unless completions and every column hold one value per prompt, under a free name."""
    count = len(prompts)
    if len(completions) != count:
        raise ValueError(
            f"completions has {len(completions)} values; one for each of {count} prompts is allowed"
        )
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(
                f"column {name!r} has {len(column)} values; one for each of {count} prompts is allowed"
            )
        if name in ("prompts", "completions"):
            raise ValueError(f"column {name!r} has the name of a reward's own argument; another is allowed")


def _copied(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return column.tolist()
    if not isinstance(column, list | tuple):
        return column
    kinds = set(map(type, column))
    if kinds <= IMMUTABLE:
        return list(column)
    # Flat rows of one kind are checked and copied all at once, which is several times faster.
    if kinds == {list} and IMMUTABLE.issuperset(map(type, chain.from_iterable(column))):
        return list(map(list, column))
    if kinds == {tuple} and IMMUTABLE.issuperset(map(type, chain.from_iterable(column))):
        return list(column)
    if kinds == {dict} and IMMUTABLE.issuperset(map(type, chain.from_iterable(map(dict.values, column)))):
        return list(map(dict.copy, column))
    return [_copied_item(item, DEPTH) for item in column]


def _copied_item(item: Any, depth: int) -> Any:
    """A deep copy; of what JSON can say several times as fast as deepcopy, which copies the rest."""
    kind = type(item)
    if kind in IMMUTABLE:
        return item
    if kind is list and depth:
        return [_copied_item(value, depth - 1) for value in item]
    if kind is dict and depth:
        return {key: _copied_item(value, depth - 1) for key, value in item.items()}
    if kind is tuple and IMMUTABLE.issuperset(map(type, item)):
        return item
    return copy.deepcopy(item)


def _check_signature(function: Any, name: str) -> None:
    """Refuse a reward that lists its columns: callers pass more than it asks for, TRL's trainers too."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin that hides its signature
        return
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise ValueError(f"reward {name!r} must take any column: (prompts, completions, **columns)")
