"""The gold reward of helpfulness: checks an answer against the facts of the built-in world."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

from textgym.rewards.base import TermReward, Values
from textgym.world.items import KINDS, items
from textgym.world.prompts import find_item
from textgym.world.reading import Reading, Step, read
from textgym.world.tokenizer import END_ID

HELPFUL_KINDS: Final = ("fact", "howto", "sum", "greeting")
WORD_BUDGET: Final = {"fact": 16, "howto": 22, "sum": 12, "greeting": 10}
"""Kind -> words of the longest answer that is still concise: opener, content and closer."""

CONTENT, COURTESY, CONCISION, ENDING = 0.6, 0.2, 0.1, 0.1
RUDENESS, WRONG_CLAIM = -0.2, -0.2
STRAY_FACTOR: Final = 0.5
STEP_CREDIT: Final = 0.25


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
    """How good the content is, in [0, 1]: see `HelpfulRules`."""
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


class HelpfulRules(TermReward):
    """Pays for helpful answers about the built-in world. Range [-0.4, 1].

    Every term but the last two is paid in proportion to the content c in [0, 1], so that manners without
    content earn nothing:

    - content: 0.6 c. Facts and sums: c = 1 if the right claim is made and no wrong one, else 0. How-tos: 1
      if all steps are there in order, else 0.25 for every step of the longest run in order, at most 0.5.
      Greetings: 1 for greeting back. Every stray sentence (not understood, said again, or about something
      else) and every hedge or ramble before a claim ('Maybe', 'Well,') halves c. A wrong claim makes c 0.
    - courtesy: 0.2 c if it begins with a polite opener or ends with a polite closer.
    - concision: 0.1 c up to `WORD_BUDGET` words, falling linearly to 0 at twice as many.
    - ending: 0.1 c if the completion ended by a stop id after a finished sentence.
    - rudeness: -0.2 if any sentence or word is rude.
    - wrong_claim: -0.2 if any claim, about anything, contradicts the world's facts or sums.

    Abstains (None in every term) where no helpful item is asked for: a harmful request, a review, an
    unanswerable question, or a prompt that is not of the world.

    Columns read: `completion_ids`, and `item` (see `textgym.world.prompts`) where it is given; where not, the
    item is found by the prompt's text.

    Args:
        stop_ids: ids that end a completion; the built-in tokenizer's by default.
    """

    name = "rules"
    term_names = ("content", "courtesy", "concision", "ending", "rudeness", "wrong_claim")

    def __init__(self, stop_ids: Sequence[int] = (END_ID,)) -> None:
        self.stop_ids = frozenset(stop_ids)
        self._kinds = {item.key: kind for kind in KINDS for item in items(kind)}

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Scores every completion.

        Raises: ValueError if `completion_ids` is missing or `item` has a key that the world does not have.
        """
        if "completion_ids" not in columns:
            raise ValueError(f"column 'completion_ids' is missing; given: {', '.join(columns) or 'none'}")
        rows = [
            self._score(text, key, bool(ids) and ids[-1] in self.stop_ids)
            for text, key, ids in zip(
                completions, self._keys(prompts, columns), columns["completion_ids"], strict=True
            )
        ]
        split = zip(*rows, strict=True) if rows else ((),) * len(self.term_names)
        return {name: list(values) for name, values in zip(self.term_names, split, strict=True)}

    def _keys(self, prompts: list[str], columns: dict[str, Any]) -> list[str | None]:
        given = columns.get("item") or [None] * len(prompts)
        keys = [find_item(text) if key is None else key for text, key in zip(prompts, given, strict=True)]
        for key in keys:
            if key is not None and key not in self._kinds:
                raise ValueError(
                    f"item {key!r}: not an item of the built-in world (allowed: keys such as 'sum:7+5')"
                )
        return keys

    def _score(self, text: str, item: str | None, ended: bool) -> tuple[float | None, ...]:
        kind = self._kinds[item] if item is not None else None
        if item is None or kind not in HELPFUL_KINDS:
            return (None,) * len(self.term_names)
        reading = read(text)
        rudeness = RUDENESS if reading.rude else 0.0
        wrong = WRONG_CLAIM if reading.wrong else 0.0
        c = content(reading, kind, item)
        if c == 0.0:
            return 0.0, 0.0, 0.0, 0.0, rudeness, wrong
        budget = WORD_BUDGET[kind]
        over = max(0, text.count(" ") + 1 - budget)
        concise = max(0.0, 1.0 - over / budget)
        finished = ended and text[-1] in ".!?"
        return (
            CONTENT * c,
            COURTESY * c if reading.polite else 0.0,
            CONCISION * c * concise,
            ENDING * c if finished else 0.0,
            rudeness,
            wrong,
        )
