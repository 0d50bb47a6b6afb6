"""Rewards by other packages' metrics: BLEU, chrF, ROUGE and VADER's sentiment."""

from __future__ import annotations

import functools
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from textgym.checks import check_count, check_flag, not_one_of, shown
from textgym.rewards.base import Column, NamedReward, Rebuilt, Values, check_column, import_extra, read_column
from textgym.rewards.words import composed, is_unspaced, warn_once, words

Variant = Literal["rouge1", "rouge2", "rougeL"]
Measure = Literal["precision", "recall", "fmeasure"]
Overlap = Callable[[str, list[str]], float]
"""Pay the overlap of a text with its references, in [0, 1]."""


class _Overlap(Rebuilt, NamedReward, ABC):
    """Compares each completion with the texts of the data column `column`."""

    column: str
    maximum = 1.0

    def __post_init__(self) -> None:
        check_column(self.column)
        self._overlap()

    @abstractmethod
    def _overlap(self) -> Overlap:
        """Check the other parameters and return what compares; cached outside, so that rewards stay small to pickle."""

    def _visible(self, references: list[str]) -> list[str]:
        """Return the references in which there is something to compare with."""
        return references

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion; None where its reference is None, or nothing in it can be compared with.

        Raises: ValueError if the column is missing, or holds anything but a text, texts or None.
        """
        overlap, values = self._overlap(), Values()
        for text, row in zip(completions, read_column(columns, self.column, self.name), strict=True):
            references = [] if row is None else self._visible(self._texts(row))
            values.append(overlap(composed(text), references) if references else None)
        return values

    def _texts(self, row: object) -> list[str]:
        texts = [row] if isinstance(row, str) else row
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(
                f"column {self.column!r} holds {row!r:.80}; a text, a list of at least one, or None is allowed"
            )
        return [composed(text) for text in texts]


@dataclass(frozen=True)
class Bleu(_Overlap):
    """Pays sacrebleu's sentence-level BLEU / 100, with effective order and exponential smoothing. Range [0, 1].

    Args:
        column: data column with a reference text or a list of them; None abstains.
        lowercase: ignore case.
    Warns: TextGymWarning, once, of a reference in a script without spaces.
    Raises: ValueError for a bad parameter; ModuleNotFoundError without the package sacrebleu.
    Source: Papineni et al. (2002); Post (2018), arXiv:1804.08771.
    """

    column: str = "reference"
    lowercase: bool = False
    name = "bleu"

    def _overlap(self) -> Overlap:
        check_flag("lowercase", self.lowercase)
        return _sacrebleu("BLEU", lowercase=self.lowercase, effective_order=True)

    def _visible(self, references: list[str]) -> list[str]:
        if any(map(is_unspaced, references)):
            warn_once(
                "reward 'bleu' counts what spaces separate, which in Han, kana, Thai, Lao, Khmer and Myanmar texts are "
                "no words; 'chrf' and 'rouge' read them"
            )
        return references


@dataclass(frozen=True)
class Chrf(_Overlap):
    """Pays sacrebleu's sentence-level chrF / 100: the F-score of character n-grams. Range [0, 1].

    Args:
        column: data column with a reference text or a list of them (the best counts); None abstains.
        word_order: 0: chrF; 2: chrF++, with word n-grams up to 2.
        beta: how much more recall weighs than precision, 1 or more.
    Raises: ValueError for a bad parameter; ModuleNotFoundError without the package sacrebleu.
    Source: Popović (2015), W15-3049.
    """

    column: str = "reference"
    word_order: int = 0
    beta: int = 2
    name = "chrf"

    def _overlap(self) -> Overlap:
        check_count("word_order", self.word_order, 0)
        check_count("beta", self.beta)
        return _sacrebleu("CHRF", word_order=self.word_order, beta=self.beta)


@dataclass(frozen=True)
class Rouge(_Overlap):
    """Pays ROUGE as rouge_score computes it, on lower-case letters and digits. Range [0, 1].

    Words are letters, digits and marks of any script; where a script has no spaces between words, every letter is one.
    A reference without a word (of emoji, say) abstains, and the first one warns.

    Args:
        variant: "rouge1" and "rouge2": n-grams; "rougeL": longest common subsequence.
        measure: "precision", "recall" or "fmeasure".
        stem: strip English suffixes first (Porter's).
        column: data column with a reference text or a list of them (the one with the best F-measure counts);
            None abstains.
    Raises: ValueError for a bad parameter; ModuleNotFoundError without the package rouge_score.
    Source: Lin (2004), W04-1013.
    """

    variant: Variant = "rougeL"
    measure: Measure = "fmeasure"
    stem: bool = False
    column: str = "reference"
    name = "rouge"

    def _overlap(self) -> Overlap:
        for name, allowed in (("variant", get_args(Variant)), ("measure", get_args(Measure))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(not_one_of(name, value, allowed))
        check_flag("stem", self.stem)
        return _rouge(self.variant, self.measure, self.stem)

    def _visible(self, references: list[str]) -> list[str]:
        visible = [reference for reference in references if words(reference)]
        if visible or not any(reference.strip() for reference in references):
            return visible or references
        warn_once("reward 'rouge' sees no word in a reference of punctuation or emoji, and abstains there")
        return []


@functools.cache
def _sacrebleu(metric: str, **options: bool | int) -> Overlap:
    """Return a sentence-level metric of sacrebleu, from 0..100 to 0..1; its perfect score is 100.00000000000004."""
    module = import_extra("sacrebleu.metrics", f"reward {metric.lower()!r}")
    score = getattr(module, metric)(**options).sentence_score
    return lambda text, references: min(score(text, references).score / 100.0, 1.0)


@functools.cache
def _rouge(variant: Variant, measure: Measure, stem: bool) -> Overlap:
    """Return ROUGE against the reference that fits best."""
    scorer = import_extra("rouge_score.rouge_scorer", "reward 'rouge'").RougeScorer([variant], tokenizer=_Words(stem))
    return lambda text, references: float(getattr(scorer.score_multi(references, text)[variant], measure))


class _Words:
    """The tokenizer that `RougeScorer` is given; of ASCII texts it gives what the package's own does."""

    def __init__(self, stem: bool) -> None:
        self._stem = import_extra("nltk.stem.porter", "reward 'rouge'").PorterStemmer().stem if stem else None

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        if self._stem is None:
            return found
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in found]


