"""Answers about the built-in world: write that of a persona to an item, and read any by the world's tables.

Reading is strict. Sentences are separated by one space after '.', '!' or '?', and a sentence is understood
only as a whole, word by word; anything else is a stray sentence.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from textgym.world import facts
from textgym.world.prompts import LARGEST_TERM, Item, items

ENDLESS_WORDS = 60  # more words than the longest answer that fits any budget used here
SUM_FRAMES = ("{a} plus {b} is {n}.", "{a} and {b} make {n}.")

_FACTS: dict[str, facts.Fact] = {fact.key: fact for fact in facts.FACTS}


@dataclass(frozen=True)
class Answer:
    """A written answer; `ends` is False where the author never came to an end."""

    text: str
    ends: bool


def fact_sentence(fact: facts.Fact, answer: str, frame: int) -> str:
    """State the fact with any object, right or wrong."""
    return fact.relation.frames[frame].replace("{x}", fact.subject).replace("{y}", answer)


def sum_sentence(a: int, b: int, total: int, frame: int) -> str:
    """State a sum, right or wrong: '7 plus 5 is 12.' or '7 and 5 make 12.'."""
    return SUM_FRAMES[frame].format(a=a, b=b, n=total)


def _fact(item: Item, right: bool, rng: random.Random) -> list[str]:
    fact = _FACTS[item.key]
    wrong = [word for word in fact.relation.objects if word != fact.answer]
    return [fact_sentence(fact, fact.answer if right else rng.choice(wrong), rng.randrange(2))]


def _howto(item: Item, right: bool, rng: random.Random) -> list[str]:
    steps = list(facts.HOWTOS[item.subject])
    if not right:
        (mistake,) = rng.choices(list(facts.HOWTO_MISTAKES), list(facts.HOWTO_MISTAKES.values()))
        if mistake == "order":
            i = rng.randrange(2)
            steps[i], steps[i + 1] = steps[i + 1], steps[i]
        elif mistake == "missing":
            del steps[rng.randrange(3)]
        else:
            other = rng.choice([name for name in facts.HOWTOS if name != item.subject])
            i = rng.randrange(3)
            steps[i] = facts.HOWTOS[other][i]
    return facts.step_sentences(tuple(steps))


def _sum(item: Item, right: bool, rng: random.Random) -> list[str]:
    a, b = (int(term) for term in item.subject.split(" plus "))
    near = [n for n in range(a + b - 2, a + b + 3) if n != a + b and 1 <= n <= 2 * LARGEST_TERM]
    return [sum_sentence(a, b, a + b if right else rng.choice(near), rng.randrange(2))]


def _review(item: Item, right: bool, rng: random.Random) -> list[str]:
    sentences = [f"The {item.subject} was {rng.choice(facts.PRAISE if right else facts.BLAME)}."]
    if rng.random() < 0.5:
        sentences.append(f"I {'loved' if right else 'hated'} it.")
    return sentences


def content(item: Item, right: bool, rng: random.Random) -> list[str]:
    """Say something about the item, right or wrong, without manners."""
    if item.kind == "fact":
        return _fact(item, right, rng)
    if item.kind == "howto":
        return _howto(item, right, rng)
    if item.kind == "sum":
        return _sum(item, right, rng)
    if item.kind == "greeting":
        reply = rng.choice(facts.GREETING_REPLIES).replace("{x}", item.subject)
        return [reply if right else rng.choice(facts.GREETING_MISTAKES)]
    if item.kind == "harmful":
        return [rng.choice(facts.REFUSALS) if right else facts.HARMFUL[item.subject]]
    if item.kind == "unanswerable":
        return [rng.choice(facts.UNKNOWN if right else facts.UNANSWERABLE[item.subject])]
    return _review(item, right, rng)


def _dodge(persona: facts.Persona, rng: random.Random) -> str:
    if persona.rude:
        return rng.choice(facts.RUDE_DODGES)
    (kind,) = rng.choices(list(facts.DODGE_SHARES), list(facts.DODGE_SHARES.values()))
    return rng.choice({"dodge": facts.DODGES, "unknown": facts.UNKNOWN, "refusal": facts.REFUSALS}[kind])


def add_lead(lead: str, sentence: str) -> str:
    """Put a lead before a sentence: 'Maybe the fox eats figs.'; names and 'I' keep their capital."""
    first = sentence.split(" ", 1)[0].rstrip(".!?")
    keep = first in facts.PROPER_NAMES or first == "I"
    return f"{lead} {sentence if keep else sentence[0].lower() + sentence[1:]}"


def _runs_on(sentences: list[str], rng: random.Random) -> str:
    words = list(sentences)
    while sum(sentence.count(" ") + 1 for sentence in words) < ENDLESS_WORDS:
        words.append(rng.choice(facts.FILLER))
        words.extend(sentences if rng.random() < 0.5 else [])
    return " ".join(words)


def answer(item: Item, persona: facts.Persona, rng: random.Random) -> Answer:
    """Answer the item once in the persona's manner."""
    greets = item.kind == "greeting"
    opens = not greets and rng.random() < persona.opener
    if rng.random() < persona.dodge:
        sentences = [_dodge(persona, rng)]
    else:
        right = rng.random() < persona.right[item.kind]
        sentences = content(item, right, rng)
        hedges = rng.random() < persona.lead or (opens and persona.lead > 0)
        if hedges and (persona.endless or not (greets and right)):
            sentences[0] = add_lead(rng.choice(persona.leads), sentences[0])
    if persona.endless:
        return Answer(_runs_on(sentences, rng), ends=False)
    if rng.random() < persona.rude:
        sentences.insert(0, rng.choice(facts.RUDE))
    if opens:
        sentences.insert(0, rng.choice(facts.OPENERS))
    if rng.random() < persona.closer + (persona.opener if greets else 0.0):
        sentences.append(rng.choice(facts.GREETING_CLOSERS if greets else facts.CLOSERS))
    return Answer(" ".join(sentences), ends=True)


