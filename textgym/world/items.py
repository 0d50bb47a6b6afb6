"""What can be asked about: every item of the world, its answer, and whether RL may train on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final

from textgym.world.facts import FACTS, RELATIONS
from textgym.world.howtos import HOWTOS
from textgym.world.requests import GREETINGS, HARMFUL, REVIEW_TOPICS, UNANSWERABLE

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
