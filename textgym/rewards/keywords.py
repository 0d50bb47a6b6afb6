"""Keywords: pays for completions that use given words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from textgym.messages import check_choice, check_flag, shown
from textgym.rewards.base import NamedReward
from textgym.rewards.calling import check_batch
from textgym.rewards.data_columns import check_column, read_column
from textgym.rewards.rules import check_words
from textgym.rewards.scripts import folded, is_whole

Mode = Literal["share", "all"]


@dataclass(frozen=True)
class Keywords(NamedReward):
    """Pays for using words as whole words, in any order. Range [0, 1].

    A word is whole where no letter, digit or underscore goes on with it: "cat" is in "The cat!", not in "cats"
    or "concat"; at an end that is none of these ("c++") anything may follow. Phrases ("the hat") are allowed.
    `contains_all` finds words inside of other words too.

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

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Score every completion. Raises: ValueError if the column is missing, too short or has a row without words."""
        texts = [folded(text, self.ignore_case) for text in completions]
        if self.words is not None:
            wanted = self._folded(self.words)
            values: list[float | None] = [_share(text, wanted) for text in texts]
        else:
            rows = self._rows(columns)
            check_batch(prompts, completions, {str(self.column): rows})
            values = [
                None if wanted is None else _share(text, wanted)
                for text, wanted in zip(texts, rows, strict=True)
            ]
        if self.mode == "share":
            return values
        return [None if value is None else float(value == 1.0) for value in values]

    def _rows(self, columns: dict[str, Any]) -> list[list[str] | None]:
        assert self.column is not None
        listed = read_column(columns, self.column, self.name)
        argument = f"column {self.column!r}, row"
        return [None if words is None else self._folded(check_words(argument, words)) for words in listed]

    def _folded(self, words: Sequence[str]) -> list[str]:
        return [folded(word, self.ignore_case) for word in words]


def _share(text: str, words: list[str]) -> float:
    """The share of the words that are in the text; most texts are told by the quick search alone."""
    return sum([word in text and _has_whole(text, word) for word in words]) / len(words)


def _has_whole(text: str, word: str) -> bool:
    start = text.find(word)
    while start >= 0:
        if is_whole(text, start, start + len(word)):
            return True
        start = text.find(word, start + 1)
    return False
