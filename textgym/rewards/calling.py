"""Call a reward: copy its input, and read its answer as terms, numbers and abstentions."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from itertools import chain
from types import CoroutineType
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np

from textgym.checks import users_function
from textgym.rewards.base import Columns, Failed, Reward, RewardError, Values, reward_name, reward_term_names, sum_terms
from textgym.rewards.registry import RewardSpec, make_reward

Faults = dict[int, RewardError]
_Coroutine: TypeAlias = "CoroutineType[Any, Any, Any]"


def read_values(result: object, count: int, name: str, faults: Faults | None = None) -> Values:
    """Turn the result of the reward `name` into `count` floats or None.

    Accepted are a list, a tuple, or a one-dimensional array or tensor of real numbers (Python's, numpy's,
    zero-dimensional arrays and tensors, bool as 0 and 1) and None. NaN and infinities pass: `find_faults`
    finds them. Where `faults` are given, a value that is no number is noted there under its index, and None stands in.

    Raises: RewardError of kind "wrong_length", or "wrong_type" (of one value only where `faults` is None).
    """
    items = _as_list(result, name)
    if len(items) != count:
        raise RewardError(f"reward {name!r} returned {len(items)} values for {count} completions", "wrong_length")
    if set(map(type, items)) == {float}:  # nearly always, and nearly free
        return items
    return [as_number(value, index, name, faults) for index, value in enumerate(items)]


def find_faults(values: Values, name: str, faults: Faults) -> None:
    """Note every value that is neither finite nor None as a fault of kind "nan" or "inf", where there is none yet."""
    for index, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            message = f"reward {name!r} is {value} for completion {index}; a finite number or None is allowed"
            fault = RewardError(message, "nan" if math.isnan(value) else "inf", index)
            if isinstance(value, Failed):
                fault = RewardError(str(value.error), value.error.kind, index)
            faults.setdefault(index, fault)


def _are_numbers(columns: Sequence[object], count: int) -> bool:
    """Return whether these are lists of `count` floats or None each, as nearly always: then nothing is to be read."""
    lists = [each for each in columns if type(each) is list and len(each) == count]
    return len(lists) == len(columns) and _PLAIN.issuperset(map(type, chain.from_iterable(lists)))


_PLAIN = frozenset((float, type(None)))


def _as_list(result: object, name: str) -> list[Any]:
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


def as_number(value: Any, index: int, name: str, faults: Faults | None) -> float | None:
    """Return what a reward has returned for a completion, a number or None; notes or raises a fault for the rest."""
    if value is None or isinstance(value, Failed):
        return value
    try:
        # float() would also take text such as "1.0" (no __float__) and arrays of one element (ndim 1).
        if type(value) in (float, int, bool) or (
            hasattr(value, "__float__") and not getattr(value, "ndim", 0) and not _is_complex(value)
        ):
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


def _is_complex(value: object) -> bool:
    """Return whether float() would take the real part alone of a number of numpy or torch."""
    return isinstance(value.item() if hasattr(value, "item") else value, complex)


class Caller:
    """A reward together with how to call it; a reward without terms is one term, its value.

    Attributes:
        method: "terms" where the reward has them, else "__call__".
        term_names: the keys of what `terms` returns.
        maximum: the most that the reward can pay, reward units; None where it does not say.
    Raises: ValueError where the reward does not take every column, or names its terms badly.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward: Any = reward  # for its optional attributes
        self.name = reward_name(reward)
        self.term_names = reward_term_names(reward)
        self._keys = frozenset(self.term_names)
        self.has_terms = hasattr(reward, "terms")
        self.method = "terms" if self.has_terms else "__call__"
        # A subclass that has a method of its own is not to be passed by.
        kinds = (vars(kind) for kind in type(reward).__mro__)
        self._begins = "begin" in next((kind for kind in kinds if "begin" in kind or self.method in kind), {})
        self.maximum: float | None = getattr(reward, "maximum", None)
        try:
            parameters = inspect.signature(getattr(reward, "terms", reward)).parameters.values()
        except (TypeError, ValueError):  # a builtin that hides its signature
            return
        # Callers, TRL's too, pass more columns than a reward asks for.
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            raise ValueError(f"reward {self.name!r} must take any column: (prompts, completions, **columns)")

    @property
    def place(self) -> str:
        """Where the reward is defined in a file of the user's, see `users_function`; '' for another's."""
        own = self.reward if inspect.isroutine(self.reward) else getattr(type(self.reward), self.method, None)
        return users_function(own)

    def terms(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        columns: Columns,
        faults: Faults | None = None,
    ) -> dict[str, Values]:
        """Ask for the terms of B completions: for each of `term_names` B floats or None.

        Args:
            prompts, completions: B texts, or what else the reward takes, as lists of messages.
            columns: name -> B values.
            faults: where given, single values that are no numbers are noted here instead of raised.
        Raises: RewardError if the result has the wrong type or length; whatever the reward raises.
        """
        result = answered(lambda: self.begin(prompts, completions, columns))
        return self.read(result, len(prompts), faults)

    def begin(self, prompts: Sequence[object], completions: Sequence[object], columns: Columns) -> object:
        """Call the reward; return what it returns: its answer, a coroutine, or what it has begun."""
        function = self.reward.begin if self._begins else self.reward.terms if self.has_terms else self.reward
        return function(prompts=list(prompts), completions=list(completions), **copy_columns(columns))

    def read(self, result: object, count: int, faults: Faults | None = None) -> dict[str, Values]:
        """Turn what the reward returned for `count` completions into terms, in the order of `term_names`.

        Raises: RewardError of kind "wrong_type" or "wrong_length", as `read_values`.
        """
        names = self.term_names
        if not self.has_terms:
            return {names[0]: read_values(result, count, names[0], faults)}
        if not isinstance(result, dict) or result.keys() != self._keys:
            got = sorted(map(str, result)) if isinstance(result, dict) else type(result).__name__
            raise RewardError(
                f"terms() of reward {self.name!r} returned {got}; a dict with the keys {list(names)} is allowed",
                "wrong_type",
            )
        found = [result[key] for key in names]
        if _are_numbers(found, count):
            return dict(zip(names, found, strict=True))
        return {key: read_values(result[key], count, f"{self.name}/{key}", faults) for key in names}

    def spent(self) -> dict[str, float]:
        """Return what scoring has cost so far; {} of a reward that does not say."""
        found: dict[str, float] = self.reward.spent() if hasattr(self.reward, "spent") else {}
        return found

    def state_dict(self) -> object:
        """Return the reward's own state (JSON values), None where it has none."""
        state: object = self.reward.state_dict() if hasattr(self.reward, "state_dict") else None
        return state

    def load_state_dict(self, state: object) -> None:
        """Go back to what `state_dict` returned."""
        if state is not None:
            self.reward.load_state_dict(state)


