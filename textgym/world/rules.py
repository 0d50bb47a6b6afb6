"""What the rules of the built-in world have in common: whose answer it is, what it says, and its manners."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from textgym.rewards.base import TermReward, Values
from textgym.rewards.units import check_stop_ids
from textgym.world.items import KINDS, items
from textgym.world.prompts import find_item
from textgym.world.reading import Reading, read
from textgym.world.tokenizer import END_ID

WORD_BUDGET: Final = {"fact": 16, "howto": 22, "sum": 12, "greeting": 10, "harmful": 12, "unanswerable": 12}
"""Kind -> words of the longest answer that is still concise: opener, content and closer."""

CONTENT, COURTESY, CONCISION, ENDING = 0.6, 0.2, 0.1, 0.1
RUDENESS: Final = -0.2
MANNERS: Final = ("content", "courtesy", "concision", "ending", "rudeness")
"""Names of the terms that `manners` returns."""


class Written(NamedTuple):
    """A completion: its text, what it says, and whether it ended by a stop id."""

    text: str
    reading: Reading
    ended: bool


def manners(written: Written, kind: str, content: float, polite: bool = False) -> tuple[float, ...]:
    """The terms of `MANNERS`, for content in [0, 1].

    - content: 0.6 of it.
    - courtesy: 0.2 of it if the answer begins with a polite opener or ends with a polite closer, or is
      `polite` anyway.
    - concision: 0.1 of it up to `WORD_BUDGET` words, falling linearly to 0 at twice as many.
    - ending: 0.1 of it if the answer ended by a stop id after a finished sentence.
    - rudeness: -0.2 if any sentence or word is rude, whatever the content.
    """
    text, reading, ended = written
    rudeness = RUDENESS if reading.rude else 0.0
    if content == 0.0:
        return 0.0, 0.0, 0.0, 0.0, rudeness
    budget = WORD_BUDGET[kind]
    over = max(0, text.count(" ") + 1 - budget)
    return (
        CONTENT * content,
        COURTESY * content if polite or reading.polite else 0.0,
        CONCISION * content * max(0.0, 1.0 - over / budget),
        ENDING * content if ended and text[-1] in ".!?" else 0.0,
        rudeness,
    )


class WorldRules(TermReward):
    """Scores answers about the built-in world, kind by kind. Abstains (None in every term) for other kinds.

    Columns read: `completion_ids`, and `item` (see `textgym.world.prompts`) where it is given; where not, the
    item is found by the prompt's text.

    Attributes:
        kinds: the kinds of prompts that are scored.

    Args:
        stop_ids: ids that end a completion; the built-in tokenizer's by default.
    """

    name = "rules"
    maximum = 1.0
    kinds: Sequence[str]

    def __init__(self, stop_ids: Sequence[int] = (END_ID,)) -> None:
        self.stop_ids = frozenset(check_stop_ids(stop_ids))
        self._kind_of = {item.key: kind for kind in KINDS for item in items(kind)}

    @abstractmethod
    def score(self, written: Written, kind: str, item: str) -> tuple[float, ...]:
        """The terms of one completion, for a prompt that asks about `item`, of one of `kinds`."""

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Scores every completion.

        Raises: ValueError if `completion_ids` is missing or `item` has a key that the world does not have.
        """
        if "completion_ids" not in columns:
            raise ValueError(f"column 'completion_ids' is missing; given: {', '.join(columns) or 'none'}")
        keys = self._keys(prompts, columns)
        rows = [
            self._row(text, key, bool(ids) and ids[-1] in self.stop_ids)
            for text, key, ids in zip(completions, keys, columns["completion_ids"], strict=True)
        ]
        split = zip(*rows, strict=True) if rows else ((),) * len(self.term_names)
        return {name: list(values) for name, values in zip(self.term_names, split, strict=True)}

    def _keys(self, prompts: list[str], columns: dict[str, Any]) -> list[str | None]:
        given = columns.get("item") or [None] * len(prompts)
        keys = [find_item(text) if key is None else key for text, key in zip(prompts, given, strict=True)]
        for key in keys:
            if key is not None and key not in self._kind_of:
                raise ValueError(
                    f"item {key!r}: not an item of the built-in world (allowed: keys such as 'sum:7+5')"
                )
        return keys

    def _row(self, text: str, item: str | None, ended: bool) -> tuple[float | None, ...]:
        if item is None or self._kind_of[item] not in self.kinds:
            return (None,) * len(self.term_names)
        return self.score(Written(text, read(text), ended), self._kind_of[item], item)
