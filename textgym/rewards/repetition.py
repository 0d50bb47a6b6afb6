"""A reward for texts that do not repeat themselves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from textgym.messages import shown
from textgym.rewards.base import NamedReward
from textgym.rewards.scripts import composed
from textgym.rewards.units import Unit, check_unit, spaced_words, token_ids


@dataclass(frozen=True)
class NoRepeat(NamedReward):
    """Pays 1 less the share of the completion's n-grams that repeat an earlier one.

    Range [0, 1]: 1 where all n-grams differ. Where there are fewer than `least`, the missing ones count as
    repeated, so that silence does not pay; with `least` = 0 a text without any n-gram earns 1.

    Args:
        n: 1 or more.
        unit: what n-grams are made of: "words" (separated by white space), "characters" or "tokens" (the stop
            id included).
        least: n-grams, 0 or more.
    """

    n: int = 2
    unit: Unit = "words"
    least: int = 0
    name = "no_repeat"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_unit(self.unit)
        for name, value, lowest in (("n", self.n, 1), ("least", self.least, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}={shown(value)}: an integer of {lowest} or more is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        rows: Sequence[Sequence[Hashable]] = [composed(text) for text in completions]
        if self.unit == "words":
            rows = [spaced_words(text) for text in completions]
        elif self.unit == "tokens":
            rows = token_ids(columns)
        return [self._score(row) for row in rows]

    def _score(self, row: Sequence[Hashable]) -> float:
        count = max(len(row) - self.n + 1, 0)
        wanted = max(count, self.least)
        if not wanted:
            return 1.0
        distinct = len(set(zip(*(row[i:] for i in range(self.n)), strict=False)))
        return distinct / wanted