class Inner(Caller):
    """One reward inside another, built from its spec.

    Args:
        spec: see `make_reward`. outer: name of what holds it, for messages. noise: whether it may be noisy.

    Attributes:
        pay, needs_timeout: "end" or "together", and whether it may take for ever; what holds it has both, too.
    Raises: ValueError if it is paid at every token (`pay`), or noisy without `noise`: such a reward is outermost.
    """

    def __init__(self, spec: RewardSpec, outer: str, noise: bool = False) -> None:
        super().__init__(make_reward(spec))
        self.pay: Literal["end", "together"] = getattr(self.reward, "pay", "end")
        noisy = getattr(self.reward, "noisy", False) and not noise
        if noisy or self.pay not in ("end", "together"):
            odd = "is noisy" if noisy else f"has pay={self.pay!r}"
            raise ValueError(f"reward {self.name!r} in {outer!r} {odd}; it has to be the outermost")
        self.needs_timeout = bool(getattr(self.reward, "needs_timeout", False))

    def values(self, prompts: Sequence[object], completions: Sequence[object], columns: Columns) -> Values:
        """Return the reward of B completions, raising as `terms` does."""
        return sum_terms(self.terms(prompts, completions, columns))

    def begin_values(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        columns: Columns,
        change: Callable[[Values], Values],
    ) -> Begun:
        """Begin to ask for the reward of B completions, of which `change` makes the answer."""
        return ask_together([(self, prompts, completions, columns)], lambda terms: change(sum_terms(terms[0])))


@dataclass(frozen=True)
class Begun:
    """What rewards have begun: answers, coroutines that are yet to be awaited, and more of this kind.

    Args:
        parts: of these. finish: makes one answer of what the parts have come to.
    """

    parts: Sequence[object]
    finish: Callable[[list[object]], object]


_UNFINISHED: Final = (Begun, CoroutineType)
Asked = tuple[Caller, Sequence[object], Sequence[object], Columns]
"""A reward, and the prompts, completions and columns that it is asked about."""


def ask_together(asked: Sequence[Asked], finish: Callable[[list[dict[str, Values]]], object]) -> Begun:
    """Begin to ask rewards for their terms, to make one answer of them; those that are `async def` wait at once.

    Raises: what a reward raises that does not wait; `awaited` and `finish` raise the rest.
    """
    begun: list[object] = []
    try:
        for caller, prompts, completions, columns in asked:
            begun.append(caller.begin(prompts, completions, columns))
    except BaseException:
        _close(begun)
        raise

    def read(results: list[object]) -> object:
        return finish([own[0].read(result, len(own[1])) for own, result in zip(asked, results, strict=True)])

    return Begun(begun, read)


