"""Rewards by simple rules of the text alone: words, length, repetition, stopping."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from textgym.checks import check_choice, check_count, check_flag, check_number, is_finite, shown
from textgym.rewards.base import Column, NamedReward, Values, check_column, read_column
from textgym.rewards.calling import check_batch
from textgym.rewards.words import Unit, check_stop_ids, composed, folded, is_whole, token_ids, units


@dataclass(frozen=True)
class ContainsAll(NamedReward):
    """Pays the share of `words` that occur anywhere in the completion. Range [0, 1].

    Composed and decomposed letters, and compatible ones (ligatures, full width) are equal.

    Args:
        words: texts, at least one. ignore_case: whether "cat" is in "Cat".
    Raises: ValueError for what is no list of words, or an `ignore_case` that is no bool.
    """

    words: Sequence[str]
    ignore_case: bool = False
    name = "contains_all"
    maximum = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", check_words("words", self.words))
        check_flag("ignore_case", self.ignore_case)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        words = [folded(word, self.ignore_case) for word in self.words]
        completions = [folded(text, self.ignore_case) for text in completions]
        return [sum([word in text for word in words]) / len(words) for text in completions]


@dataclass(frozen=True)
class Length(NamedReward):
    """Pays 1 for a completion of `target` units, and 1 / `width` less for each unit of difference.

    Range [0, 1].

    Args:
        target: 0 or more.
        unit: "words" (separated by white space), "characters" or "tokens" (the stop id included).
        width: above 0; None: `target`, or 1 where that is 0.
    Raises: ValueError for a number out of range, or an unknown unit.
    """

    target: int = 8
    unit: Unit = "words"
    width: float | None = None
    name = "length"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        check_count("target", self.target, 0)
        if self.width is not None and not (is_finite(self.width) and self.width > 0):
            raise ValueError(f"width={shown(self.width)}: None or a finite number above 0 is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        target, width = self.target, self.width or max(self.target, 1)
        return [max(0.0, 1.0 - abs(len(row) - target) / width) for row in units(self.unit, completions, columns)]


@dataclass(frozen=True)
class Charset(NamedReward):
    """Pays the share of the completion's characters that are among `characters`.

    Range [0, 1]; an empty completion earns 0. Letters are composed with their marks first.

    Raises: ValueError for `characters` that are empty or no text.
    """

    characters: str = "aeiou"
    name = "charset"
    maximum = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str) or not self.characters:
            raise ValueError(f"characters={shown(self.characters)}: a text that is not empty is allowed")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        distinct = sorted(set(composed(self.characters)))
        completions = [composed(text) for text in completions]
        return [sum(map(text.count, distinct)) / (len(text) or 1) for text in completions]


def check_words(argument: str, words: object) -> tuple[str, ...]:
    """Return `words` as a tuple. Raises: ValueError unless it is a list of texts, none of them empty as `folded`."""
    # A bare text is a sequence of texts too, but never what was meant.
    if isinstance(words, str) or not isinstance(words, Sequence) or not words:
        raise ValueError(f"{argument}={shown(words)}: a list of at least one word is allowed")
    if not all(isinstance(word, str) and folded(word, True) for word in words):
        raise ValueError(f"{argument}={shown(words)}: every word has to be a text with a character that can be seen")
    return tuple(words)


@dataclass(frozen=True)
class NoRepeat(NamedReward):
    """Pays 1 minus the share of the completion's n-grams that repeat an earlier one.

    Range [0, 1]: 1 where all n-grams differ. Where there are fewer than `least`, the missing ones count as
    repeated, so that silence does not pay; with `least` = 0 a text without any n-gram earns 1.

    Args:
        n: 1 or more.
        unit: what n-grams are made of: "words" (separated by white space), "characters" or "tokens" (the stop
            id included).
        least: n-grams, 0 or more.
    Raises: ValueError for a number out of range, or an unknown unit.
    """

    n: int = 2
    unit: Unit = "words"
    least: int = 0
    name = "no_repeat"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        check_count("n", self.n)
        check_count("least", self.least, 0)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        return [self._score(row) for row in units(self.unit, completions, columns)]

    def _score(self, row: Sequence[Hashable]) -> float:
        count = max(len(row) - self.n + 1, 0)
        wanted = max(count, self.least)
        if not wanted:
            return 1.0
        distinct = len(set(zip(*(row[i:] for i in range(self.n)), strict=False)))
        return distinct / wanted


@dataclass(frozen=True)
class LengthPenalty(NamedReward):
    """Pays -`per_unit` for each unit over `limit`, else 0. Range (-inf, 0].

    With a limit of L_max - L_cache tokens and 1 / L_cache for each it is DAPO's soft overlong punishment in a task with
    L_max new tokens (Yu et al. 2025, arXiv:2503.14476, eq. 13).

    Args:
        limit: 0 or more.
        per_unit: reward units, finite, 0 or more.
        unit: "tokens" (the stop id included), "words" or "characters".
    Raises: ValueError for a number out of range, or an unknown unit.
    """

    limit: int
    per_unit: float = 0.1
    unit: Unit = "tokens"
    name = "length_penalty"
    maximum = 0.0

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        check_count("limit", self.limit, 0)
        check_number("per_unit", self.per_unit, 0)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        # 0.0 - x rather than -x: nothing over the limit pays 0.0 and not -0.0
        return [0.0 - self.per_unit * max(0, len(row) - self.limit) for row in units(self.unit, completions, columns)]


@dataclass(frozen=True)
class MissingStopPenalty(NamedReward):
    """Pays -`penalty` if the last token is not in `stop_ids` (or there is no token), else 0.

    Args:
        stop_ids: token ids, at least one; a task's are `task.vocabulary.stop_ids`.
        penalty: reward units, finite, 0 or more.
    Raises: ValueError for a penalty out of range, or what is no list of token ids.
    """

    stop_ids: Sequence[int]
    penalty: float = 1.0
    name = "missing_stop"
    maximum = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_ids", check_stop_ids(self.stop_ids))
        check_number("penalty", self.penalty, 0)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        stops, missing = frozenset(self.stop_ids), 0.0 - self.penalty
        return [0.0 if len(ids) and ids[-1] in stops else missing for ids in token_ids(columns)]


Mode = Literal["share", "all"]


@dataclass(frozen=True)
class Keywords(NamedReward):
    """Pays for using given words as whole words, in any order. Range [0, 1].

    A word is whole where no letter, digit or underscore goes on with it: "cat" is in "The cat!", not in "cats"
    or "concat"; at an end that is none of these ("c++") anything may follow. Phrases ("the hat") are allowed.
    `contains_all` finds words inside other words too.

    Composed and decomposed letters, and compatible ones (ligatures, full width) are equal. In scripts without spaces
    between words (Han, kana, Thai, Lao, Khmer, Myanmar) a word is found wherever it stands.

    Args:
        words: the same for every prompt; None: they come from `column`.
        column: data column with a list of words for every prompt; None there abstains.
        mode: "share": the share of the words that is used; "all": 1 for all of them, else 0.
        ignore_case: whether "cat" is in "Cat".
    Raises: ValueError unless exactly one of `words` and `column` is given, or for what is no list of words.
    """

    words: Sequence[str] | None = None
    column: str | None = None
    mode: Mode = "share"
    ignore_case: bool = True
    name = "keywords"
    maximum = 1.0

    def __post_init__(self) -> None:
        if (self.words is None) == (self.column is None):
            raise ValueError(
                f"words={shown(self.words)}, column={shown(self.column)}: exactly one of them is to be given"
            )
        if self.words is not None:
            object.__setattr__(self, "words", check_words("words", self.words))
        else:
            check_column(self.column)
        check_flag("ignore_case", self.ignore_case)
        check_choice("mode", self.mode, get_args(Mode))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing, too short or has a row without words."""
        texts = [folded(text, self.ignore_case) for text in completions]
        if self.words is not None:
            rows: list[list[str] | None] = [self._folded(self.words)] * len(texts)
        else:
            listed = read_column(columns, str(self.column), self.name)
            argument = f"column {self.column!r}, row"
            rows = [None if row is None else self._folded(check_words(argument, row)) for row in listed]
            check_batch(prompts, completions, {str(self.column): rows})
        return [None if words is None else self._score(text, words) for text, words in zip(texts, rows, strict=True)]

    def _folded(self, words: Sequence[str]) -> list[str]:
        return [folded(word, self.ignore_case) for word in words]

    def _score(self, text: str, words: list[str]) -> float:
        # Most texts are told by the quick search alone.
        share = sum([word in text and _has_whole(text, word) for word in words]) / len(words)
        return share if self.mode == "share" else float(share == 1.0)


def _has_whole(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        if is_whole(text, start, start + len(word)):
            return True
        start = text.find(word, start + 1)
    return False
