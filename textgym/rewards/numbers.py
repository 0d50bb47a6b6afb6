"""Read numbers in texts, and pay for the exact one.

Which notations have a value is a table in docs/rewards.md, and a test goes through it. What may stand beside a number,
glued to it or behind a blank, is a list of symbols and units; a word behind a blank is prose unless it counts.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Final, Literal, get_args

import numpy as np

from textgym.checks import check_choice
from textgym.rewards.base import Column, NamedReward, Rebuilt, Values, check_column, import_extra, read_column

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


def _plain(text: str) -> str:
    """Return the text with one character for all of its kind, and one blank or line break for several."""
    if not text.isascii():
        text = re.sub(r"[^\x00-\x7f]", _kind, unicodedata.normalize("NFC", text))
    return re.sub(r"\s+", lambda blank: "\n" if len(blank[0].splitlines()) > 1 or blank[0] in "\r\n" else " ", text)


def _kind(found: re.Match[str]) -> str:
    """Return a character, or what stands for its kind."""
    kind = unicodedata.category(found[0])
    if kind[0] == "N":
        return _RAISED if unicodedata.decomposition(found[0]).startswith(("<super>", "<sub>")) else _FOREIGN
    if found[0] == "\u221e":
        return _FOREIGN
    return _MARK if kind[0] == "M" else found[0]


def _words(text: str) -> str:
    """Return a pattern of words, given in a text between blanks."""
    return "|".join(map(re.escape, _plain(text).split()))


_MINUS: Final = r"\-\u2212\u2010-\u2013\ufe63\uff0d"
_CURRENCY: Final = r"$\u00a2-\u00a5\u20a0-\u20c0"
_EMOJI: Final = "\U0001f300-\U0001faff\u2705\u2713\u2714\u2b50\u2764"
_SEPARATOR: Final = "=;|\u2248\u2192\u21d2"
_LETTER: Final = r"[^\W\d_]"
_CODES: Final = _words("USD EUR GBP CHF JPY CNY RMB INR CAD AUD US Fr Rs SFr kr dollars euros pounds yen bucks")

# Ideographs and Hangul that count.
_CJK: Final = "十百千万萬亿億兆京拾佰仟半分만억천백십조"
_COUNTERS: Final = "个個元円圆年月日人岁歳次只本원명개살"


@cache
def _verbose(pattern: str) -> re.Pattern[str]:
    """Compile a long pattern when it is first needed: that takes up to a tenth of a second."""
    return re.compile(pattern, re.VERBOSE)


# Units that may be glued to a number; any other letters may not.
_UNIT: Final = rf"""(?:(?:st|nd|rd|th|[kmcd\u00b5\u03bc]?m[{_RAISED}23]?|[km\u00b5\u03bc]?g|[mcd]?[lL]
    | [m\u00b5\u03bcn]?s | km/h|kmh|m/s|mph|kph|fps|lbs?|oz|ft|in|yd|mi|min|mins|sec|secs|hr|hrs|h|d
    | am|pm|AM|PM|a\.m\.|p\.m\.|kW|kWh|W|V|A|Hz|kHz|MHz|GHz
    | [kKMGT]i?B|px|pt|pts|em|ha|t|kcal|cal|kJ|J|N|Pa|mol|cents?|ct|{_CODES}
    | [{_COUNTERS}](?!\u534a)
    | \u3067\u3059|\uc785\ub2c8\ub2e4)(?:/(?:s|h|day|hour|kg|m))?(?![^\W_]|{_MARK})
    | /(?:hour|hr|h|day|week|month|year|yr|person|item|kg|piece)(?![^\W_])
    | \\?[%{_CURRENCY}\u2030] | \u00b0(?:[CFK](?![^\W_]))?)"""

_MEASURED: Final = rf"[0-9](?:['\u2019\u2032]|\ ?(?!st|nd|rd|th){_UNIT})$"

# Words that count, or go on with the number that they follow.
_MAGNITUDE: Final = _words(
    """hundred hundreds thousand thousands million millions billion billions trillion trillions quadrillion
    quadrillions quintillion quintillions dozen dozens grand lakh lakhs lac lacs crore crores cr myriad
    myriads kilo choose ten k b mn bn tn mil bil tril mill bill mio mrd mia mld mln bln trn tsd tys thou
    milliard milliards milliarde milliarden millionen billionen billiarde billiarden trillionen tausend
    hundert dutzend mille billiard billiards cien ciento millón millones billón billones milhão milhões
    bilhão bilhões bi mila milione milioni miliardo miliardi miljoen miljard duizend honderd biljoen miljon
    miljoner miljarder tusen hundra millionær milion milionu miliony milionów miliard miliarda miliardy
    miliardów tysiąc tysiące tysięcy milyon milyar trilyon yüz ribu juta miliar triliun ratus nghìn triệu tỷ
    trăm ngàn тыс тысяч тысяча тысячи млн млрд миллион миллиона миллионов миллиард миллиарда миллиардов
    сотен мільйон мільйони εκατομμύρια χιλιάδες ألف آلاف مليون ملايين مليار مئة אלף מיליון हज़ार हजार लाख
    करोड़ करोड ร้อย พัน หมื่น แสน ล้าน half halves third thirds quarter quarters fourth fourths fifth fifths
    sixth sixths eighth eighths tenth tenths hundredth hundredths thousandth thousandths millionth
    millionths billionth billionths squared cubed factorial pi"""
)
_COUNT: Final = _words(
    """a an one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred zero
    half some"""
)
_GOES_ON: Final = rf"""(?:(?:(?i:{_MAGNITUDE}|{_LETTER}+illions?)|[MTGP]|MM
    |(?i:k|m|mm|mn|bn|mio|mrd|mln)(?:{_CODES}))(?![^\W_]|{_MARK})
    | [{_CJK}\u03c0] | [nxyzXYZ](?![^\W_]) | [eE][-+]?(?![^\W_])
    | (?i:(?:and|plus|minus|over|point|(?:divided\ |multiplied\ )?by)\ (?:{_COUNT}|n|x|y))\b
    | (?i:times\ (?!an?\b)(?:{_COUNT}|n|x|y))\b
    | (?i:(?:raised\ )?to\ the\ )(?!nearest|right|left|question|point))"""
_WORD: Final = rf"(?!{_GOES_ON}){_LETTER}"

# What may follow a number, from its last digit on.
_AFTER: Final = rf"""(?:[-\u2010\u2011](?={_WORD}{_LETTER}) (?!{_COUNT}\b) {_LETTER}+ | \ ?{_UNIT})?+
    (?:[.,:!?\u2026"'\u201d\u2019\u00bb)\]}}\u3002\uff0c\u3001\uff01\uff1f\uff1a\u300d\u300f\uff09\u3011{_EMOJI}](?!=)
    | \${{1,2}} | \\[)\]%,;!] | </[A-Za-z][\w-]*> | <br\ ?/?> | <\|\w+\|> | <eos> | <pad> | (?P<emphasis>[*_`]+))*+
    (?:\ ?(?:\n|$|[{_SEPARATOR}](?!/)|[-=]+> | \\\\ | \\(?:q?quad|end|to|Right|implies|approx)|[{_EMOJI}])
    | (?<=[.,:!?'"\u2026\u3002\uff0c\uff01\uff1f\uff1a])(?:s\b|{_WORD}{_LETTER})
    | \ (?:["'\u201c\u2018\u00ab\[(](?!{_LETTER}[-+*/^)]))*+{_WORD}
    | \ [("'\[\u201c](?=\W|$) | \ [.,:!?)\]}}"'\u201d\u2026](?!=) | \ </?[A-Za-z][\w-]*>
    | \ \*{{1,3}}{_WORD}[^*\n]*\*
    | \ \\[)\]] | \ \$(?=\W|$) | \ \u2014 | \ [-\u2013]\ (?!{_COUNT}\b){_WORD}{_LETTER}
    | \\,?\ ?\\?(?:text|mathrm)\{{\ ?{_WORD}{_LETTER})"""

# What may stand before a number.
_WRAPPERS: Final = (
    (re.compile(r"\\(?:boxed|fbox|text\w*|math\w+|bf|rm)\{|\\[(\[]"), "\u300c"),
    (re.compile(r"</?(?!(?:su[bp]|s|del|strike)>)[A-Za-z][\w-]*>|<\|\w+\|>"), "\u300c"),
    (re.compile(r"[-=]+>"), "\u2192"),
    (re.compile("&="), "="),
)
_WRAPPED: Final = re.compile(r"(?:[-=]|</?(?!(?:su[bp]|s|del|strike)>)[A-Za-z][\w-]*|\|)>$")
_GLUE: Final = re.compile(
    rf"(?P<head>.*?)(?P<symbols>(?P<opening>(?:[\W_](?<!{_MARK}))*?)"
    rf"(?P<sign>[{_MINUS}+\uff0b]?)(?:\\?[{_CURRENCY}])?)"
)
_OPENING: Final = frozenset(
    "([{\"'\u201c\u2018\u00ab\u201e`*_~#:,.!?$\u300c\u300e\uff08\u3010\u3002\uff0c\uff1a\uff1b\uff01\uff1f"
    "\u2026\u00bf\u00a1)]}\u201d\u2019\u00bb" + _SEPARATOR
)
_BLANK: Final = frozenset(_OPENING | set("\u2014\u3001\u300d\u300f\uff09\u3011")) - set("}#$*_`")
_UNEQUAL: Final = re.compile(r"[!~/<>]=|=/=|<>|~~")
# Words before a number that change it: always, or where another number stands before them.
_CHANGES: Final = re.compile(
    r"""(?:minus|neg|negative|moins|menos|meno|eksi|минус|sqrt|root|log|ln|lg|exp|sin|cos
    |tan|sec|cot|arcsin|arccos|arctan|abs|over|plusminus)
    |.*(?:负|負|マイナス|마이너스)""",
    re.IGNORECASE | re.VERBOSE,
)
_JOINS: Final = re.compile(r"(?:e|x|exp|over|point|times|plus|by|mod|modulo|choose|div|pow|comma|dot)", re.IGNORECASE)
# In a script without blanks, a clause that is over, and words for "is".
_CLAUSE: Final = re.compile(r".*(?:[。，：；！？](?=[\u3040-\u9fff])|是|为|為|等于|は)")
_LATEX_WORD: Final = re.compile(r"\\(?:q?quad|to|(?:long|Long)?[rR]ightarrow|implies|approx|therefore|equiv)")


def last_number(text: str) -> Fraction | int | None:
    """Return the last number in a text; None where there is none, or it is in no notation that is understood."""
    text = _plain(text)
    runs = [*_RUN.finditer(text)]
    if not runs or runs[-1][0] == _FOREIGN:
        return None
    run = runs[-1]
    left, right = text[max(0, run.start() - _WINDOW) : run.start()], text[run.end() : run.end() + _WINDOW]
    sign = _sign(left.rpartition("\n")[2], run[0], right)
    if sign is None or not _ends(left.rpartition("\n")[2], run[0], right):
        return None
    if _LIST.fullmatch(run[0]):
        return whole_number(run[0].rpartition(",")[2])
    return whole_number(sign + run[0])


def whole_number(text: str) -> Fraction | int | None:
    """Return the number that a text is, white space around it aside; None where it is none."""
    text = text.strip()
    if NUMBER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-\u2212").partition(".")[0].partition("/")[0]
    if ("," in digits and not _GROUPED.fullmatch(digits)) or len(text) > MOST_DIGITS:
        return None
    text = text.replace(",", "").replace("\u2212", "-")
    top, _, bottom = text.partition("/")
    if not bottom:
        return Fraction(text) if "." in text else int(text)
    denominator = int(bottom)
    return Fraction(top) / denominator if denominator else None


def _ends(left: str, run: str, right: str) -> bool:
    """Return whether a number ends where its digits do."""
    if "." in run and right.startswith(("...", "\u2026")):
        return False
    if re.search(rf"[{_CURRENCY}] ?$", left) and re.match(r" ?(?:m|t|mm)(?![^\W_])", right, re.IGNORECASE):
        return False  # $5m
    after = _verbose(_AFTER).match(right)
    return after is not None and (after["emphasis"] is None or after["emphasis"] in left)


def _sign(line: str, run: str, right: str) -> str | None:
    """Return the sign before a run of digits: "-" or ""; None where the run is only a part of something."""
    *before, glue = line.split(" ")
    for wrapper, symbol in _WRAPPERS:
        glue = wrapper.sub(symbol, glue)
    parts = _GLUE.fullmatch(glue)
    assert parts is not None
    head, symbols, opening, sign = parts["head"], parts["symbols"], parts["opening"], parts["sign"]
    apart = any(symbol in _SEPARATOR for symbol in opening)
    refused = (
        not _OPENING.issuperset(opening),
        _UNEQUAL.search(glue) or re.search(r"&#?\w*;?$", glue),
        not apart and not _may_lead(head),
        head and opening[:1] in tuple("([{\"'*_`~#"),  # f(2), x'15', x*5
        opening.endswith(tuple(")]}\u201d\u2019\u00bb")),
        # A sign or a point after a letter or a bracket is none of this number's.
        (sign or run[0] == ".") and (opening.endswith(".") if opening else head),
        opening.endswith("(") and symbols != opening and not sign and right.startswith(")"),  # ($5)
        not apart and not _apart(before, head, symbols, run),
    )
    if any(refused):
        return None
    return "-" if sign and sign not in "+\uff0b" else ""


def _may_lead(head: str) -> bool:
    """Return whether a number may end a word that begins like this."""
    head = _CLAUSE.sub("", head)
    if re.search(rf"[0-9\\{_FOREIGN}{_RAISED}{_MARK}]|[{_MINUS}]{_LETTER}{{1,4}}$", head):
        return False  # 1e5, \sqrt{2}, -US$5
    word = re.search(rf"{_LETTER}*$", head)
    assert word is not None
    return head[: word.start()][-1:] not in tuple("#&$%@^") and not _CHANGES.fullmatch(word[0])


def _apart(before: list[str], head: str, symbols: str, run: str) -> bool:
    """Return whether the words before, in the same line, leave a number what it is."""
    if not before or not before[-1]:
        return True
    previous, further = before[-1], before[-2] if len(before) > 1 else ""
    counted = further[-1:].isdigit() or further.endswith(")")
    if head:
        return not (previous[-1:].isdigit() and _JOINS.fullmatch(head))  # 1 e3
    if re.fullmatch(rf"[{_MINUS}+*]", previous):
        # A bullet, or a difference of two numbers; else it is a sign.
        return symbols.strip("$\\") == "" and (not further or (counted and previous not in "+*"))
    if re.search(r"\\(?:[dt]?frac|[dt]?binom)\b|(?:log|root|C|P)_\S+$|\b0[xXbBoO]$", f"{further} {previous}"):
        return False  # \frac 1 2, log_2 5, 0b 11
    if previous[-1].isdigit():
        if re.match(rf"[*~.,:+\uff0b{_MINUS}]", symbols or run):
            return False  # 3 -5, 3 *5
        grouped = not symbols and re.fullmatch(r"[0-9]{3}", run) and re.search(r"(?<![0-9])[0-9]{1,3}$", previous)
        return not (grouped or "/" in run)
    bare = previous.strip("*_`\"'$([{")
    if re.match(rf"[{_MINUS}](?:{_LETTER}{{1,4}}\.?$|[^\w>]*$)", bare) or re.search(r"[0-9][eE]$", bare):
        return False  # -Fr. 5, -$ 5, 1e 3
    if not bare and previous[0] in "*_`":
        return False  # 3 ** 5
    if _verbose(_MEASURED).search(f"{further} {previous}"):
        return False  # 5 ft 7, 5' 7
    word = re.search(rf"\\?{_LETTER}+$", bare.rstrip("."))
    if word is None and bare:
        return _over(bare, further)
    name = word[0] if word is not None else ""
    if not name or re.fullmatch(_CODES, name):
        return re.search(rf"(?:[{_MINUS}]|minus|negative|neg)$", further, re.IGNORECASE) is None  # - $ 5
    if name.startswith("\\"):
        return _LATEX_WORD.fullmatch(name) is not None
    joined = (
        (counted and _JOINS.fullmatch(name))  # 5 point 3
        or ("/" in run and name.lower() == "and" and counted)
        or (further.lower(), name.lower()) in (("power", "of"), ("root", "of"), ("divided", "by"), ("multiplied", "by"))
    )
    return not (_CHANGES.fullmatch(name) or joined)


def _over(bare: str, further: str) -> bool:
    """Return whether the symbols before a number leave it what it is."""
    if set(bare) == {"#"}:
        return not further
    if bare in tuple(":,.~"):
        return not further[-1:].isdigit()  # 1 : 2
    if bare.endswith("~"):
        return not bare[:-1][-1:].isdigit()
    if bare.endswith(">"):
        return not further if bare == ">" else _WRAPPED.search(bare) is not None
    if _UNEQUAL.search(bare) or re.search(r"&#?\w+;$", bare):
        return False
    return bare[-1] in _BLANK or re.fullmatch(f"[{_EMOJI}]", bare[-1]) is not None


Read = Literal["last", "whole"]


@dataclass(frozen=True)
class Arithmetic(NamedReward):
    """Pays 1 for the right number, else 0; compared exactly, as a fraction: 0.5, .50 and 1/2 are equal.

    Numbers are written with digits: an optional sign, commas between thousands, a decimal point, or a slash
    between numerator and denominator; a currency, a unit or punctuation may stand around them. Any other notation
    (1e3, 3:45, 2^3, 1.000,50) is unreadable and pays 0, whatever its parts are; docs/rewards.md lists them. No number
    has more than a thousand digits.

    Args:
        column: data column with the right number of every prompt: an int, a float (by its shortest decimal
            form) or a text such as "7/2"; None abstains.
        read: "last": the last number in the completion; "whole": the completion is the number and nothing
            else but white space around it.
    Raises: ValueError for a `column` that is no name, or another `read`.
    """

    column: str = "answer"
    read: Read = "last"
    name = "arithmetic"
    maximum = 1.0
    reads_latex = True

    def __post_init__(self) -> None:
        check_column(self.column)
        check_choice("read", self.read, get_args(Read))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing or has what is no number."""
        wanted = read_column(columns, self.column, self.name)
        found = last_number if self.read == "last" else whole_number
        return [
            None if answer is None else float(found(text) == right_number(answer, self.column))
            for text, answer in zip(completions, wanted, strict=True)
        ]


def right_number(answer: object, column: str) -> Fraction | int:
    """Return the number that a data column holds. Raises: ValueError where it is none."""
    if isinstance(answer, np.integer):  # of a column that is an array
        answer = int(answer)
    if isinstance(answer, int | Fraction) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, float | np.floating | Decimal) and math.isfinite(answer):
        return Fraction(str(answer))
    number = whole_number(answer) if isinstance(answer, str) else None
    if number is None:
        raise ValueError(
            f"column {column!r}: {answer!r:.80} is not a number; an int, a finite float or a text such as '-3', "
            "'1,000', '2.5' or '7/2' is allowed, None abstains"
        )
    return number


@dataclass(frozen=True)
class MathVerify(Rebuilt, NamedReward):
    r"""Pays 1 for a formula or number that math-verify finds equal to the right one, else 0.

    Read are LaTeX, such as \boxed{\frac{1}{2}}, and plain expressions. Some expressions take very long to compare, and
    math-verify's own limits need the main thread: they are off, and a task has to give the reward a `timeout`.

    Args:
        column: data column with the right answer of every prompt, a number or a text; None abstains.
    Raises: ValueError for a bad column; ModuleNotFoundError without the package math-verify.
    """

    column: str = "answer"
    name = "math_verify"
    maximum = 1.0
    needs_timeout = reads_latex = True

    def __post_init__(self) -> None:
        check_column(self.column)
        import_extra("math_verify", "reward 'math_verify'")
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that its limits are off

    def __call__(self, prompts: list[str], completions: list[str], **columns: Column) -> Values:
        """Score every completion. Raises: ValueError if the column is missing or has what cannot be read."""
        from math_verify import parse, verify

        values: Values = []
        right: dict[str, list[object]] = {}
        for text, answer in zip(completions, read_column(columns, self.column, self.name), strict=True):
            if answer is None:
                values.append(None)
                continue
            number = isinstance(answer, float | np.floating)
            wanted = format(Decimal(str(answer)), "f") if number else str(answer)  # and not 1e-05, which has an e
            if wanted not in right:
                # As a formula: of "x^2 + 1" in prose, the numbers alone would be read.
                right[wanted] = parse(wanted if "$" in wanted else f"${wanted}$", parsing_timeout=None)
            if not right[wanted]:
                raise ValueError(f"column {self.column!r}: {wanted!r:.80} is no number or formula; None abstains")
            found = parse(text, parsing_timeout=None)
            values.append(float(verify(right[wanted], found, timeout_seconds=None)))
        return values
