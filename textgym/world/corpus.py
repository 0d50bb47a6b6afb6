"""The pretraining corpus, and the byte-level BPE tokenizer trained on it."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from textgym.world.answers import Answer, answer
from textgym.world.facts import CORPUS_SHARES, PERSONAS
from textgym.world.prompts import KINDS, PHRASINGS, items, phrase

CORPUS_SEED = 11


@dataclass(frozen=True)
class Document:
    """A prompt and an answer to it, with the kind of prompt and the author's name."""

    prompt: str
    answer: Answer
    kind: str
    persona: str


def documents(count: int, seed: int = CORPUS_SEED) -> Iterator[Document]:
    """Yield `count` documents over all items and all phrasings; equal seeds give equal documents."""
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
    """Return the SHA-256 of the corpus as text, to tell that two builds read the same."""
    digest = hashlib.sha256()
    for document in documents(count, seed):
        digest.update(f"{document.prompt}\n{document.answer.text}\n{document.answer.ends}\n".encode())
    return digest.hexdigest()


SPECIAL_TOKENS: Final = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD_ID, USER_ID, ASSISTANT_ID, END_ID = range(4)
VOCABULARY_SIZE: Final = 1024
MAX_POSITIONS: Final = 256
TOKENIZER_DOCUMENTS: Final = 60_000  # enough to count every word of the world
FACT_COPIES: Final = 3  # facts are counted so often that every name and every object gets one token
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer() -> Tokenizer:
    """Train the BPE on the first documents; all 256 bytes have an id, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents(TOKENIZER_DOCUMENTS)), trainer)
    return tokenizer


def _texts(batch: Iterable[Document]) -> Iterator[str]:
    for document in batch:
        for _ in range(FACT_COPIES if document.kind == "fact" else 1):
            yield document.prompt
            yield document.answer.text


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "eos_token": SPECIAL_TOKENS[END_ID],
        "additional_special_tokens": [SPECIAL_TOKENS[USER_ID], SPECIAL_TOKENS[ASSISTANT_ID]],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def encode_documents(
    tokenizer: Tokenizer, batch: Iterable[Document], max_new_tokens: int
) -> list[tuple[list[int], int]]:
    """Encode documents: user mark, prompt, end, assistant mark, answer, end.

    An answer longer than `max_new_tokens` (its end token included) is cut there, and has no end token.

    Returns: for each document its ids and the length of its prompt part (marks included).
    """
    batch = list(batch)
    prompts = tokenizer.encode_batch([document.prompt for document in batch])
    answers = tokenizer.encode_batch([document.answer.text for document in batch])
    encoded = []
    for document, prompt, written in zip(batch, prompts, answers, strict=True):
        head = [USER_ID, *prompt.ids, END_ID, ASSISTANT_ID]
        tail = [*written.ids, END_ID] if document.answer.ends else written.ids
        encoded.append((head + tail[:max_new_tokens], len(head)))
    return encoded
