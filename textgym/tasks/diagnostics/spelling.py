"""A word to spell: the little task that Scale, Noisy and BetaSweep vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from textgym.rewards.base import NamedReward
from textgym.tasks.diagnostics.common import share_right

PROMPT: Final = "spell"
WORDS: Final = ("a", "b", "c", "d")
TARGET: Final = "d a b"
LENGTH: Final = 3


@dataclass(frozen=True)
class Spelling(NamedReward):
    """Pays the share of the letters of `TARGET` that stand at their place, times `scale`. Range [0, scale]."""

    scale: float = 1.0
    name = "spelling"

    def __post_init__(self) -> None:
        object.__setattr__(self, "maximum", self.scale)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        return [self.scale * share_right(text, TARGET) for text in completions]
