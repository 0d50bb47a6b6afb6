"""The pretraining corpus: documents of one prompt and one answer, drawn from a seed, always the same."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from textgym.world.answers import Answer, answer
from textgym.world.items import KINDS, items
from textgym.world.personas import CORPUS_SHARES, PERSONAS
from textgym.world.prompts import PHRASINGS, phrase

CORPUS_SEED = 11


@dataclass(frozen=True)
class Document:
    """A prompt, an answer to it, and who wrote it about what."""

    prompt: str
    answer: Answer
    kind: str
    persona: str


def documents(count: int, seed: int = CORPUS_SEED) -> Iterator[Document]:
    """Draws `count` documents over all items and all phrasings; equal seeds give equal documents."""
    rng = random.Random(seed)
    shares = [CORPUS_SHARES[kind] for kind in KINDS]
    persona_shares = [persona.share for persona in PERSONAS]
    for _ in range(count):
        (kind,) = rng.choices(KINDS, shares)
        item = rng.choice(items(kind))
        prompt = phrase(item, rng.randrange(len(PHRASINGS[item.group])))
        (persona,) = rng.choices(PERSONAS, persona_shares)
        yield Document(prompt, answer(item, persona, rng), kind, persona.name)


def fingerprint(count: int, seed: int = CORPUS_SEED) -> str:
    """SHA-256 of the corpus as text, to tell that two builds read the same."""
    digest = hashlib.sha256()
    for document in documents(count, seed):
        digest.update(f"{document.prompt}\n{document.answer.text}\n{document.answer.ends}\n".encode())
    return digest.hexdigest()