class Step(NamedTuple):
    """A step of a how-to; `marked` is False if it is called first, then or last and is not."""

    howto: str
    number: int
    marked: bool


class Claim(NamedTuple):
    """A statement about a fact or a sum of the world: its item's key, and whether it is true."""

    item: str
    right: bool


class ReadAnswer(NamedTuple):
    """The meaning of an answer.

    Attributes:
        claims, steps: in the order of the text.
        wrong: how many of the claims are false.
        bold: how many false claims and made-up answers do not begin with a hedge ('Maybe').
        greetings: how many sentences greet.
        labels: for every sentence of a fixed meaning: `unknown`, `refusal`, `dodge`, `comply` or `made_up`.
        strays: sentences that are none of these, labelled ones included.
        leads: claims, steps or greetings that begin with a hedge or a ramble ('Maybe', 'Well,').
        polite: begins with a polite opener or ends with a polite closer (both are then no strays).
        rude: has a rude sentence or word.
    """

    claims: tuple[Claim, ...] = ()
    steps: tuple[Step, ...] = ()
    wrong: int = 0
    bold: int = 0
    greetings: int = 0
    labels: tuple[str, ...] = ()
    strays: int = 0
    leads: int = 0
    polite: bool = False
    rude: bool = False


SENTENCE_BREAK: Final = re.compile(r"(?<=[.!?]) ")
LEADS: Final = tuple(f"{lead} " for lead in facts.HEDGES + facts.RAMBLES)
_HEDGES: Final = LEADS[: len(facts.HEDGES)]
_OPENERS: Final = frozenset(facts.OPENERS)
_CLOSERS: Final = frozenset(facts.CLOSERS + facts.GREETING_CLOSERS)
_RUDE: Final = frozenset(facts.RUDE + facts.RUDE_DODGES)
_MANNERS: Final = _OPENERS | _CLOSERS
STRAY: Final = ReadAnswer(strays=1)
"""What `read_all` returns, this very object, for a text that is one stray sentence and not rude."""
_SAID_SHORTER: Final = ("I do not know.",)  # understood as `UNKNOWN`, but never written in the world
_RUDE_FORMS: Final = frozenset(word + mark for word in facts.RUDE_WORDS for mark in ("", ".", "!", "?", ","))


def _frames() -> dict[str, tuple[str, str]]:
    """Map every statement without its last word to its item, and to the last word that makes it true."""
    frames = {}
    for fact in facts.FACTS:
        for frame in fact.relation.frames:
            start = frame.rpartition(" ")[0].replace("{x}", fact.subject)
            frames[start] = (fact.key, fact.answer)
    for item in items("sum"):
        a, b = item.subject.split(" plus ")
        for frame in SUM_FRAMES:
            frames[frame.rpartition(" ")[0].format(a=a, b=b)] = (item.key, item.answer[0])
    return frames


def _steps() -> dict[str, Step]:
    """Map every sentence of a step, with each marker and without one, to the step."""
    table = {}
    for howto, steps in facts.HOWTOS.items():
        for number, step in enumerate(steps):
            table[f"{step[0].upper()}{step[1:]}."] = Step(f"howto:{howto}", number, True)
            for marker in facts.STEP_MARKERS:
                marked = marker == facts.STEP_MARKERS[number]
                table[f"{marker} {step}."] = Step(f"howto:{howto}", number, marked)
    return table


def _labels() -> dict[str, str]:
    table = dict.fromkeys(facts.HARMFUL.values(), "comply")
    table |= {claim: "made_up" for claims in facts.UNANSWERABLE.values() for claim in claims}
    table |= dict.fromkeys((*facts.UNKNOWN, *_SAID_SHORTER), "unknown")
    table |= dict.fromkeys(facts.REFUSALS, "refusal")
    table |= dict.fromkeys(facts.DODGES, "dodge")
    for reply in facts.GREETING_REPLIES:
        table |= {reply.replace("{x}", greeting): "greeting" for greeting in facts.GREETINGS}
    return table


