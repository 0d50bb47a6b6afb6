"""The protocol of rewards: call signature, named terms, scores and errors; columns, messages and optional packages."""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Protocol

from textgym.checks import Floats, shown

Values = list[float | None]
Column = Sequence[object]
"""A data column: one value for each completion."""
Columns = Mapping[str, Column]


class RewardError(RuntimeError):
    """A reward failed.

    Args:
        message: the text of the error.

    Attributes:
        kind: "raises", "wrong_type", "wrong_length", "nan", "inf", "timeout" or "dies".
        index: position of the failed completion in the batch; None if the whole batch failed.
    """

    def __init__(self, message: str, kind: str, index: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.index = index

    def __reduce__(self) -> tuple[type[RewardError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.kind, self.index)


class TryAgainError(RuntimeError):
    """A failed attempt that can be repeated.

    Args:
        kind: of the failure, see `RewardError`. wait: seconds to wait, as requested by the server.
    """

    def __init__(self, message: str, kind: str = "raises", wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind, self.wait = kind, wait


class Failed(float):
    """NaN in place of a value that a reward could not determine, with the reason.

    A reward that makes a request for each completion thus loses only those that failed, and is not called again.
    `Scorer` handles it according to `on_error`; compositions pass it on, as they do NaN.

    Args:
        error: why the completion failed.
    """

    error: RewardError

    def __new__(cls, error: RewardError) -> Failed:
        """Make a NaN that has an error."""
        value = super().__new__(cls, "nan")
        value.error = error
        return value

    def __reduce__(self) -> tuple[type[Failed], tuple[RewardError]]:
        return type(self), (self.error,)


class Reward(Protocol):
    """Any callable that scores a batch of completions, called by keyword as in TRL's trainers.

    `columns` contain `completion_ids` (list of B lists of token ids, including the stop id if one ended the completion)
    and the task's data columns (lists of B values). A reward must accept columns that it does not know. It returns B
    numbers, in reward units; None abstains, `Failed` means that a completion could not be scored. It may be `async
    def`.

    Optional attributes: `name: str`; `terms(prompts, completions, **columns)` with `term_names` (see `TermReward`);
    `maximum`: the highest possible reward, which gives J* an upper bound if nothing better was found; `minimum`: the
    lowest, which gives `textgym ope` a lower bound; `pay`: "end" (default), "together" (the reward compares the
    completions of a batch, such as those of the same prompt; it needs an environment with `score_together=True`),
    "every" or "difference" (see `Dense` and `Shaped`); `begin`, called instead of the reward (or of `terms`, if it has
    them): it may return a coroutine of the answer, or a `Begun`, so that several wait at once; `spent()`: name -> cost
    of scoring so far; `state_dict()` and `load_state_dict(state)` if scoring changes the reward (JSON values); `noisy:
    bool`, with `expected`, the reward without its noise, and `normal_noise: float`, the standard deviation of the
    normal noise added once per completion: exact answers need them; `needs_timeout: bool`, if a call may never return.
    """

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Sequence[float | None]:
        """Return B numbers, reward units, or None."""


class NamedReward:
    """A reward object with a name; TRL's trainers log a reward under its `__name__`.

    `maximum` and `minimum` are the highest and lowest possible rewards of a completion, reward units; None if unknown.
    """

    name: str = "reward"
    maximum: float | None = None
    minimum: float | None = None

    @property
    def __name__(self) -> str:
        return self.name


class TermReward(NamedReward, ABC):
    """A reward that is a sum of named terms, each of which is logged.

    `term_names` are fixed for the life of the object. In `terms`, None abstains: the term adds nothing; if every term
    abstains, so does the reward.
    """

    term_names: tuple[str, ...]

    @abstractmethod
    def terms(self, prompts: list[str], completions: list[str], **columns: Column) -> dict[str, Values]:
        """Return for each of `term_names` B numbers or None, reward units; see `Reward`."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Return the sum of the terms of every completion, B numbers or None."""
        return sum_terms(self.terms(prompts, completions, **columns))


class Rebuilt:
    """A frozen dataclass that is pickled as its parameters and rebuilt from them.

    A child process can thus load the optional package before the reward's time limit starts.
    """

    def __reduce__(self) -> tuple[type[Rebuilt], tuple[object, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self) if field.init)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of B completions.

    Attributes:
        total: float64 (B,), finite, reward units.
        terms: name -> float64 (B,); NaN if the term abstained or the completion could not be scored.
    """

    total: Floats
    terms: dict[str, Floats]


def sum_terms(terms: dict[str, Values]) -> Values:
    """Sum the terms of each completion; None only if every term is None."""
    if len(terms) == 1:
        return list(*terms.values())
    totals: Values = []
    for values in zip(*terms.values(), strict=True):
        present = [value for value in values if value is not None]
        failed = next((value for value in present if isinstance(value, Failed)), None)
        totals.append(failed or (sum(present) if present else None))
    return totals


def reward_name(reward: object) -> str:
    """Return the name under which a reward is logged: its `name`, its `__name__`, or its class's name."""
    if isinstance(reward, functools.partial):
        return reward_name(reward.func)
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return "reward" if name == "<lambda>" else str(name)


def reward_term_names(reward: object) -> tuple[str, ...]:
    """Return the names of a reward's terms; a reward without terms is one term, under its own name.

    Raises: ValueError if it has `terms` without `term_names`, or names that are not distinct strings.
    """
    if not hasattr(reward, "terms"):
        return (reward_name(reward),)
    names = getattr(reward, "term_names", None)
    if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"reward {reward_name(reward)!r} has terms() but term_names={names!r}: "
            "it needs a tuple of the names that terms() returns"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"reward {reward_name(reward)!r}: term_names={names!r} must be distinct")
    return tuple(names)


def import_extra(module: str, user: str) -> ModuleType:
    """Import a module of the extra `rewards`. Raises: ModuleNotFoundError that names `user` and what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).split(".")[0]
        raise ModuleNotFoundError(
            f'{user} needs {package}, which is not installed: pip install "textgym[rewards]"', name=package
        ) from error


def read_column(columns: Columns, column: str, reward: str) -> Column:
    """Return the values of a data column. Raises: ValueError if it is missing."""
    if column not in columns:
        raise ValueError(
            f"columns={sorted(columns)}: {column!r} is needed by reward {reward!r}; give the task that data "
            "column, or the reward another column="
        )
    return columns[column]


def check_column(column: object, argument: str = "column") -> None:
    """Raise ValueError, which names the argument, unless `column` is a name that a data column can have."""
    if not isinstance(column, str) or not column:
        raise ValueError(f"{argument}={shown(column)}: the name of a data column is allowed")


def as_text(message: object, role: str) -> str:
    """Return the text of a prompt or a completion in either of TRL's two forms.

    Args:
        message: a text; or a list of messages {"role": ..., "content": a text or a list of parts with "text"}.
        role: "user": the last message of that role (the prompt to answer); "assistant": all of them, one per line
            (tools may interrupt a completion).
    Raises: ValueError for anything else.
    """
    if isinstance(message, str):
        return message
    if not isinstance(message, list) or not all(isinstance(m, Mapping) and "role" in m for m in message):
        raise ValueError(f"{message!r:.80} is neither a text nor a list of messages with role and content")
    found = [_content(one.get("content")) for one in message if one["role"] == role]
    return (found[-1] if found else "") if role == "user" else "\n".join(found)


def _content(content: object) -> str:
    if content is None or isinstance(content, str):  # None: a message that only calls tools
        return content or ""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError(f"content={content!r:.80}: a text or a list of parts is allowed")
