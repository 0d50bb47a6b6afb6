"""A reward for the sentiment of a text, by the VADER lexicon."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any, Final

from textgym.messages import not_one_of, shown
from textgym.rewards.base import NamedReward
from textgym.rewards.extras import Rebuilt, import_extra
from textgym.rewards.scripts import composed, warn_once

TARGETS: Final = {"positive": 1.0, "negative": -1.0}


@dataclass(frozen=True)
class Sentiment(Rebuilt, NamedReward):
    """Pays 1 - |compound - target| / 2 for VADER's compound score, in [-1, 1], of the completion.

    Range [0, 1]. With target "positive" that is (1 + compound) / 2, with "negative" (1 - compound) / 2. A text
    without any word of the lexicon, the empty one too, has compound score 0 and so earns 0.5 with either.

    Args:
        target: "positive" (1), "negative" (-1), or a number from -1 to 1.

    VADER reads English: a text with letters of which none is Latin counts as neutral, and the first one warns.

    Raises: ValueError for another target; ModuleNotFoundError without the package vaderSentiment.
    Source: Hutto and Gilbert (2014), VADER, ICWSM; English texts.
    """

    target: str | float = "positive"
    name = "sentiment"
    maximum = 1.0

    def __post_init__(self) -> None:
        target = self.target
        if isinstance(target, str) and target not in TARGETS:
            raise ValueError(not_one_of("target", target, TARGETS))
        if not isinstance(target, str) and (
            isinstance(target, bool) or not isinstance(target, int | float) or not -1 <= target <= 1
        ):
            raise ValueError(
                f"target={shown(target)}: 'positive', 'negative' or a number from -1 to 1 is allowed"
            )
        _analyzer()

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        aim = TARGETS[self.target] if isinstance(self.target, str) else self.target
        scores = _analyzer().polarity_scores
        texts = [composed(text) for text in completions]
        if any(not text.isascii() and _has_no_latin(text) for text in texts):
            warn_once("reward 'sentiment' reads English; a text without a Latin letter counts as neutral")
        return [1.0 - abs(scores(text)["compound"] - aim) / 2.0 for text in texts]


def _has_no_latin(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and not any(unicodedata.name(letter, "").startswith("LATIN") for letter in letters)


@functools.cache
def _analyzer() -> Any:
    """The lexicon, read once a process; rewards stay small to pickle without it."""
    return import_extra("vaderSentiment.vaderSentiment", "sentiment").SentimentIntensityAnalyzer()
