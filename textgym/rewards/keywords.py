"""Keywords: pays for completions that use given words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from textgym.messages import check_choice
from textgym.rewards.base import NamedReward
from textgym.rewards.calling import check_batch
from textgym.rewards.data_columns import check_column, read_column
from textgym.rewards.rules import check_words

Mode = Literal["share", "all"]
Finder = Callable[[str], Any]


@dataclass(frozen=True)
class Keywords(NamedReward):
    """Pays for using words as whole words, in any order. Range [0, 1].

    A word is whole where no letter, digit or underscore goes on with it: "cat" is in "The cat!", not in "cats"
    or "concat"; at an end that is none of these ("c++") anything may follow. Phrases ("the hat") are allowed.
    `contains_all` finds words inside of other words too.

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
                f"words={self.words!r}, column={self.column!r}: exactly one of them is to be given"
            )
        if self.words is not None:
            object.__setattr__(self, "words", check_words("words", self.words))
        else:
            check_column(self.column)
        check_choice("mode", self.mode, get_args(Mode))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Score every completion. Raises: ValueError if the column is missing, too short or has a row without words."""
        texts = [text.casefold() for text in completions] if self.ignore_case else completions
        if self.words is not None:
            finders = self._finders(self.words)
            values: list[float | None] = [_share(text, finders) for text in texts]
        else:
            rows = self._rows(columns)
            check_batch(prompts, completions, {str(self.column): rows})
            values = [
                None if finders is None else _share(text, finders)
                for text, finders in zip(texts, rows, strict=True)
            ]
        if self.mode == "share":
            return values
        return [None if value is None else float(value == 1.0) for value in values]

    def _rows(self, columns: dict[str, Any]) -> list[list[tuple[str, Finder]] | None]:
        assert self.column is not None
        listed = read_column(columns, self.column, self.name)
        argument = f"column {self.column!r}, row"
        return [None if words is None else self._finders(check_words(argument, words)) for words in listed]

    def _finders(self, words: Sequence[str]) -> list[tuple[str, Finder]]:
        return [_finder(word.casefold() if self.ignore_case else word) for word in words]


def _share(text: str, finders: list[tuple[str, Finder]]) -> float:
    """The share of the words that are in the text; most texts are told by the quick search alone."""
    return sum([word in text and find(text) is not None for word, find in finders]) / len(finders)


@lru_cache(maxsize=4096)
def _finder(word: str) -> tuple[str, Finder]:
    """A word, and a search for it as a whole word; fixed text, so its time is linear."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return word, re.compile(f"{before}{re.escape(word)}{after}").search
