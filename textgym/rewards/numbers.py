"""Reading numbers in texts: what is understood has a value; any other notation has none, and never that of a part.

Which notations have a value is a table in docs/rewards.md, and a test goes through it.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Final

MOST_DIGITS: Final = 1000
"""Of a number that is read; Python itself takes quadratic time for long ones."""

NUMBER: Final = re.compile(r"[-+\u2212]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?")
_GROUPED: Final = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+")
# Three numbers or more; of two, the comma may be a decimal point.
_LIST: Final = re.compile(r"[0-9]+(?:,(?![0-9]{3}(?![0-9]))[0-9]+){2,}")

# What stands for all of its kind: digits of other scripts and fractions, raised and lowered digits, combining marks.
_FOREIGN, _RAISED, _MARK = "\u0660", "\u00b2", "\u0301"
_RUN: Final = re.compile(rf"\.?[0-9]+(?:[.,/]+[0-9]+)*|{_FOREIGN}")
_WINDOW: Final = 64  # characters on each side that a notation can reach

_MINUS: Final = r"\-\u2212\u2010-\u2013\ufe63\uff0d"
_CURRENCY: Final = r"$\u00a2-\u00a5\u20a0-\u20c0"
_BEFORE: Final = re.compile(rf"(?P<opening>.*?)(?P<sign>[{_MINUS}+\uff0b]?)(?:\\?[{_CURRENCY}])?", re.DOTALL)
_OPENING: Final = frozenset("=<>`~|$\u2248\u2192\u21d2")
_NOT_OPENING: Final = frozenset("%/@\u00b7\u2030\u2044")
_OPENING_KINDS: Final = frozenset(("Ps", "Pe", "Pi", "Pf", "Po", "Pc", "So", "Sc", "Cf"))
_BETWEEN: Final = frozenset("=;|&<>\u2248\u2192\u21d2")
# In the word that the number ends, before it: what makes it a part of that word.
_IN_WORD: Final = re.compile(
    rf"""[{_MINUS}][A-Za-z]{{1,3}}[{_CURRENCY}]?$                       # -US$5
    | \\(?!boxed|text|math|fbox|bf|rm)[A-Za-z]+\{{?\W?$ | [{_MINUS}]\\[a-z]+\{{$  # \sqrt{{2}}, -\boxed{{5}}
    | [0-9{_FOREIGN}][A-Za-z]+$                                       # 1e5, 5x10""",
    re.VERBOSE,
)
# The word before, with blanks between, that makes the number a part of an expression.
_EXPRESSION: Final = re.compile(
    rf"""\W*(?:minus|negative) | /|\^|\*\*|\+/-|[\u00f7\u00b1\u221a\u2260\u2264\u2265\u2044]
    | [0-9]+e[-+]? | .*[{_MINUS}](?:[A-Z]{{2,3}}|[{_CURRENCY}])          # 1e 5, -USD 5""",
    re.VERBOSE | re.IGNORECASE,
)
# What follows a number that is only the beginning of something else.
_AFTER: Final = re.compile(
    rf"""(?:[^\W\d_]|{_MARK})+[0-9{_FOREIGN}] | [eE](?![^\W\d_])             # 5x10, 5e
    | (?:[kKMB\u03c0\u4e07\u4ebf\u5104\u5343\u767e]|[bm]n)(?![^\W_])        # 5k
    | \s*(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?\b
    | [)\]}}]*[\^{_RAISED}{_FOREIGN}{_MARK}] | \s+(?:[\^/\u00f7\u03c0]|\*\*)(?!\*) | \*+\w | \(  # 5^n, 5 / n, 5(3)
    | [\u00d7\u00f7\u00b1\u00b7\u22c5\u221a\u2044+] | [-\u2212](?![^\W\d_])  # 5+, 5-
    | \s*\\(?:cdot|times|pi|pm|sqrt|frac|over)\b""",
    re.VERBOSE,
)


def last_number(text: str) -> Fraction | int | None:
    """The last number in a text; None where there is none, or it is written as nothing that is understood."""
    if not text.isascii():
        text = re.sub(r"[^\x00-\x7f]", _kind, unicodedata.normalize("NFC", text))
    runs = [*_RUN.finditer(text)]
    if not runs or runs[-1][0] == _FOREIGN:
        return None
    run = runs[-1]
    left, right = text[max(0, run.start() - _WINDOW) : run.start()], text[run.end() : run.end() + _WINDOW]
    sign = _sign(left, run[0], right)
    if sign is None or _goes_on(run[0], right):
        return None
    if _LIST.fullmatch(run[0]):
        return whole_number(run[0].rpartition(",")[2])
    return whole_number(sign + run[0])


def whole_number(text: str) -> Fraction | int | None:
    """The number that a text is, white space around it aside; None where it is none."""
    text = text.strip()
    if NUMBER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-\u2212").partition(".")[0].partition("/")[0]
    return _number(text) if "," not in digits or _GROUPED.fullmatch(digits) else None


def _number(text: str) -> Fraction | int | None:
    if len(text) > MOST_DIGITS:
        return None
    text = text.replace(",", "").replace("\u2212", "-")
    top, _, bottom = text.partition("/")
    if not bottom:
        return Fraction(text) if "." in text else int(text)
    denominator = int(bottom)
    return Fraction(top) / denominator if denominator else None


def _kind(found: re.Match[str]) -> str:
    """A character, or what stands for its kind."""
    kind = unicodedata.category(found[0])
    if kind[0] == "N":
        return _RAISED if unicodedata.decomposition(found[0]).startswith(("<super>", "<sub>")) else _FOREIGN
    if found[0] == "\u221e":
        return _FOREIGN
    return _MARK if kind[0] == "M" else found[0]


def _sign(left: str, run: str, right: str) -> str | None:
    """The sign that stands before a run of digits: "-" or ""; None where the run is only a part of something."""
    *before, word = re.split(r"(\s+)", left)
    if _IN_WORD.search(word) or not _apart(before, word, run):
        return None
    symbols = re.search(rf"(?:[\W_](?<!{_MARK}))*$", word)
    assert symbols is not None
    inside = word[: symbols.start()][-1:]
    parts = _BEFORE.fullmatch(symbols[0])
    assert parts is not None
    opening, sign = parts["opening"], parts["sign"]
    refused = (
        inside.isdigit() and not any(symbol in _BETWEEN for symbol in opening),  # 3-5, 1'000
        inside and opening.startswith("("),  # f(2)
        # A sign or a point after a letter or a bracket is none of this number's.
        (sign or run[0] == ".") and (opening.endswith((".", ")", "]", "}")) if opening else inside),
        opening.endswith("(") and symbols[0] != opening and not sign and right.startswith(")"),  # ($5)
        not all(map(_opens, opening)),
    )
    if any(refused):
        return None
    return "-" if sign and sign not in "+\uff0b" else ""


def _opens(symbol: str) -> bool:
    """Whether a number may begin after a symbol."""
    if symbol in _NOT_OPENING:
        return False
    return symbol in _OPENING or unicodedata.category(symbol) in _OPENING_KINDS


def _apart(before: list[str], word: str, run: str) -> bool:
    """Whether the words before, in the same line, leave a number what it is."""
    if len(before) < 2 or "\n" in before[-1]:
        return True
    previous, start = before[-2], len(before) < 4 or "\n" in before[-3] or not before[-4]
    if word.strip("$\\") == "" and previous in ("-", "\u2212"):
        # A bullet, or a difference of two numbers; else it is a sign.
        return start or before[-4][-1:].isdigit() or before[-4].endswith(")")
    if word:
        return True
    grouped = re.fullmatch(r"[0-9]{3}", run) and re.search(r"(?<![0-9])[0-9]{1,3}$", previous)
    mixed = "/" in run and previous[-1:].isdigit()
    return not (grouped or mixed or _EXPRESSION.fullmatch(previous))


def _goes_on(run: str, right: str) -> bool:
    """Whether a number is only the beginning of something else."""
    if run == "0" and re.match(r"[xXbBoO][0-9A-Fa-f]", right):
        return True
    if "." in run and right.startswith(("...", "\u2026")):
        return True
    return _AFTER.match(right) is not None
