"""The protocol of codecs (texts to ids and back), and the bytes behind byte-level tokens."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from tokenizers import Tokenizer

from textgym.checks import JsonObject

Decoder = Callable[[Sequence[Sequence[int]]], list[str]]
"""From a batch of B lists of ids to B texts."""
MOST_TOKENS = 2**22
"""The largest vocabulary: masks and tables have an entry for every token."""


class Codec(ABC):
    """A tokenizer.

    Attributes:
        size: 1 + the highest id.
        special_ids: the tokens that are no text: a policy may take them only as stop tokens.
        control_ids: those of them that never come out of a prompt's text; not the token for unknown words.
        added_ids: the tokens that are found in a text before it is split, special or not; without white space.

    Args:
        vocabulary: token -> id.
    Raises: ValueError without any token, or for an id that is not below `MOST_TOKENS`.
    """

    special_ids: frozenset[int]
    control_ids: frozenset[int]
    added_ids: frozenset[int]

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self._vocabulary = dict(vocabulary)
        self._names = {token_id: token for token, token_id in vocabulary.items()}
        self.size = 1 + max(self._names, default=-1)
        if not self.size:
            raise ValueError("tokenizer: it has no tokens")
        if self.size > MOST_TOKENS:
            raise ValueError(f"tokenizer: it has the token id {self.size - 1}; allowed are ids below {MOST_TOKENS}")

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without BOS or EOS; what reads like a control token stays text.

        Raises: ValueError where a control token cannot be written as text, or a word is not in the vocabulary.
        """

    @abstractmethod
    def encode_control(self, text: str) -> list[int]:
        """Return the ids of a text in which the text of a control token is that token."""

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of `parts`, plain texts and tokens (their ids), read as one text.

        None of these tokens, and no control token, comes out of the plain texts.
        Raises: ValueError as `encode`.
        """
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.encode(part) if part else []
        return ids

    def leading(self) -> list[int]:
        """Return the ids that the tokenizer itself puts before a text (BOS)."""
        return self.frame()[0]

    def frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer itself puts before a text (BOS) and after it (EOS)."""
        return [], []

    @abstractmethod
    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Return a picklable function from a batch of ids to texts; ids in `skip` and unknown ids leave nothing."""

    def token(self, token_id: int) -> str | None:
        """Return the token of `token_id` as the vocabulary writes it; None for an id that it does not have."""
        return self._names.get(token_id)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or of a text that is a single token; None if there is none."""
        return self._vocabulary.get(token)

    def tokens(self) -> list[str]:
        """Return every token, for suggestions in error messages."""
        return list(self._vocabulary)

    @abstractmethod
    def save(self, folder: Path, config: JsonObject) -> None:
        """Write the files that Hugging Face reads into `folder`; `config` is what tokenizer_config.json says."""


def encode_as_text(encode: Callable[[str], list[int]], text: str, control: Mapping[int, str]) -> list[int]:
    """Encode `text` so that none of the `control` tokens (id to name) comes out of it.

    WordLevel and Unigram models hold their control tokens among the ordinary pieces and find them in plain text. There
    the control token's text is cut after its first character, and the parts are encoded on their own.

    Raises: ValueError if a control token comes out even so.
    """
    ids = encode(text)
    found = [control[token_id] for token_id in dict.fromkeys(ids) if token_id in control]
    if not found:
        return ids
    parts = re.split("|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in found), text)
    ids = [token_id for part in parts if part for token_id in encode(part)]
    if not control.keys().isdisjoint(ids):
        raise ValueError(f"prompt: this tokenizer cannot write {found[0]!r} as text, only as a control token")
    return ids


def frame_ids(framed: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """Return what stands before and after `plain` in `framed`; nothing if `plain` is not in it."""
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    return [], []


@dataclass(frozen=True)
class ByteDecoder:
    """Joins the bytes of the ids, `table[id]` each; bytes that are no UTF-8 become U+FFFD."""

    table: tuple[bytes, ...]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of a batch of ids; ids beyond the table leave nothing."""
        table = self.table
        try:
            # An itemgetter of many ids takes half the time of so many look-ups; it needs at least two of them.
            found = (itemgetter(*ids)(table) if len(ids) > 1 else [table[i] for i in ids] for ids in batch)
            return [b"".join(pieces).decode("utf-8", "replace") for pieces in found]
        except IndexError:
            size = len(self.table)
            return self([[token_id for token_id in ids if token_id < size] for ids in batch])


def byte_table(tokenizer: Tokenizer, size: int, skip: Collection[int]) -> tuple[bytes, ...]:
    """Return the bytes of every id in 0..size-1 of a byte-level tokenizer.

    They are b"" for ids in `skip` and for ids that the tokenizer does not have. A token with a character outside the
    alphabet (an added token) stands for its own UTF-8 bytes.
    """
    alphabet = _byte_alphabet()
    table = []
    for token_id in range(size):
        token = (None if token_id in skip else tokenizer.id_to_token(token_id)) or ""
        known = all(character in alphabet for character in token)
        table.append(bytes([alphabet[character] for character in token]) if known else token.encode())
    return tuple(table)


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that byte-level vocabularies write bytes with, and the byte of each.

    Printable Latin-1 stands for itself; the other bytes, in order, are written as the characters from U+0100 on.
    Source: Radford et al. 2019 (GPT-2), section 2.2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
