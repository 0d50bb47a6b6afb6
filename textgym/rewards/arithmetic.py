"""Arithmetic: pays for the exact number."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, get_args

from textgym.messages import check_choice
from textgym.rewards.base import NamedReward
from textgym.rewards.data_columns import check_column, read_column

Read = Literal["last", "whole"]

# A dash after a letter, digit, point or bracket is no sign: "7-5" ends in 5.
NUMBER: Final = re.compile(
    r"(?:(?<![\w.)\]])[-+\u2212])?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?", re.ASCII
)
GROUPED: Final = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+", re.ASCII)
MOST_DIGITS: Final = 1000
"""Of a number that is read; Python itself takes quadratic time for long ones."""


@dataclass(frozen=True)
class Arithmetic(NamedReward):
    """Pays 1 for the right number, else 0; compared exactly, as a fraction: 0.5, .50 and 1/2 are equal.

    Numbers are written with digits: an optional sign, commas between thousands, a decimal point, or a slash
    between numerator and denominator. There are no exponents, and no number has more than a thousand digits.

    Args:
        column: data column with the right number of every prompt: an int, a float (by its shortest decimal
            form) or a text such as "7/2"; None abstains.
        read: "last": the last number in the completion; "whole": the completion is the number and nothing
            else but white space around it.
    """

    column: str = "answer"
    read: Read = "last"
    name = "arithmetic"
    maximum = 1.0

    def __post_init__(self) -> None:
        check_column(self.column)
        check_choice("read", self.read, get_args(Read))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        """Score every completion. Raises: ValueError if the column is missing or has what is no number."""
        wanted = read_column(columns, self.column, self.name)
        found = last_number if self.read == "last" else whole_number
        return [
            None if answer is None else float(found(text) == _right_number(answer, self.column))
            for text, answer in zip(completions, wanted, strict=True)
        ]


def last_number(text: str) -> Fraction | int | None:
    """The last number in a text; None where there is none, or it is not readable (1/0)."""
    numbers = NUMBER.findall(text)
    return _last_of(numbers[-1]) if numbers else None


def whole_number(text: str) -> Fraction | int | None:
    """The number that a text is, white space around it aside; None where it is none."""
    text = text.strip()
    if NUMBER.fullmatch(text) is None:
        return None
    digits = text.lstrip("+-\u2212").partition(".")[0].partition("/")[0]
    return _number(text) if "," not in digits or GROUPED.fullmatch(digits) else None


def _last_of(text: str) -> Fraction | int | None:
    """Read what `NUMBER` matched; of a list without spaces, "1,2,3", or with a comma after it, its last number."""
    if "," not in text:
        return _number(text)
    whole = re.match(r"[-+\u2212]?([0-9,]*)(.*)", text, re.DOTALL)
    assert whole is not None
    digits, rest = whole.groups()
    if not rest:
        digits = digits.rstrip(",")
    if "," not in digits or GROUPED.fullmatch(digits):
        sign = text[0] if text[0] in "+-\u2212" else ""
        return _number(sign + digits + rest)
    return _number(digits.rpartition(",")[2] + rest)


def _number(text: str) -> Fraction | int | None:
    if len(text) > MOST_DIGITS:
        return None
    text = text.replace(",", "").replace("\u2212", "-")
    top, _, bottom = text.partition("/")
    if not bottom:
        return Fraction(text) if "." in text else int(text)
    denominator = int(bottom)
    return Fraction(top) / denominator if denominator else None


def _right_number(answer: Any, column: str) -> Fraction | int:
    """The number that a data column holds. Raises: ValueError where it is none."""
    number: Fraction | int | None = None
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, Fraction):
        number = answer
    elif isinstance(answer, float | Decimal) and math.isfinite(answer):
        number = Fraction(str(answer))
    elif isinstance(answer, str):
        number = whole_number(answer)
    if number is None:
        raise ValueError(
            f"column {column!r}: {answer!r:.80} is not a number; an int, a finite float or a text such as '-3', "
            "'1,000', '2.5' or '7/2' is allowed, None abstains"
        )
    return number