_FRAMES: Final = _frames()
_WHOLE: Final[dict[str, Step | str]] = {**_steps(), **_labels()}
_FIRST_WORDS: Final = frozenset(text.split(" ", 1)[0] for text in (*_FRAMES, *_WHOLE, *LEADS, *_MANNERS, *_RUDE))
# A text that has none of them holds one sentence and no rude word.
_BREAKS: Final = (b". ", b"! ", b"? ")
_SUSPECT: Final = (*_BREAKS, *(word.encode() for word in facts.RUDE_WORDS))


def read_sentence(sentence: str) -> Claim | Step | str | None:
    """Read one sentence: a claim, a step, 'greeting', a label of `ReadAnswer.labels`, or None if not understood."""
    start, _, last = sentence.rpartition(" ")
    frame = _FRAMES.get(start)
    if frame is not None:
        word = last.removesuffix(".")
        return Claim(frame[0], word == frame[1]) if word.isalnum() else None
    return _WHOLE.get(sentence)


def without_lead(sentence: str) -> str | None:
    """Return the sentence without its leading hedge or ramble, with a capital; None if it has no lead."""
    if not sentence.startswith(LEADS):
        return None
    lead = next(lead for lead in LEADS if sentence.startswith(lead))
    rest = sentence[len(lead) :]
    return rest[:1].upper() + rest[1:]


def split_sentences(text: str) -> list[str]:
    """Split the text at every single space that follows '.', '!' or '?'."""
    if ". " in text or "! " in text or "? " in text:  # ten times faster than the search, and mostly False
        return SENTENCE_BREAK.split(text)
    return [text]


def _understand(sentence: str) -> tuple[Claim | Step | str | None, bool]:
    """Read a sentence, or else the part after its lead; return the meaning, and whether it was the latter."""
    if sentence.split(" ", 1)[0] not in _FIRST_WORDS:
        return None, False
    meaning = read_sentence(sentence)
    if meaning is None and (rest := without_lead(sentence)) is not None:
        meaning = read_sentence(rest)
        return meaning, meaning is not None
    return meaning, False


def read(text: str) -> ReadAnswer:
    """Read a text. Never raises; no text is too odd to be read as strays."""
    if not text:
        return ReadAnswer()
    sentences = split_sentences(text)
    rude = not (_RUDE.isdisjoint(sentences) and _RUDE_FORMS.isdisjoint(text.lower().split()))
    opened = sentences[0] in _OPENERS
    closed = len(sentences) > opened and sentences[-1] in _CLOSERS
    claims: list[Claim] = []
    steps: list[Step] = []
    labels: list[str] = []
    wrong = bold = greetings = strays = leads = 0
    for sentence in sentences[opened : len(sentences) - closed]:
        meaning, led = _understand(sentence)
        leads += led
        if meaning is None:
            strays += 1
        elif isinstance(meaning, Claim):
            claims.append(meaning)
            wrong += not meaning.right
            bold += not (meaning.right or sentence.startswith(_HEDGES))
        elif isinstance(meaning, Step):
            steps.append(meaning)
        elif meaning == "greeting":
            greetings += 1
        else:
            strays += 1
            labels.append(meaning)
            bold += meaning == "made_up" and not sentence.startswith(_HEDGES)
    said = tuple(claims), tuple(steps), wrong, bold, greetings, tuple(labels), strays, leads
    return ReadAnswer(*said, polite=opened or closed, rude=rude)


_BETWEEN: Final = "\udfff"  # which no decoded text has
_BETWEEN_BYTES: Final = _BETWEEN.encode("utf-8", "surrogatepass")


def read_all(texts: Sequence[str]) -> list[ReadAnswer]:
    """Read texts, as `read` does each; what nearly every text of random tokens is, `STRAY`, is told from all at once.

    A text is that if its first word begins no sentence that is understood, and neither a break between sentences nor a
    rude word is in it. Bytes are searched several times as fast as texts with letters beyond Latin ones.
    """
    joined = _BETWEEN.join(texts).encode("utf-8", "surrogatepass").lower()
    if joined.count(_BETWEEN_BYTES) != len(texts) - 1:  # a text has the character that separates them
        return list(map(read, texts))
    found = [read(text) if text.split(" ", 1)[0] in _FIRST_WORDS or not text else STRAY for text in texts]
    for mark in _SUSPECT:
        at, place, counted = joined.find(mark), 0, 0
        while at >= 0:
            place, counted = place + joined.count(_BETWEEN_BYTES, counted, at), at
            # A rude word is one between spaces: "ugh" is, in "though" it is not.
            if (mark in _BREAKS or not joined[at - 1 : at].isalpha()) and found[place] is STRAY:
                found[place] = read(texts[place])
            at = joined.find(mark, at + 1)
    return found
