"""What a check says: it holds, it fails with the number found, or it could not be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["holds", "FAILS", "not asked"]
HOLDS: Final = "holds"
FAILS: Final = "FAILS"
NOT_ASKED: Final = "not asked"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        statement: number of the statement that it asks, in docs/conformance.md; checks of one statement share it.
        status: "holds", "FAILS" or "not asked".
        found, expected: as texts; where it was not asked, `found` is the reason.
        asks: what must hold, in a sentence.
    """

    check: str
    statement: int
    status: Status
    found: str
    expected: str
    asks: str


@dataclass(frozen=True)
class Outcome:
    """What a check function returns; the kit adds the check's name and number."""

    status: Status
    found: str
    expected: str


class NotAsked(Exception):  # noqa: N818  (it is no error)
    """The agent does not offer what a check needs; the message is the reason."""


def judge(holds: bool, found: str, expected: str) -> Outcome:
    """An outcome that holds or fails."""
    return Outcome(HOLDS if holds else FAILS, found, expected)


def at_most(what: str, value: float, limit: float) -> Outcome:
    """Holds where a deviation is at most `limit`; NaN fails."""
    return judge(bool(value <= limit), f"{what} {value:.3g}", f"at most {limit:g}")