TARGETS: Final = {"positive": 1.0, "negative": -1.0}


@dataclass(frozen=True)
class Sentiment(Rebuilt, NamedReward):
    """Pays 1 - |compound - target| / 2, where compound is VADER's score of the completion in [-1, 1].

    Range [0, 1]. With target "positive" that is (1 + compound) / 2, with "negative" (1 - compound) / 2. A text
    without any word of the lexicon, the empty one too, has compound score 0 and so earns 0.5 with either.

    Args:
        target: "positive" (1), "negative" (-1), or a number from -1 to 1.

    VADER reads English: a text with letters of which none is Latin counts as neutral, and the first one warns.

    Raises: ValueError for another target; ModuleNotFoundError without the package vaderSentiment.
    Source: Hutto and Gilbert (2014), VADER, ICWSM.
    """

    target: str | float = "positive"
    name = "sentiment"
    maximum = 1.0

    def __post_init__(self) -> None:
        target = TARGETS.get(self.target, self.target) if isinstance(self.target, str) else self.target
        if isinstance(target, str):
            raise ValueError(not_one_of("target", target, TARGETS))
        if isinstance(target, bool) or not isinstance(target, int | float) or not -1 <= target <= 1:
            raise ValueError(f"target={shown(target)}: 'positive', 'negative' or a number from -1 to 1 is allowed")
        _polarity()

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        aim = TARGETS[self.target] if isinstance(self.target, str) else self.target
        scores = _polarity()
        texts = [composed(text) for text in completions]
        for text in texts:
            letters = "" if text.isascii() else [letter for letter in text if letter.isalpha()]
            if letters and not any(unicodedata.name(each, "").startswith("LATIN") for each in letters):
                warn_once("reward 'sentiment' reads English; a text without a Latin letter counts as neutral")
        return [1.0 - abs(scores(text)["compound"] - aim) / 2.0 for text in texts]


@functools.cache
def _polarity() -> Callable[[str], dict[str, float]]:
    """Return VADER with its lexicon, which is read once a process."""
    analyzer = import_extra("vaderSentiment.vaderSentiment", "reward 'sentiment'").SentimentIntensityAnalyzer()
    scores: Callable[[str], dict[str, float]] = analyzer.polarity_scores
    return scores
