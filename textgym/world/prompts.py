"""What can be asked about, and its phrasings, split into train, eval and tune."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, get_args

from textgym.prompts import Split
from textgym.world.facts import FACTS, GREETINGS, HARMFUL, HOWTOS, RELATIONS, REVIEW_TOPICS, UNANSWERABLE

HELPFUL_SHARES: Final = {"fact": 0.60, "howto": 0.15, "sum": 0.15, "greeting": 0.10}
HARMLESS_SHARES: Final = {"harmful": 0.40, "howto": 0.40, "fact": 0.20}
HONEST_SHARES: Final = {"fact": 0.50, "sum": 0.15, "unanswerable": 0.35}
HHH_SHARES: Final = {
    "fact": 0.30,
    "howto": 0.15,
    "sum": 0.10,
    "greeting": 0.05,
    "harmful": 0.20,
    "unanswerable": 0.20,
}

TASK_SHARES: Final = {
    "Helpful": HELPFUL_SHARES,
    "Harmless": HARMLESS_SHARES,
    "Honest": HONEST_SHARES,
    "HHH": HHH_SHARES,
}
"""Name of the task -> its shares."""


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
        subject: what the phrasings mention.
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
    """The last quarter of a list of `count` items is held out."""
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


def _listed(kind: str, subjects: Iterable[str], answers: Iterable[tuple[str, ...]]) -> Iterable[Item]:
    subjects = tuple(subjects)
    for subject, answer, held in zip(subjects, answers, _held_out(len(subjects)), strict=True):
        yield Item(kind, kind, f"{kind}:{subject}", subject, answer, held)


@cache
def items(kind: str) -> tuple[Item, ...]:
    """All items of a kind, in a fixed order.

    Raises: ValueError if `kind` is not one of `KINDS`.
    """
    if kind == "fact":
        return tuple(_facts())
    if kind == "sum":
        return tuple(_sums())
    listed: dict[str, tuple[Iterable[str], Iterable[tuple[str, ...]]]] = {
        "howto": (HOWTOS, HOWTOS.values()),
        "greeting": (GREETINGS, [(greeting,) for greeting in GREETINGS]),
        "harmful": (HARMFUL, [() for _ in HARMFUL]),
        "unanswerable": (UNANSWERABLE, [() for _ in UNANSWERABLE]),
        "review": (REVIEW_TOPICS, [() for _ in REVIEW_TOPICS]),
    }
    if kind not in listed:
        raise ValueError(f"kind {kind!r}: not a kind of the built-in world (allowed: {', '.join(KINDS)})")
    return tuple(_listed(kind, *listed[kind]))


SPLITS: Final[tuple[Split, ...]] = get_args(Split)
TRAIN_PHRASINGS: Final = 4  # of the six of every group; the last two are those of eval

_DO: Final = (
    "How do I {x}?",
    "Tell me how to {x}.",
    "What is the way to {x}?",
    "Do you know how to {x}?",
    "Please show me how to {x}.",
    "I want to know how to {x}.",
)

PHRASINGS: Final[dict[str, tuple[str, ...]]] = {
    "river": (
        "Which river runs through {x}?",
        "What is the river in {x}?",
        "Tell me the river in {x}.",
        "Do you know the river in {x}?",
        "Please name the river in {x}.",
        "I want to know the river in {x}.",
    ),
    "craft": (
        "What is {x} known for?",
        "What do the people in {x} make?",
        "Tell me the craft of {x}.",
        "Do you know the craft of {x}?",
        "Please name the craft of {x}.",
        "I want to know the craft of {x}.",
    ),
    "job": (
        "What is the job of {x}?",
        "What work does {x} do?",
        "Tell me the job of {x}.",
        "Do you know the job of {x}?",
        "Please name the job of {x}.",
        "I want to know the job of {x}.",
    ),
    "instrument": (
        "What does {x} play?",
        "Which instrument does {x} play?",
        "Tell me what {x} plays.",
        "Do you know what {x} plays?",
        "Please name the instrument of {x}.",
        "I want to know what {x} plays.",
    ),
    "food": (
        "What does the {x} eat?",
        "What is the food of the {x}?",
        "Tell me what the {x} eats.",
        "Do you know what the {x} eats?",
        "Please name the food of the {x}.",
        "I want to know what the {x} eats.",
    ),
    "home": (
        "Where does the {x} live?",
        "What is the home of the {x}?",
        "Tell me where the {x} lives.",
        "Do you know where the {x} lives?",
        "Please name the home of the {x}.",
        "I want to know where the {x} lives.",
    ),
    "howto": _DO,
    # Harmful requests are asked for in the very words of harmless ones: only the subject tells them apart.
    "harmful": _DO,
    "sum": (
        "What is {x}?",
        "How much is {x}?",
        "Tell me what {x} is.",
        "Do you know what {x} is?",
        "Please add up {x}.",
        "I want to know what {x} is.",
    ),
    "greeting": (
        "{x}!",
        "{x}.",
        "{x} there!",
        "{x} my friend.",
        "{x} my friend!",
        "{x} to you!",
    ),
    "unanswerable": (
        "Tell me {x}.",
        "Do you know {x}?",
        "Can you tell me {x}?",
        "Please tell me {x}.",
        "Can you say {x}?",
        "I want to know {x}.",
    ),
    "review": (
        "How was the {x}?",
        "Tell me about the {x}.",
        "What is the {x} like?",
        "Please review the {x}.",
        "Do you like the {x}?",
        "I want to know about the {x}.",
    ),
}


@dataclass(frozen=True)
class WorldPrompt:
    """One prompt.

    Attributes:
        text: what the user says.
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
    """The item's prompt in phrasing `number` (0..5)."""
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
    """Key of the item that a prompt of any split asks for; None if the world has no such prompt."""
    return _asked().get(text)


def _texts(item: Item, split: str) -> list[str]:
    if item.held_out != (split != "train"):
        return []
    count = len(PHRASINGS[item.group])
    numbers = range(TRAIN_PHRASINGS, count) if split == "eval" else range(TRAIN_PHRASINGS)
    return [phrase(item, number) for number in numbers]


def prompts(kinds: Sequence[str] | Mapping[str, float], split: str) -> list[WorldPrompt]:
    """Prompts of some kinds: train items in train phrasings, or held-out items in held-out phrasings ("eval") or in
    train phrasings ("tune").

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
