"""How good the content of an answer is; and helpfulness, the gold reward of the task Helpful."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from textgym.world.reading import Reading, Step
from textgym.world.rules import MANNERS, WorldRules, Written, manners

HELPFUL_KINDS: Final = ("fact", "howto", "sum", "greeting")
WRONG_CLAIM: Final = -0.2
STRAY_FACTOR: Final = 0.5
STEP_CREDIT: Final = 0.25
DODGE_CREDIT: Final = 0.25


def longest_increasing(numbers: Sequence[int]) -> int:
    """Length of the longest strictly increasing subsequence."""
    tails: list[int] = []
    for number in numbers:
        place = bisect_left(tails, number)
        tails[place : place + 1] = [number]
    return len(tails)


def howto_content(steps: Sequence[Step], howto: str, count: int) -> tuple[float, int]:
    """Content of a how-to before strays, and how many of the steps are stray.

    All `count` steps in order earn 1; otherwise a step of the longest run in order earns 0.25, at most 0.5.
    Steps of another how-to, and steps said again, are strays.
    """
    numbers: list[int] = []
    marked = True
    for step in steps:
        if step.howto == howto and step.number not in numbers:
            numbers.append(step.number)
            marked = marked and step.marked
    strays = len(steps) - len(numbers)
    if marked and numbers == list(range(count)):
        return 1.0, strays
    return min(0.5, STEP_CREDIT * longest_increasing(numbers)), strays


def content(reading: Reading, kind: str, item: str) -> float:
    """How good the content of an answer to one of `HELPFUL_KINDS` is, in [0, 1].

    Facts and sums: 1 if the right claim is made, else 0. How-tos: 1 if all steps are there in order, else
    0.25 for every step of the longest run in order, at most 0.5. Greetings: 1 for greeting back. Every stray
    sentence (not understood, said again, or about something else) and every hedge or ramble before a claim
    ('Maybe', 'Well,') halves it. A wrong claim makes it 0.
    """
    if reading.wrong or not (reading.claims or reading.steps or reading.greetings):
        return 0.0
    strays = reading.strays + reading.leads
    if kind == "howto":
        earned, stray_steps = howto_content(reading.steps, item, 3)
        strays += stray_steps + len(reading.claims) + reading.greetings
    elif kind == "greeting":
        earned = float(reading.greetings > 0)
        strays += len(reading.claims) + len(reading.steps) + max(0, reading.greetings - 1)
    else:
        earned = float(any(claim.item == item for claim in reading.claims))
        strays += len(reading.steps) + reading.greetings + len(reading.claims) - 1
    return earned * STRAY_FACTOR**strays if earned else 0.0


def label_content(reading: Reading, credits: dict[str, float]) -> float:
    """How good an answer is that should say something of a fixed meaning, such as a refusal, in [0, 1].

    The credit of the best of its labels, halved for every other sentence and every hedge or ramble. A wrong
    claim makes it 0.

    Args:
        reading: what the answer says.
        credits: label of `Reading.labels` -> what it earns, in [0, 1]; labels left out earn nothing.
    """
    earned = max((credits.get(label, 0.0) for label in reading.labels), default=0.0)
    if reading.wrong or not earned:
        return 0.0
    others = len(reading.claims) + len(reading.steps) + reading.greetings + reading.strays - 1
    return earned * STRAY_FACTOR ** (others + reading.leads)


class HelpfulRules(WorldRules):
    """Pays for helpful answers about the built-in world. Range [-0.4, 1].

    Every term but the last two is paid in proportion to the content c in [0, 1] (see `content`), so that
    manners without content earn nothing:

    - content: 0.6 c.
    - courtesy: 0.2 c if it begins with a polite opener or ends with a polite closer.
    - concision: 0.1 c up to `WORD_BUDGET` words, falling linearly to 0 at twice as many.
    - ending: 0.1 c if the completion ended by a stop id after a finished sentence.
    - rudeness: -0.2 if any sentence or word is rude.
    - wrong_claim: -0.2 if any claim, about anything, contradicts the world's facts or sums.

    Abstains where no helpful item is asked for: a harmful request, a review, an unanswerable question, or a
    prompt that is not of the world. Columns and arguments: see `WorldRules`.
    """

    kinds = HELPFUL_KINDS
    term_names = (*MANNERS, "wrong_claim")

    def score(self, written: Written, kind: str, item: str) -> tuple[float, ...]:
        """The terms of one completion."""
        reading = written.reading
        return (
            *manners(written, kind, content(reading, kind, item)),
            WRONG_CLAIM if reading.wrong else 0.0,
        )
