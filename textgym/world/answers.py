"""Write the answer of a persona to an item."""

import random
from dataclasses import dataclass

from textgym.world import facts
from textgym.world.prompts import LARGEST_TERM, Item

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
