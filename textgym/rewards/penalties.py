"""Rewards of zero or less that punish the form of a completion; terms for `Weighted`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textgym.messages import shown
from textgym.rewards.base import NamedReward
from textgym.rewards.units import Unit, check_stop_ids, check_unit, lengths, token_ids
from textgym.rewards.values import is_finite


@dataclass(frozen=True)
class LengthPenalty(NamedReward):
    """Pays -`per_unit` for each unit over `limit`, else 0. Range (-inf, 0].

    Args:
        limit: 0 or more.
        per_unit: reward units, finite, 0 or more.
        unit: "tokens" (the stop id included), "words" or "characters".
    """

    limit: int
    per_unit: float = 0.1
    unit: Unit = "tokens"
    name = "length_penalty"
    maximum = 0.0

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise ValueError(f"limit={shown(self.limit)}: an integer of 0 or more is allowed")
        if not is_finite(self.per_unit) or self.per_unit < 0:
            raise ValueError(f"per_unit={shown(self.per_unit)}: a finite number of 0 or more is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        found = lengths(self.unit, completions, columns)
        # 0.0 - x rather than -x: nothing over the limit pays 0.0 and not -0.0
        return [0.0 - self.per_unit * max(0, length - self.limit) for length in found]


@dataclass(frozen=True)
class MissingStopPenalty(NamedReward):
    """Pays -`penalty` where the last token is none of `stop_ids` (or there is none), else 0.

    Args:
        stop_ids: token ids, at least one; a task's are `task.vocabulary.stop_ids`.
        penalty: reward units, finite, 0 or more.
    """

    stop_ids: Sequence[int]
    penalty: float = 1.0
    name = "missing_stop"
    maximum = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", check_stop_ids(self.stop_ids))
        if not is_finite(self.penalty) or self.penalty < 0:
            raise ValueError(f"penalty={shown(self.penalty)}: a finite number of 0 or more is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        stops, missing = frozenset(self.stop_ids), 0.0 - self.penalty
        return [0.0 if len(ids) and ids[-1] in stops else missing for ids in token_ids(columns)]
