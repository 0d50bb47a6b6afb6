"""Rewards by simple rules, computed from the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from textgym.messages import check_flag, shown
from textgym.rewards.base import NamedReward
from textgym.rewards.scripts import composed, folded
from textgym.rewards.units import Unit, check_unit, lengths
from textgym.rewards.values import is_finite


@dataclass(frozen=True)
class ContainsAll(NamedReward):
    """Pays the share of `words` that the completion contains, anywhere. Range [0, 1].

    Composed and decomposed letters, and compatible ones (ligatures, full width) are equal.
    """

    words: Sequence[str]
    ignore_case: bool = False
    name = "contains_all"
    maximum = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", check_words("words", self.words))
        check_flag("ignore_case", self.ignore_case)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        words, count = [folded(word, self.ignore_case) for word in self.words], len(self.words)
        completions = [folded(text, self.ignore_case) for text in completions]
        return [sum([word in text for word in words]) / count for text in completions]


@dataclass(frozen=True)
class Length(NamedReward):
    """Pays 1 for a completion of `target` units and 1 / `width` less for each unit more or fewer.

    Range [0, 1].

    Args:
        target: 0 or more.
        unit: "words" (separated by white space), "characters" or "tokens" (the stop id included).
        width: above 0; None: `target`, or 1 where that is 0.
    """

    target: int = 8
    unit: Unit = "words"
    width: float | None = None
    name = "length"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 0:
            raise ValueError(f"target={shown(self.target)}: an integer of 0 or more is allowed")
        if self.width is not None and not (is_finite(self.width) and self.width > 0):
            raise ValueError(f"width={shown(self.width)}: None or a finite number above 0 is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        target, width = self.target, self.width or max(self.target, 1)
        return [max(0.0, 1.0 - abs(n - target) / width) for n in lengths(self.unit, completions, columns)]


@dataclass(frozen=True)
class Charset(NamedReward):
    """Pays the share of the completion's characters that are among `characters`.

    Range [0, 1]; an empty completion earns 0. Letters are composed with their marks first.
    """

    characters: str = "aeiou"
    name = "charset"
    maximum = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str) or not self.characters:
            raise ValueError(f"characters={shown(self.characters)}: a text that is not empty is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        distinct = sorted(set(composed(self.characters)))
        completions = [composed(text) for text in completions]
        return [sum(map(text.count, distinct)) / (len(text) or 1) for text in completions]


def check_words(argument: str, words: Any) -> tuple[str, ...]:
    """Return `words` as a tuple. Raises: ValueError unless it is a list of texts that are not empty."""
    # A bare text is a sequence of texts too, but never what was meant.
    if isinstance(words, str) or not isinstance(words, Sequence) or not words:
        raise ValueError(f"{argument}={shown(words)}: a list of at least one word is allowed")
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"{argument}={shown(words)}: every word has to be a text that is not empty")
    return tuple(words)
