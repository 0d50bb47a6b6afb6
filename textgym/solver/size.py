"""The size of a prefix tree: counted from the legal actions, before any memory is spent on it."""

from __future__ import annotations

import math


class UnsolvableError(ValueError):
    """A task that has no exact solution here: its tree is too large, or its reward is no known function of the text."""


def count_states(roots: int, going_on: int, ending: int, horizon: int) -> int:
    """The number of states of a tree whose every running state has the same legal actions.

    Args:
        roots: prompts.
        going_on: legal actions that are no stop id. ending: legal stop ids.
        horizon: tokens; every state of this depth has ended.
    Returns: states of all depths, the prompts included; an exact integer of any size.
    """
    total = running = roots
    for _ in range(horizon):
        total += running * (going_on + ending)
        running *= going_on
        if not running:
            break
    return total


def check_size(states: int, max_states: int, known: str = "") -> None:
    """Refuse a tree that is too large.

    Args:
        states: its size. known: "at least " where it has not been counted to the end.
    Raises: UnsolvableError with the size, the limit, and what serves instead.
    """
    if states > max_states:
        raise UnsolvableError(
            f"the prefix tree has {known}{_shown(states)} states, allowed is max_states={max_states:,}; "
            "raise max_states or shorten the task, or use textgym.optima.optimum_of, "
            "which serves tasks of any size"
        )


def _shown(count: int) -> str:
    """1,234,567, or a power of ten where that would be no help to anyone."""
    if count < 10**15:
        return f"{count:,}"
    return f"about 10^{count.bit_length() * math.log10(2):.0f}"
