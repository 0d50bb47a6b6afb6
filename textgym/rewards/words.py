"""Texts in every script and normal form: what a word is, and how long a completion is."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Hashable, Sequence, Set
from typing import Final, Literal, cast

from textgym.checks import TextGymWarning, shown
from textgym.rewards.base import Columns

# Thai, Lao, Myanmar, Khmer, kana, Han: words in them stand one after the other without spaces.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_TEXT: Final = re.compile(f"[{_UNSPACED}]")
_IGNORED: Final = re.compile("[\u00ad\ufe0e\ufe0f]")  # soft hyphens, and how an emoji is to be drawn
_JOINER: Final = "\u200d"


def composed(text: str) -> str:
    """Return a text with letters and their marks composed (NFC), in which equal texts are equal strings."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def folded(text: str, ignore_case: bool) -> str:
    """Return a text as words are compared: compatible characters (NFKC) are equal, on request cases too."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _IGNORED.sub("", text))
    if not ignore_case:
        return text
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text.casefold())


def is_whole(text: str, start: int, end: int) -> bool:
    """Return whether text[start:end] is whole: no letter, digit, underscore or mark goes on with it on either side.

    At an end that is none of these anything may follow, and in scripts without spaces any letter.
    """
    return not (_joins(text[start - 1 : start], text[start]) or _joins(text[end - 1], text[end : end + 1]))


def _joins(before: str, after: str) -> bool:
    """Return whether a character continues the word of the one before; "" is the edge of the text."""
    if not before or not after:
        return False
    return _JOINER in (before, after) or _is_mark(after) or (_in_word(before) and _in_word(after))


def _in_word(letter: str) -> bool:
    if letter.isascii():
        return letter.isalnum() or letter == "_"
    return (letter.isalnum() or _is_mark(letter)) and not is_unspaced(letter)


def _is_mark(letter: str) -> bool:
    # The marks of emoji are modifiers of skin.
    return not letter.isascii() and (unicodedata.category(letter)[0] == "M" or "\U0001f3fb" <= letter <= "\U0001f3ff")


def words(text: str) -> list[str]:
    """Return the words of a text for counting overlap: letters, digits and marks in lower case.

    In scripts without spaces every letter with its marks is one. Of an ASCII text they are [a-z0-9]+.
    """
    if text.isascii():
        return re.findall("[a-z0-9]+", text.lower())
    found: list[str] = []
    in_word = False
    for letter in folded(text, ignore_case=True):
        if in_word and (_is_mark(letter) or letter == _JOINER):
            found[-1] += letter
        elif not letter.isalnum():
            in_word = False
        elif in_word and not is_unspaced(letter) and not is_unspaced(found[-1][0]):
            found[-1] += letter
        else:
            found.append(letter)
            in_word = True
    return found


def is_unspaced(text: str) -> bool:
    """Return whether some of a text is in a script without spaces between words."""
    return not text.isascii() and _UNSPACED_TEXT.search(text) is not None


_SAID: Final[set[str]] = set()
_NO_WORDS: Final = (
    "unit='words' counts what spaces separate, which in Han, kana, Thai, Lao, Khmer and Myanmar texts are "
    "no words; unit='characters' is made for them"
)


def warn_once(message: str) -> None:
    """Warn, once a process, about what a reward cannot read. Warns: TextGymWarning."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, TextGymWarning, stacklevel=3)


Unit = Literal["words", "characters", "tokens"]


def units(unit: Unit, completions: list[str], columns: Columns) -> Sequence[Sequence[Hashable]]:
    """Return what each completion is made of: tokens (the stop id too), composed characters, or words between spaces.

    Raises: ValueError if tokens are asked for and the column `completion_ids` is missing.
    Warns: TextGymWarning, once, of words in a script without spaces.
    """
    if unit == "tokens":
        return token_ids(columns)
    if unit == "characters":
        return [composed(text) for text in completions]
    if _NO_WORDS not in _SAID and any(map(is_unspaced, completions)):
        warn_once(_NO_WORDS)
    return [composed(text).split() for text in completions]


def check_stop_ids(ids: object) -> tuple[int, ...]:
    """Return the ids that end a text. Raises: ValueError unless they are a list of at least one token id."""
    listed = tuple(ids) if isinstance(ids, Sequence | Set) and not isinstance(ids, str) else ()
    if not listed or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in listed):
        raise ValueError(f"stop_ids={shown(ids)}: a list of at least one token id is allowed")
    return listed


def token_ids(columns: Columns) -> Sequence[Sequence[int]]:
    """Return the column `completion_ids`. Raises: ValueError if it is missing."""
    if "completion_ids" not in columns:
        raise ValueError(f"columns={sorted(columns)}: 'completion_ids' is needed by a reward that reads tokens")
    return cast("Sequence[Sequence[int]]", columns["completion_ids"])
