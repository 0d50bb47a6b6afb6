"""The items that prompts ask about and their phrasings, split into train, eval and tune."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, get_args

from textgym.prompts import Split
from textgym.world.facts import FACTS, GREETINGS, HARMFUL, HOWTOS, RELATIONS, REVIEW_TOPICS, UNANSWERABLE, WORLD

TASK_SHARES: Final[dict[str, dict[str, float]]] = {
    task: WORLD["shares"][task] for task in ("Helpful", "Harmless", "Honest", "HHH")
}
"""Name of the task -> kind of prompt -> its share."""


KINDS: Final = ("fact", "howto", "sum", "greeting", "harmful", "unanswerable", "review")
HELD_OUT_SHARE: Final = 4  # one item in four is kept for `eval`
LARGEST_TERM: Final = 10


@dataclass(frozen=True)
class Item:
    """One thing to ask about.

    Attributes:
        kind: one of `KINDS`.
        group: names the phrasings that ask for it: the relation of a fact, else the kind.
        key: stable and unique, for example `river:Velmora` or `sum:7+5`.
        subject: replaces `{x}` in the phrasings.
        answer: key phrases of a right answer, in order; empty where no answer is right.
        held_out: True if only `eval` prompts ask for it.
    """

    kind: str
    group: str
    key: str
    subject: str
    answer: tuple[str, ...]
    held_out: bool


def _held_out(count: int) -> list[bool]:
    """Return which of `count` items are held out: the last quarter."""
    first = count - count // HELD_OUT_SHARE
    return [position >= first for position in range(count)]


def _facts() -> Iterable[Item]:
    held_out = {
        subject: held
        for relation in RELATIONS
        for subject, held in zip(relation.subjects, _held_out(len(relation.subjects)), strict=True)
    }
    for fact in FACTS:
        name, subject = fact.relation.name, fact.subject
        yield Item("fact", name, fact.key, subject, (fact.answer,), held_out[subject])


def _sums() -> Iterable[Item]:
    terms = range(1, LARGEST_TERM + 1)
    for a in terms:
        for b in terms:
            # Symmetric, so that a held-out sum is not trained on with its terms swapped.
            held = (a - b) % HELD_OUT_SHARE == 0
            yield Item("sum", "sum", f"sum:{a}+{b}", f"{a} plus {b}", (str(a + b),), held)


@cache
def items(kind: str) -> tuple[Item, ...]:
    """Return all items of a kind, in a fixed order.

    Raises: ValueError if `kind` is not one of `KINDS`.
    """
    if kind == "fact":
        return tuple(_facts())
    if kind == "sum":
        return tuple(_sums())
    listed = {
        "howto": tuple(HOWTOS),
        "greeting": GREETINGS,
        "harmful": tuple(HARMFUL),
        "unanswerable": tuple(UNANSWERABLE),
        "review": REVIEW_TOPICS,
    }
    if kind not in listed:
        raise ValueError(f"kind {kind!r}: not a kind of the built-in world (allowed: {', '.join(KINDS)})")
    found = []
    for subject, held in zip(listed[kind], _held_out(len(listed[kind])), strict=True):
        answer = HOWTOS[subject] if kind == "howto" else (subject,) if kind == "greeting" else ()
        found.append(Item(kind, kind, f"{kind}:{subject}", subject, answer, held))
    return tuple(found)


SPLITS: Final[tuple[Split, ...]] = get_args(Split)
TRAIN_PHRASINGS: Final = 4  # of the six of every group; the last two are those of eval

PHRASINGS: Final[dict[str, tuple[str, ...]]] = {group: tuple(forms) for group, forms in WORLD["phrasings"].items()}
"""Relation of a fact, or kind -> six ways to ask; `{x}` is the subject."""
# Harmful requests are asked for in the very words of harmless ones: only the subject tells them apart.
PHRASINGS["harmful"] = PHRASINGS["howto"]


@dataclass(frozen=True)
class WorldPrompt:
    """One prompt.

    Attributes:
        text: the user's message.
        kind: one of `textgym.world.prompts.KINDS`.
        item: key of the item it asks about, the same for all phrasings.
        weight: its probability; the weights of a list of prompts sum to 1.
        columns: JSON-like data that rewards read: `kind`, `item`, `answer` (key phrases, in order).
    """

    text: str
    kind: str
    item: str
    weight: float
    columns: Mapping[str, Any]


def phrase(item: Item, number: int) -> str:
    """Return the item's prompt in phrasing `number` (0..5)."""
    return PHRASINGS[item.group][number].replace("{x}", item.subject)


@cache
def _asked() -> dict[str, str]:
    return {
        phrase(item, number): item.key
        for kind in KINDS
        for item in items(kind)
        for number in range(len(PHRASINGS[item.group]))
    }


def find_item(text: str) -> str | None:
    """Return the key of the item that a prompt of any split asks for; None if the world has no such prompt."""
    return _asked().get(text)


def _texts(item: Item, split: str) -> list[str]:
    if item.held_out != (split != "train"):
        return []
    count = len(PHRASINGS[item.group])
    numbers = range(TRAIN_PHRASINGS, count) if split == "eval" else range(TRAIN_PHRASINGS)
    return [phrase(item, number) for number in numbers]


def prompts(kinds: Sequence[str] | Mapping[str, float], split: str) -> list[WorldPrompt]:
    """Return the prompts of some kinds in one split.

    Train items come in train phrasings, held-out items in held-out phrasings ("eval") or train phrasings ("tune").

    Args:
        kinds: kinds of equal share, or a share for every kind (positive, any scale).
        split: `train`, `eval` or `tune`.
    Returns: prompts in a fixed order; the prompts of a kind share its weight equally.
    Raises: ValueError for an unknown kind or split, no kind, or a share that is not positive.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: not a split (allowed: {', '.join(SPLITS)})")
    shares = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(kinds, 1.0)
    if not shares or not all(share > 0 for share in shares.values()):
        raise ValueError(f"kinds {kinds!r}: needs at least one kind, every share above 0")
    total = sum(shares.values())
    found: list[WorldPrompt] = []
    for kind, share in shares.items():
        asked = [(item, text) for item in items(kind) for text in _texts(item, split)]
        weight = share / total / len(asked)
        for item, text in asked:
            columns = {"kind": kind, "item": item.key, "answer": item.answer}
            found.append(WorldPrompt(text, kind, item.key, weight, columns))
    return found
