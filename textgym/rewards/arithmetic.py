"""Arithmetic: pays for the exact number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args

from textgym.messages import check_choice
from textgym.rewards.base import NamedReward
from textgym.rewards.data_columns import check_column, read_column
from textgym.rewards.numbers import last_number, whole_number

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
