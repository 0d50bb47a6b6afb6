r"""Regular expressions spelled out for a mask: every class as the characters that re2, which rewards run on, has in it.

Engines differ in what `\s`, `\w`, `\p{L}` or `[a&&b]` stand for, and in the version of Unicode that they know. So
re2 is asked which characters each of them matches, and the grammar is made of these.
"""

from __future__ import annotations

import functools
import re
from typing import Final

from textgym.rewards.extras import import_extra
from textgym.rewards.regex import Regex, pattern_tokens

_OPERATORS: Final = frozenset(".|)*+?^$")
_EDGES: Final = {r"\A": "^", r"\z": "$"}
_NO_NUL: Final = r'U+0000 is allowed in classes alone that have " and \ in them too'


def spelled_out(pattern: str, argument: str = "pattern", *, quoted: bool = False) -> str:
    r"""A pattern that means the same to every engine, made of literals, ranges, groups and repetitions.

    Args:
        pattern: in the syntax of re2; `(?i)` at its start only.
        argument: what it is called in messages.
        quoted: leave U+0000 out of classes without `"` or `\`. A mask writes such strings as JSON, and llguidance
            quotes a set of all control characters as if it had these two in it.

    Raises: ValueError for a pattern that re2 does not take, or that cannot be spelled out.
    """
    Regex(pattern, argument=argument)
    flags = re.match(r"\(\?([a-zA-Z]*)i([a-zA-Z]*)\)", pattern)
    rest = pattern[flags.end() :] if flags else pattern
    kept = "".join(flags.groups()) if flags else ""
    before = f"(?{kept})" if kept else ""
    try:
        return before + "".join(
            _spelled(kind, token, flags is not None, quoted) for kind, token in pattern_tokens(rest)
        )
    except ValueError as error:
        raise ValueError(f"{argument}={pattern!r}: cannot be made a grammar ({error})") from error


def _spelled(kind: str, token: str, ignore_case: bool, quoted: bool) -> str:
    if kind == "set":
        return _class(f"(?i:{token})" if ignore_case else token, quoted)
    if kind == "quoted" or (kind == "plain" and token not in _OPERATORS):
        if quoted and "\0" in token:
            raise ValueError(_NO_NUL)
        letters = map(_escaped, token)
        return "".join([_class(f"(?i:{letter})", quoted) for letter in letters] if ignore_case else letters)
    if kind == "group":
        if re.match(r"\(\?[a-zA-Z-]*i", token) and "<" not in token:
            raise ValueError("(?i) is allowed at the start of a pattern alone")
        return "(" if "<" in token else token
    return _EDGES.get(token, token)


def _class(token: str, quoted: bool) -> str:
    """The characters that a token stands for, as a class."""
    ranges = matched_ranges(token)
    if not ranges:
        raise ValueError(f"no character matches {token}")
    if quoted and not all(any(a <= ord(letter) <= b for a, b in ranges) for letter in '"\\'):
        ranges = tuple((max(a, 1), b) for a, b in ranges if b > 0)
        if not ranges:
            raise ValueError(_NO_NUL)
    return "[" + "".join(f"{_escaped(chr(a))}-{_escaped(chr(b))}" for a, b in ranges) + "]"


def _escaped(letter: str) -> str:
    return letter if letter.isascii() and letter.isalnum() else rf"\x{{{ord(letter):X}}}"


@functools.lru_cache(maxsize=1024)
def matched_ranges(token: str) -> tuple[tuple[int, int], ...]:
    """The code points, as ranges with both ends, that an expression of one character matches on re2."""
    re2 = import_extra("re2", "pattern")
    text = _every_character()
    return tuple(
        # What is cut in two at the edge of a window is passed over.
        (
            ord(text[found.start() : found.start() + 4].decode(errors="ignore")[0]),
            ord(text[found.end() - 4 if found.end() > 4 else 0 : found.end()].decode(errors="ignore")[-1]),
        )
        for found in re2.finditer(f"(?:{token})+", text)
    )


@functools.cache
def _every_character() -> bytes:
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode()