def answered(begin: Callable[[], object]) -> object:
    """Return what a reward answers: what `begin` returns, or what that comes to."""
    with printing_to_stderr():
        result = begin()
        return awaited([result])[0] if isinstance(result, _UNFINISHED) else result


def awaited(results: Sequence[object]) -> list[object]:
    """Return what rewards returned; of those that are `async def`, as TRL allows, what they come to, run at once.

    What was begun is finished in its order, whichever answer came first. An interrupt of the caller cancels them.
    """
    found = iter(_gathered([leaf for each in results for leaf in _coroutines(each)]))
    return [_finished(each, found) for each in results]


def _coroutines(result: object) -> list[_Coroutine]:
    if isinstance(result, Begun):
        return [leaf for part in result.parts for leaf in _coroutines(part)]
    return [result] if isinstance(result, CoroutineType) else []


def _finished(result: object, found: Iterator[object]) -> object:
    if isinstance(result, Begun):
        return result.finish([_finished(part, found) for part in result.parts])
    return next(found) if isinstance(result, CoroutineType) else result


def _close(results: Sequence[object]) -> None:
    """Give up coroutines, so that Python does not warn of those that nobody has awaited."""
    for each in results:
        for coroutine in _coroutines(each):
            coroutine.close()


def _gathered(coroutines: Sequence[_Coroutine]) -> list[object]:
    """Return what coroutines come to, run at once in a loop of events of their own."""
    if not coroutines:
        return []
    import asyncio  # slow to import
    from concurrent.futures import ThreadPoolExecutor

    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def gathered() -> list[object]:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        found: list[object] = await asyncio.gather(*coroutines)
        return found

    # In a thread of its own: the caller's may run an event loop already, as a notebook's does.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: asyncio.run(gathered()))
        try:
            return running.result()
        except asyncio.CancelledError as error:  # no Exception, but no wish to stop the run either
            raise RuntimeError("its coroutine was cancelled") from error
        except BaseException:
            for loop, task in started:
                if task is not None and not running.done():
                    loop.call_soon_threadsafe(task.cancel)
            raise


def printing_to_stderr() -> AbstractContextManager[object]:
    """Send to the standard error what the reward prints: the standard output may be data, such as JSON.

    Only in the main thread, since threads that swapped the stream in turn would never restore it.
    """
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return redirect_stdout(sys.stderr)


def check_batch(prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> None:
    """Raise ValueError unless completions and every column hold one value per prompt, under a free name."""
    count = len(prompts)
    if len(completions) != count:
        raise ValueError(f"completions has {len(completions)} values; one for each of {count} prompts is allowed")
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(f"column {name!r} has {len(column)} values; one for each of {count} prompts is allowed")
        if name in ("prompts", "completions"):
            raise ValueError(f"column {name!r} has the name of a reward's own argument; another is allowed")


_LISTS: Final = (list, tuple)
_IMMUTABLE = frozenset({str, int, float, bool, bytes, type(None)})
_DEPTH = 8  # levels of lists and dicts; what lies deeper, or holds itself, is left to deepcopy


def copy_columns(columns: Columns) -> dict[str, object]:
    """Copy the columns as deep as it takes that no change to them reaches the caller.

    What is no list of values is passed on as it is: TRL's trainers hand over their state and functions too.
    """
    copies: dict[str, Any] = {}
    for name, column in columns.items():
        if name == "completion_ids":
            # Rows of token ids are flat by contract; looking at every id would cost more than the reward.
            copies[name] = list(map(list, cast("list[list[int]]", column)))
        elif isinstance(column, _LISTS):
            copies[name] = list(column) if _are_constant(column) else [_copied(value, _DEPTH) for value in column]
        else:
            copies[name] = column.tolist() if isinstance(column, np.ndarray) else column
    return copies


def _are_constant(column: Sequence[object]) -> bool:
    """Return whether nothing in a column can change: plain values, or tuples of these."""
    if _IMMUTABLE.issuperset(map(type, column)):
        return True
    tuples = cast("Sequence[tuple[object, ...]]", column)
    return set(map(type, column)) == {tuple} and _IMMUTABLE.issuperset(map(type, chain.from_iterable(tuples)))


def _copied(value: Any, depth: int) -> object:
    """Copy a value deeply; what JSON can say several times as fast as deepcopy, which copies the rest."""
    kind = type(value)
    if kind in _IMMUTABLE or (kind in (list, tuple) and _IMMUTABLE.issuperset(map(type, value))):
        return value.copy() if kind is list else value
    if kind is list and depth:
        return [_copied(inner, depth - 1) for inner in value]
    if kind is dict and depth:
        return {key: _copied(inner, depth - 1) for key, inner in value.items()}
    return copy.deepcopy(value)
