"""Rewards that are paid at every token: of the text so far, as differences of a potential, or token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from textgym.checks import Bools, Floats, check_number, shown
from textgym.registry import load_target
from textgym.rewards.base import Column, NamedReward, RewardError, TermReward, Values, read_column
from textgym.rewards.compose import Pay, Wrapped
from textgym.rewards.registry import RewardSpec


class _EveryPrefix(Wrapped, TermReward):
    """Another reward, asked after every token with the text so far."""

    def __init__(self, reward: RewardSpec, outer: str) -> None:
        super().__init__(reward, outer)
        if self.inner.pay != "end":
            raise ValueError(f"reward {self.name!r} in {outer!r} compares whole texts (pay={self.inner.pay!r})")
        self.term_names = self.inner.term_names
        self.maximum = self.inner.maximum

    def terms(self, prompts: list[str], completions: list[str], **columns: Column) -> dict[str, Values]:
        """Return the other reward's terms."""
        return self.inner.terms(prompts, completions, columns)


class Dense(_EveryPrefix):
    """Pays another reward, of the text so far, after every token.

    Raises: as `make_reward` does; ValueError for a reward that is not paid at the end.
    """

    def __init__(self, reward: RewardSpec) -> None:
        super().__init__(reward, "dense")
        self.pay = "every"


class Shaped(_EveryPrefix):
    """Pays the differences of another reward as the text grows; they add up to the finished text's reward.

    See `potential_difference` for what each token earns.

    Args:
        reward: a reward, or the spec of one; its value of a prefix is the potential of that state.
        gamma: the task's discount, in [0, 1].
    Raises: as `make_reward` does; ValueError for a gamma out of range, or a reward that is not paid at the end.
    """

    def __init__(self, reward: RewardSpec, gamma: float = 1.0) -> None:
        super().__init__(reward, "shaped")
        self.pay = "difference"
        self.gamma = check_number("gamma", gamma, 0, 1)


def potential_difference(
    before: float | Floats, after: float | Floats, ended: bool | Bools, gamma: float = 1.0
) -> Floats:
    """Return what a token earns that takes the potential from `before` to `after`.

    That is gamma * after - before; at the end after - before: the reward of the finished text plus the
    shaping term gamma * 0 - before, a terminal state having potential 0. With potential 0 at the start the
    discounted sum over an episode of T tokens is gamma**(T - 1) times the reward of the finished text, just
    what that reward pays at the end: shaping changes no policy's value.

    Args:
        before: potential of the state the token was chosen in, reward units; float or float (B,).
        after: potential of the state it leads to.
        ended: whether the episode ended with this token; bool or bool (B,).
        gamma: the discount, in [0, 1].
    Returns: float64, a number or (B,), reward units.
    Source: Ng, Harada and Russell (1999), theorem 1.
    """
    return np.where(ended, after, gamma * after) - before


class PerToken(NamedReward):
    """Pays for every token what a function returns for it.

    The function is called as a reward is, after every token with the texts so far, and returns for each completion one
    number for each of its `completion_ids`, reward units. The last of them is paid: what it says of earlier tokens was
    paid when they were the last, so it cannot look ahead, and the reward stays one of state and action.

    Args:
        score: the function, or "module:function".
        maximum: the most that it can pay over an episode, reward units; None where that is not known.
        name: what it is logged under; None: the function's.
    Raises: TypeError for what is no function.
    """

    pay: Pay = "every"

    def __init__(
        self, score: Callable[..., object] | str, maximum: float | None = None, name: str | None = None
    ) -> None:
        self._score = load_target(score, "score") if isinstance(score, str) else score
        if not callable(self._score):
            raise TypeError(f"score={shown(score)}: allowed is a function, or 'module:function'")
        self.name = name or str(getattr(self._score, "__name__", type(self._score).__name__))
        self.maximum = None if maximum is None else check_number("maximum", maximum)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Return what the last token of every completion earns. Raises: RewardError unless there is one for each."""
        ids = cast("Sequence[Sequence[int]]", read_column(columns, "completion_ids", self.name))
        found = self._score(prompts=prompts, completions=completions, **columns)
        self._check(found, len(ids), f"a list of numbers for each of {len(ids)} completions")
        rows = cast("Sequence[Sequence[float | None]]", found)
        for place, (row, own) in enumerate(zip(rows, ids, strict=True)):
            self._check(row, len(own), f"one number for each of a completion's {len(own)} tokens", place)
        return [row[-1] if len(row) else 0.0 for row in rows]

    def _check(self, found: object, count: int, allowed: str, place: int | None = None) -> None:
        """Raise RewardError unless it is a list of so many."""
        if not isinstance(found, list | tuple | np.ndarray):
            got = type(found).__name__
            raise RewardError(f"reward {self.name!r} returned {got}; allowed is {allowed}", "wrong_type", place)
        if len(found) != count:
            got = f"a list of {len(found)}"
            raise RewardError(f"reward {self.name!r} returned {got}; allowed is {allowed}", "wrong_length", place)
