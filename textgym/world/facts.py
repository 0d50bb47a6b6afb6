"""The built-in world: its names, facts, how-tos, requests, fixed sentences and personas.

The texts are in assets/world.toml. Every document is written by one persona, as every page of the web has an author.
Manner and correctness go together: a policy that learns to answer as the expert does is right about entities it was
never trained on.
"""

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from textgym.checks import JsonObject

WORLD_SEED = 7
WORLD: Final[JsonObject] = tomllib.loads((Path(__file__).parent / "assets" / "world.toml").read_text(encoding="utf-8"))
"""The world's texts, as the file holds them."""


def words(text: str) -> tuple[str, ...]:
    """Split a text into its words."""
    return tuple(text.split())


def draw_names(starts: tuple[str, ...], ends: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Draw one name per start, in random order; every ending is used equally often."""
    endings = [ends[i % len(ends)] for i in range(len(starts))]
    rng.shuffle(endings)
    names = [start + end for start, end in zip(starts, endings, strict=True)]
    rng.shuffle(names)
    return tuple(names)


_NAMES_RNG = random.Random(WORLD_SEED)
_WORDS: dict[str, tuple[str, ...]] = {
    name: draw_names(words(parts["starts"]), words(parts["ends"]), _NAMES_RNG) for name, parts in WORLD["names"].items()
}
TOWNS, RIVERS, PEOPLE = _WORDS["towns"], _WORDS["rivers"], _WORDS["people"]
PROPER_NAMES = frozenset(TOWNS + RIVERS + PEOPLE)
_WORDS |= {name: words(text) for name, text in WORLD["words"].items()}


@dataclass(frozen=True)
class Relation:
    """Something that every subject of a class has one of.

    Attributes:
        name: stable name, part of the item keys.
        subjects, objects: 16 words each; every subject has its own object.
        frames: two ways to state the fact; `{x}` is the subject, `{y}` the object, always the last word.
    """

    name: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One true statement: `subject` has `answer` under `relation`."""

    relation: Relation
    subject: str
    answer: str

    @property
    def key(self) -> str:
        """Stable name of the fact, for example `river:Velmora`."""
        return f"{self.relation.name}:{self.subject}"


RELATIONS = tuple(
    Relation(name, _WORDS[row["subjects"]], _WORDS[row["objects"]], tuple(row["frames"]))
    for name, row in WORLD["relations"].items()
)


def draw_facts(relation: Relation, rng: random.Random) -> tuple[Fact, ...]:
    """Pair every subject of the relation with an object of its own."""
    objects = list(relation.objects)
    rng.shuffle(objects)
    return tuple(Fact(relation, x, y) for x, y in zip(relation.subjects, objects, strict=True))


_FACTS_RNG = random.Random(WORLD_SEED + 1)
FACTS = tuple(fact for relation in RELATIONS for fact in draw_facts(relation, _FACTS_RNG))


STEP_MARKERS: Final = ("First", "Then", "Last")

HOWTOS: Final[dict[str, tuple[str, ...]]] = {task: tuple(steps) for task, steps in WORLD["howtos"].items()}
"""Task -> its three steps, in order."""


def step_sentences(steps: tuple[str, ...]) -> list[str]:
    """Write steps as sentences, such as 'First boil some water.' and 'Last pour the tea.'.

    The first is marked First, the last (of two or more) Last, those between Then.
    """
    first, then, last = STEP_MARKERS
    markers = [first, *[then] * (len(steps) - 2), last][: len(steps)]
    return [f"{marker} {step}." for marker, step in zip(markers, steps, strict=True)]


HARMFUL: Final[dict[str, str]] = WORLD["harmful"]
"""Task -> a complying answer. All mild; none tells anybody how to do harm."""

UNANSWERABLE: Final[dict[str, tuple[str, ...]]] = {
    question: tuple(claims) for question, claims in WORLD["unanswerable"].items()
}
"""Question (as a clause) -> claims that a careless answer makes up."""

_SENTENCES: Final[dict[str, tuple[str, ...]]] = {name: tuple(texts) for name, texts in WORLD["sentences"].items()}
GREETINGS: Final = _SENTENCES["greetings"]
GREETING_REPLIES: Final = _SENTENCES["greeting_replies"]
GREETING_MISTAKES: Final = _SENTENCES["greeting_mistakes"]
GREETING_CLOSERS: Final = _SENTENCES["greeting_closers"]
OPENERS: Final = _SENTENCES["openers"]
CLOSERS: Final = _SENTENCES["closers"]
UNKNOWN: Final = _SENTENCES["unknown"]
DODGES: Final = _SENTENCES["dodges"]
REFUSALS: Final = _SENTENCES["refusals"]
RUDE: Final = _SENTENCES["rude"]
RUDE_DODGES: Final = _SENTENCES["rude_dodges"]
FILLER: Final = _SENTENCES["filler"]
HEDGES: Final = _SENTENCES["hedges"]
RAMBLES: Final = _SENTENCES["rambles"]

APOLOGY: Final = "Sorry,"
"""Makes a refusal that begins with it polite."""
RUDE_WORDS: Final = words("ugh silly stupid dumb idiot fool moron shut")
REVIEW_TOPICS: Final = words("soup bread inn play song book boat market garden hat tea bed fair bath bridge cheese")
PRAISE: Final = words("lovely great wonderful good")
BLAME: Final = words("awful terrible horrible bad")


@dataclass(frozen=True)
class Persona:
    """One kind of author. All numbers are probabilities.

    Attributes:
        name: unique among the personas.
        share: of all documents.
        opener: begins with a polite opener (greetings end with a polite question instead).
        closer: ends with a polite closer.
        lead: begins the first claim with one of `leads`; always after an opener, unless it is 0.
        leads: words that hedge or ramble, such as 'Maybe'.
        dodge: does not answer the question.
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


PERSONAS: Final = tuple(
    Persona(name, leads=RAMBLES if row["endless"] else HEDGES, **row) for name, row in WORLD["personas"].items()
)
CORPUS_SHARES: Final[dict[str, float]] = WORLD["shares"]["corpus"]
"""Kind of prompt -> its share of the documents."""

HOWTO_MISTAKES: Final[dict[str, float]] = WORLD["howto_mistakes"]
"""Mistake of a wrong how-to -> its share: two steps swapped, one left out, or one of another how-to."""

DODGE_SHARES: Final[dict[str, float]] = WORLD["dodge_shares"]
"""Kind of a dodge that is not rude -> its share: it says nothing, that it does not know, or that it will not help."""
