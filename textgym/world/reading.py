"""Read an answer: split it into sentences and understand each of them by the tables of the world.

Reading is strict. Sentences are separated by one space after '.', '!' or '?', and a sentence is understood
only as a whole, word by word; anything else is a stray sentence.
"""

import re
from typing import Final, NamedTuple

from textgym.world import facts
from textgym.world.answers import SUM_FRAMES
from textgym.world.prompts import items


class Step(NamedTuple):
    """A step of a how-to; `marked` is False if it is called first, then or last and is not."""

    howto: str
    number: int
    marked: bool


class Claim(NamedTuple):
    """A statement about a fact or a sum of the world: its item's key, and whether it is true."""

    item: str
    right: bool


class Reading(NamedTuple):
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


def read_sentence(sentence: str) -> Claim | Step | str | None:
    """Read one sentence: a claim, a step, 'greeting', a label of `Reading.labels`, or None if not understood."""
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


def has_rude_word(text: str) -> bool:
    """Return whether a word of `RUDE_WORDS` is in the text, in any case, as a whole word."""
    return not _RUDE_FORMS.isdisjoint(text.lower().split())


def _understand(sentence: str) -> tuple[Claim | Step | str | None, bool]:
    """Read a sentence, or else the part after its lead; return the meaning, and whether it was the latter."""
    meaning = read_sentence(sentence)
    if meaning is None and (rest := without_lead(sentence)) is not None:
        meaning = read_sentence(rest)
        return meaning, meaning is not None
    return meaning, False


def read(text: str) -> Reading:
    """Read a text. Never raises; no text is too odd to be read as strays."""
    if not text:
        return Reading()
    sentences = split_sentences(text)
    rude = not _RUDE.isdisjoint(sentences) or has_rude_word(text)
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
    return Reading(*said, polite=opened or closed, rude=rude)
