"""Texts in every script and normal form: what a word is, and how long a completion is."""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final, Literal, get_args

from textgym.checks import TextGymWarning, check_choice, shown

# Thai, Lao, Myanmar, Khmer, kana, Han: words in them stand one after the other without spaces.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_TEXT: Final = re.compile(f"[{_UNSPACED}]")
_IGNORED: Final = re.compile("[\u00ad\ufe0e\ufe0f]")  # soft hyphens, and how an emoji is to be drawn
_JOINER: Final = "\u200d"


def composed(text: str) -> str:
    """The text with letters and their marks composed (NFC), in which equal texts are equal strings."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def folded(text: str, ignore_case: bool) -> str:
    """The text in the form in which words are compared: compatible characters (NFKC) are equal, cases on request."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _IGNORED.sub("", text))
    if not ignore_case:
        return text
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text.casefold())


def is_whole(text: str, start: int, end: int) -> bool:
    """Whether no letter, digit, underscore or mark goes on with text[start:end], on neither side.

    At an end that is none of these anything may follow, and in scripts without spaces any letter.
    """
    return not (_joins(text[start - 1 : start], text[start]) or _joins(text[end - 1], text[end : end + 1]))


def _joins(before: str, after: str) -> bool:
    """Whether one character goes on with another; "" is the edge of the text."""
    if not before or not after:
        return False
    if after == _JOINER or before == _JOINER or _is_mark(after):
        return True
    return _in_word(before) and _in_word(after)


def _in_word(letter: str) -> bool:
    if letter.isascii():
        return letter.isalnum() or letter == "_"
    return (letter.isalnum() or _is_mark(letter)) and not is_unspaced(letter)


def _is_mark(letter: str) -> bool:
    # The marks of emoji are modifiers of skin.
    return not letter.isascii() and (
        unicodedata.category(letter)[0] == "M" or "\U0001f3fb" <= letter <= "\U0001f3ff"
    )


def words(text: str) -> list[str]:
    """The words of a text for counting overlap: letters, digits and marks in lower case.

    In scripts without spaces every letter with its marks is one. Of an ASCII text they are [a-z0-9]+.
    """
    if text.isascii():
        return re.findall("[a-z0-9]+", text.lower())
    found: list[str] = []
    inside = False
    for letter in folded(text, ignore_case=True):
        if inside and (_is_mark(letter) or letter == _JOINER):
            found[-1] += letter
        elif not letter.isalnum():
            inside = False
        elif inside and not is_unspaced(letter) and not is_unspaced(found[-1][0]):
            found[-1] += letter
        else:
            found.append(letter)
            inside = True
    return found


def is_unspaced(text: str) -> bool:
    """Whether some of a text is in a script without spaces between words."""
    return not text.isascii() and _UNSPACED_TEXT.search(text) is not None


@functools.cache
def warn_once(message: str) -> None:
    """Warn of what a reward cannot read; once a process. Warns: TextGymWarning."""
    warnings.warn(message, TextGymWarning, stacklevel=3)


Unit = Literal["words", "characters", "tokens"]


def check_unit(unit: Any) -> None:
    """Raise ValueError unless `unit` is one of `Unit`."""
    check_choice("unit", unit, get_args(Unit))


def lengths(unit: Unit, completions: list[str], columns: Mapping[str, Any]) -> list[int]:
    """Return the length of each completion; in tokens the stop id counts too, in characters composed ones count once.

    Raises: ValueError if tokens are to be counted and the column `completion_ids` is missing.
    """
    if unit == "characters":
        return [len(composed(text)) for text in completions]
    if unit == "words":
        return [len(spaced_words(text)) for text in completions]
    return list(map(len, token_ids(columns)))


def spaced_words(text: str) -> list[str]:
    """Return what white space separates, composed. Warns: TextGymWarning, once, of a script without spaces."""
    if is_unspaced(text):
        warn_once(
            "unit='words' counts what spaces separate, which in Han, kana, Thai, Lao, Khmer and Myanmar texts are "
            "no words; unit='characters' is made for them"
        )
    return composed(text).split()


def check_stop_ids(ids: Any) -> tuple[int, ...]:
    """Return the ids that end a text. Raises: ValueError unless they are a list of at least one token id."""
    good = isinstance(ids, Sequence | Set) and not isinstance(ids, str) and len(ids) > 0
    if not good or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"stop_ids={shown(ids)}: a list of at least one token id is allowed")
    return tuple(ids)


def token_ids(columns: Mapping[str, Any]) -> list[list[int]]:
    """Return the column `completion_ids`. Raises: ValueError if it is missing."""
    if "completion_ids" not in columns:
        raise ValueError(
            f"columns={sorted(columns)}: 'completion_ids' is needed by a reward that reads tokens"
        )
    ids: list[list[int]] = columns["completion_ids"]
    return ids
