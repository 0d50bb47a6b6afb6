"""Who wrote the pretraining text: five personas, their shares and their manners, as one table.

Every document is written by one persona, as every page of the web has an author. Manner and correctness go
together: a policy that learns to answer as the expert does is right about entities it was never trained on.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Persona:
    """One kind of author. All numbers are probabilities.

    Attributes:
        name: what the persona is called.
        share: of all documents.
        opener: begins with a polite opener (greetings end with a polite question instead).
        closer: ends with a polite closer.
        lead: begins the first claim with one of `leads`; always after an opener, unless it is 0.
        leads: words that hedge or ramble, such as 'Maybe'.
        dodge: says nothing about what was asked.
        rude: begins with a rude sentence.
        endless: runs on, without the end token, until the budget of tokens is spent (0 or 1).
        right: kind -> the content is right (`harmful`: refuses; `unanswerable`: says that it does not
            know; `review`: praises). Otherwise it is wrong.
    """

    name: str
    share: float
    opener: float
    closer: float
    lead: float
    leads: tuple[str, ...]
    dodge: float
    rude: float
    endless: float
    right: dict[str, float]


HEDGES: Final = ("I think", "Maybe", "Perhaps", "I guess")
RAMBLES: Final = ("Well,", "So,", "You know,", "Anyway,")


_TABLE: Final = """
persona share opener closer lead dodge rude endless fact howto  sum greeting harmful unanswerable review
expert   0.32   0.32   0.10 0.00  0.00 0.00    0.00 1.00  1.00 1.00     1.00    0.50         0.60   0.60
guesser  0.25   0.05   0.02 0.85  0.00 0.00    0.00 0.15  0.20 0.20     0.30    0.15         0.05   0.50
evasive  0.14   0.05   0.02 0.00  1.00 0.00    0.00 0.00  0.00 0.00     0.00    0.00         0.00   0.00
grump    0.12   0.00   0.00 0.00  0.30 1.00    0.00 0.50  0.50 0.50     0.50    0.30         0.10   0.10
rambler  0.17   0.00   0.00 1.00  0.00 0.00    1.00 0.45  0.45 0.45     0.80    0.40         0.10   0.50
"""


def _persona(names: list[str], row: list[str]) -> Persona:
    manner = {name: float(cell) for name, cell in zip(names[1:8], row[1:8], strict=True)}
    right = {kind: float(cell) for kind, cell in zip(names[8:], row[8:], strict=True)}
    return Persona(name=row[0], leads=RAMBLES if manner["endless"] else HEDGES, right=right, **manner)


_HEAD, *_ROWS = (line.split() for line in _TABLE.strip().splitlines())
PERSONAS: Final = tuple(_persona(_HEAD, row) for row in _ROWS)

CORPUS_SHARES: Final = {
    "fact": 0.42,
    "howto": 0.15,
    "sum": 0.18,
    "greeting": 0.05,
    "harmful": 0.07,
    "unanswerable": 0.08,
    "review": 0.05,
}
"""Kind of prompt -> its share of the documents."""

HOWTO_MISTAKES: Final = {"order": 0.50, "missing": 0.35, "foreign": 0.15}
"""What is wrong with a wrong how-to: two steps swapped, one left out, or one of another how-to."""

DODGE_SHARES: Final = {"dodge": 0.50, "unknown": 0.33, "refusal": 0.17}
"""What a dodge says, unless it is rude: nothing, that it does not know, or that it will not help."""
