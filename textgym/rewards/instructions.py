"""Instructions that a program can check: how much of what, in which letters, what begins and ends a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, cast, get_args

from textgym.checks import check_choice, check_count, check_flag, not_one_of, shown
from textgym.rewards.base import Column, NamedReward, Values, check_column, read_column
from textgym.rewards.calling import Inner
from textgym.rewards.rules import Keywords, Mode, check_words
from textgym.rewards.words import composed

Counted = Literal["words", "characters", "sentences", "paragraphs", "bullets", "placeholders"]
Letters = Literal["lower", "upper"]
_END: Final = re.compile(r"(?<=[.!?])[\"')\]\u201d\u2019]*\s+|\n+|(?<=[\u3002\uff01\uff1f])")
_BULLET: Final = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d+[.)])[ \t]+\S", re.MULTILINE)
_PLACEHOLDER: Final = re.compile(r"\[[^\[\]\n]+\]")
_COUNTS: Final[dict[Counted, Callable[[str], int]]] = {
    "words": lambda text: _with_letters(text.split()),
    "characters": len,
    "sentences": lambda text: _with_letters(_END.split(text)),
    "paragraphs": lambda text: _with_letters(re.split(r"\n\s*\n", text)),
    "bullets": lambda text: len(_BULLET.findall(text)),
    "placeholders": lambda text: len(_PLACEHOLDER.findall(text)),
}


def _with_letters(parts: Sequence[str]) -> int:
    return sum(any(map(str.isalnum, part)) for part in parts)


@dataclass(frozen=True)
class Amount(NamedReward):
    """Pays 1 for a completion with at least `least` and at most `most` of something, else 0.

    Args:
        of: "words" (separated by white space), "characters" (composed), "sentences" (ended by a line, or by . ! ?
            before white space, so that `Dr. Who` is two), "paragraphs" (separated by empty lines), "bullets" (lines
            that begin with -, *, +, a bullet, `1.` or `1)`) or "placeholders" (as [name]). Words, sentences and
            paragraphs without a letter or digit do not count.
        least: 0 or more. most: None for any number; at least `least`.
    Raises: ValueError for a number out of range, or another `of`.
    """

    of: Counted
    least: int = 0
    most: int | None = None
    name = "amount"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_choice("of", self.of, get_args(Counted))
        check_count("least", self.least, 0)
        if self.most is not None:
            check_count("most", self.most, self.least)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        counts = [_COUNTS[self.of](composed(text)) for text in completions]
        return [float(self.least <= count and (self.most is None or count <= self.most)) for count in counts]


@dataclass(frozen=True)
class Forbidden(NamedReward):
    """Pays 1 for a completion without any of `words`, else 0; see `Keywords` for what counts as a word.

    Args:
        words: texts, at least one; marks are allowed too, as ",".
        ignore_case: whether "cat" is in "Cat".
    Raises: ValueError for what is no list of words, or an `ignore_case` that is no bool.
    """

    words: Sequence[str]
    ignore_case: bool = True
    name = "forbidden"
    maximum = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", check_words("words", self.words))
        assert self._found  # a bad parameter is refused now

    @property
    def _found(self) -> Keywords:
        return Keywords(words=self.words, ignore_case=self.ignore_case)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        return [float(not share) for share in self._found(prompts, completions)]


@dataclass(frozen=True)
class LetterCase(NamedReward):
    """Pays 1 for a completion whose letters all have the given case, else 0; 0 without cased letters.

    Args:
        case: "lower" or "upper".
    Raises: ValueError for another `case`.
    """

    case: Letters
    name = "letter_case"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_choice("case", self.case, get_args(Letters))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        return [float(text.islower() if self.case == "lower" else text.isupper()) for text in completions]


@dataclass(frozen=True)
class Edges(NamedReward):
    """Pays 1 for a completion that begins with `start` and ends with `end`, ignoring outer white space, else 0.

    Args:
        start, end: texts, one of them at least not empty.
        ignore_case: whether "Yes" begins "yes, it is".
    Raises: ValueError where both are empty, one is no text or white space alone, or for a bad `ignore_case`.
    """

    start: str = ""
    end: str = ""
    ignore_case: bool = False
    name = "edges"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_flag("ignore_case", self.ignore_case)
        for name in ("start", "end"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={shown(getattr(self, name))}: a text is allowed")
            if getattr(self, name) and not self._plain(getattr(self, name)):
                raise ValueError(
                    f"{name}={shown(getattr(self, name))}: a text that is more than white space is allowed"
                )
        if not (self.start or self.end):
            raise ValueError("start='', end='': at least one of them has to be given")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> list[float]:
        """Score every completion."""
        start, end = self._plain(self.start), self._plain(self.end)
        texts = [self._plain(text) for text in completions]
        return [float(text.startswith(start) and text.endswith(end)) for text in texts]

    def _plain(self, text: str) -> str:
        text = composed(text.strip())
        return text.casefold() if self.ignore_case else text


KINDS: Final = ("amount", "contains_all", "edges", "forbidden", "json_schema", "keywords", "letter_case", "pattern")
"""The rewards that an instruction may name: rules of the text alone, so that data cannot name code."""


@dataclass(frozen=True)
class Instructions(NamedReward):
    """Pays for following a list of instructions. Range [0, 1].

    An instruction is the spec of a reward of `KINDS`, as {"name": "amount", "of": "words", "most": 50}; it is followed
    where that reward pays 1.

    Args:
        instructions: the same for every prompt; None: they come from `column`.
        column: data column with a list of instructions for every prompt; None there abstains.
        mode: "share": the share of the instructions that is followed; "all": 1 for all of them, else 0.
    Raises: ValueError for another `mode`, or what is no list of instructions.
    """

    instructions: Sequence[Mapping[str, Any]] | None = None
    column: str = "instructions"
    mode: Mode = "share"
    name = "instructions"
    maximum = 1.0
    _rules: tuple[Inner, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        check_column(self.column)
        check_choice("mode", self.mode, get_args(Mode))
        if self.instructions is not None:
            object.__setattr__(self, "_rules", _rules(self.instructions, "instructions"))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing or has a row that is no instructions."""
        if self._rules:
            return [self._pay(self._rules, prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        asked = read_column(columns, self.column, self.name)
        argument = f"column {self.column!r}, row"
        return [
            None if own is None else self._pay(_rules(own, argument), prompt, text)
            for prompt, text, own in zip(prompts, completions, asked, strict=True)
        ]

    def _pay(self, rules: Sequence[Inner], prompt: str, text: str) -> float:
        followed = [rule.values([prompt], [text], {}) == [1.0] for rule in rules]
        return sum(followed) / len(followed) if self.mode == "share" else float(all(followed))


def _rules(instructions: object, argument: str) -> tuple[Inner, ...]:
    """Return the rewards of a list of instructions. Raises: ValueError for what is none."""
    if isinstance(instructions, str | Mapping) or not isinstance(instructions, Sequence) or not instructions:
        raise ValueError(f"{argument}={shown(instructions)}: a list of at least one instruction is allowed")
    return tuple(_rule(each, argument) for each in instructions)


def _rule(spec: object, argument: str) -> Inner:
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    if not isinstance(spec, Mapping) or name not in KINDS:
        raise ValueError(f"{argument}: {not_one_of('instruction', name, KINDS)}")
    try:
        # parquet has every key in every row, None where it is not given
        return _made(json.dumps({key: value for key, value in spec.items() if value is not None}, sort_keys=True))
    except TypeError as error:
        raise ValueError(f"{argument}={shown(spec)}: JSON values are allowed") from error


@lru_cache(maxsize=1024)
def _made(spec: str) -> Inner:
    return Inner(cast("dict[str, Any]", json.loads(spec)), "instructions")
