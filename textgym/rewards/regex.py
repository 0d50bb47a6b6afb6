"""Regular expressions in linear time, by google-re2."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, get_args

from textgym.messages import check_choice, check_flag, shown
from textgym.rewards.extras import import_extra

Mode = Literal["full", "search"]

# What re2 writes in its errors -> what its user calls it, and what to do instead.
_CONSTRUCTS: Final = (
    (r"\(\?<[=!]", "lookbehind"),
    (r"\(\?[=!]", "lookahead"),
    (r"\(\?P=|\\[1-9]|\\[gk][<{']", "a backreference"),
    (r"\(\?>", "an atomic group"),
    (r"\(\?\(", "a conditional group"),
    (r"\(\?#", "a comment"),
    (r"\(\?(?:R|[0-9]+|&\w+|P>\w+)\)", "recursion"),
    (r"[*+?}]\+", "a possessive repetition"),
    (r"\\Z", r"\Z (write \z)"),
)

# Of a pattern that re2 takes: every token is a set of characters, literal text, a group's start, an edge, a count, or
# one plain character, which may be an operator.
_TOKEN: Final = re.compile(
    r"""\\Q(?P<quoted>.*?)(?:\\E|\Z)
    | (?P<edge>\\[bBAz])
    | (?P<set>\\[pP](?:\{[^}]*\}|.) | \\x(?:\{[^}]*\}|..) | \\[0-7]{1,3} | \\.
        | \[\^?\]?(?:\[:\^?\w+:\] | \\. | [^\]\\])*\])
    | (?P<group>\(\?P?<\w+> | \(\?[a-zA-Z-]*[:)] | \()
    | (?P<count>\{[0-9]+(?:,[0-9]*)?\})
    | (?P<plain>.)""",
    re.DOTALL | re.VERBOSE,
)
# What other dialects read differently, without a word; by the token and what follows it.
_AMBIGUOUS: Final = (
    (r"\{,[0-9]*\}", "{,n} is plain text to re2 and a count elsewhere; write {0,n}, or \\{,n} for the text"),
    (r"\[\^?\]", "a class that begins with ] is empty to some engines; write \\]"),
    (r"\\C", r"\C is half a character"),
)


class Regex:
    """A compiled pattern that says of many texts at once whether they match.

    Linear in the length of a text whatever the pattern, which is why there are no backreferences and no
    lookaround. Digits, word characters and word boundaries are those of ASCII; `$` is the end of the text.

    Args:
        pattern: in the syntax of re2 (https://github.com/google/re2/wiki/Syntax).
        mode: "full": the whole text has to match; "search": some part of it.
        ignore_case, dot_all, multi_line: as re2's (and Python's) flags i, s and m.
        argument, reward: what the pattern and the reward that it belongs to are called in messages.

    Raises: ValueError for a pattern that is none, or that re2 cannot express (the construct is named);
        ModuleNotFoundError without google-re2.
    """

    def __init__(
        self,
        pattern: str,
        mode: Mode = "full",
        *,
        ignore_case: bool = False,
        dot_all: bool = False,
        multi_line: bool = False,
        argument: str = "pattern",
        reward: str = "pattern",
    ) -> None:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"{argument}={shown(pattern)}: a text that is not empty is allowed")
        check_choice("mode", mode, get_args(Mode))
        asked = {"ignore_case": ignore_case, "dot_all": dot_all, "multi_line": multi_line}
        for name, value in asked.items():
            check_flag(name, value)
        flags = "".join(letter for letter, on in zip("ism", asked.values(), strict=True) if on)
        try:
            compiled = _compiled(f"(?{flags}){pattern}" if flags else pattern, reward)
        except ValueError as error:
            raise ValueError(f"{argument}={shown(pattern)}: {error}") from error
        self._find: Callable[[bytes], Any] = compiled.fullmatch if mode == "full" else compiled.search

    def matches(self, texts: list[str]) -> list[bool]:
        """Whether each text matches; a text that cannot be written as UTF-8 (a lone surrogate) does not."""
        find = self._find
        try:
            return [find(text.encode()) is not None for text in texts]
        except UnicodeEncodeError:
            encoded = map(_encoded, texts)
            return [data is not None and find(data) is not None for data in encoded]


@functools.lru_cache(maxsize=256)
def _compiled(source: str, reward: str) -> Any:
    """The pattern, compiled. Raises: ValueError that says why it cannot be."""
    re2 = import_extra("re2", reward)
    options = re2.Options()
    options.never_capture = True  # faster, and nobody asks for the groups
    options.log_errors = False
    try:
        compiled = re2.compile(source, options)
    except re2.error as error:
        raise ValueError(_reason(error, source)) from error
    except UnicodeEncodeError as error:
        raise ValueError(f"cannot be written as UTF-8 ({error.reason})") from error
    _check_dialect(source)
    return compiled


def pattern_tokens(pattern: str) -> Iterator[tuple[str, str]]:
    """The tokens of a pattern that re2 takes: (kind, text), the kinds being the groups of `_TOKEN`."""
    for found in _TOKEN.finditer(pattern):
        kind = str(found.lastgroup)
        yield kind, found[kind]


def _check_dialect(pattern: str) -> None:
    """Raise ValueError for what engines read differently, without a word."""
    for found in _TOKEN.finditer(pattern):
        if found.lastgroup in ("plain", "set"):
            for construct, reason in _AMBIGUOUS:
                if re.compile(construct).match(pattern, found.start()):
                    raise ValueError(reason)


def _reason(error: Exception, pattern: str) -> str:
    """Why re2 refuses a pattern: the construct that it has no linear time for, or its own words."""
    detail = error.args[0] if error.args else ""
    said = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    kind, _, part = said.partition(": ")
    beyond = kind in ("invalid perl operator", "invalid escape sequence", "bad repetition operator")
    # re2 may name no more than the first characters of the construct, so every place that has them is read.
    places = [found.start() for found in re.finditer(re.escape(part), pattern)] if beyond and part else []
    for construct, name in _CONSTRUCTS:
        if any(re.compile(construct).match(pattern, place) for place in places):
            return (
                f"{name} is not allowed; patterns run on re2, in linear time, which has no backreferences, "
                f"lookaround or the like ({said})"
            )
    return f"not a regular expression of re2 ({said})"


def _encoded(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None
