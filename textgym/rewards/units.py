"""How long a completion is: in words, characters or tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, get_args

from textgym.messages import check_choice, shown
from textgym.rewards.scripts import composed, is_unspaced, warn_once

Unit = Literal["words", "characters", "tokens"]


def check_unit(unit: Any) -> None:
    """Raise ValueError unless `unit` is one of `Unit`."""
    check_choice("unit", unit, get_args(Unit))


def lengths(unit: Unit, completions: list[str], columns: Mapping[str, Any]) -> list[int]:
    """Return the length of each completion; in tokens the stop id counts too, in characters composed ones count once.

    Raises: ValueError if tokens are to be counted and the column `completion_ids` is missing.
    """
    if unit == "characters":
        return [len(composed(text)) for text in completions]
    if unit == "words":
        return [len(spaced_words(text)) for text in completions]
    return list(map(len, token_ids(columns)))


def spaced_words(text: str) -> list[str]:
    """Return what white space separates, composed. Warns: TextGymWarning, once, of a script without spaces."""
    if is_unspaced(text):
        warn_once(
            "unit='words' counts what spaces separate, which in Han, kana, Thai, Lao, Khmer and Myanmar texts are "
            "no words; unit='characters' is made for them"
        )
    return composed(text).split()


def check_stop_ids(ids: Any) -> tuple[int, ...]:
    """Return the ids that end a text. Raises: ValueError unless they are a list of at least one token id."""
    good = isinstance(ids, Sequence | Set) and not isinstance(ids, str) and len(ids) > 0
    if not good or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"stop_ids={shown(ids)}: a list of at least one token id is allowed")
    return tuple(ids)


def token_ids(columns: Mapping[str, Any]) -> list[list[int]]:
    """Return the column `completion_ids`. Raises: ValueError if it is missing."""
    if "completion_ids" not in columns:
        raise ValueError(
            f"columns={sorted(columns)}: 'completion_ids' is needed by a reward that reads tokens"
        )
    ids: list[list[int]] = columns["completion_ids"]
    return ids
