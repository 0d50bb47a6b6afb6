"""What a codec is: texts to ids and back, and the bytes behind byte-level tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with, and the byte of each.

    Printable Latin-1 stands for itself; the other bytes, in order, are written as the characters from U+0100
    on.
    Source: Radford et al. 2019 (GPT-2), section 2.2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def is_byte_level(decoder: dict[str, Any] | None) -> bool:
    """Whether a decoder, as tokenizer.json describes it, is byte-level and nothing else."""
    if decoder is not None and decoder["type"] == "Sequence" and len(decoder["decoders"]) == 1:
        decoder = decoder["decoders"][0]
    return decoder is not None and bool(decoder["type"] == "ByteLevel")


def byte_table(tokenizer: Tokenizer, size: int, skip: Collection[int]) -> tuple[bytes, ...]:
    """The bytes of every id in 0..size-1; b"" for ids in `skip` and for ids that the tokenizer does not have.

    A token with a character outside the alphabet (an added token) stands for its own UTF-8 bytes.
    """
    alphabet = byte_alphabet()
    table = []
    for token_id in range(size):
        token = None if token_id in skip else tokenizer.id_to_token(token_id)
        if token is None:
            table.append(b"")
        elif all(character in alphabet for character in token):
            table.append(bytes([alphabet[character] for character in token]))
        else:
            table.append(token.encode())
    return tuple(table)


@dataclass(frozen=True)
class ByteDecoder:
    """Joins the bytes of the ids, `table[id]` each; bytes that are no UTF-8 become U+FFFD."""

    table: tuple[bytes, ...]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Batch of ids to texts; ids beyond the table leave nothing."""
        piece = self.table.__getitem__
        try:
            return [b"".join(map(piece, ids)).decode("utf-8", "replace") for ids in batch]
        except IndexError:
            size = len(self.table)
            return self([[token_id for token_id in ids if token_id < size] for ids in batch])


Decoder = Callable[[Sequence[Sequence[int]]], list[str]]
MOST_TOKENS = 2**22
"""The largest vocabulary: masks and tables have an entry for every token."""


class Codec(Protocol):
    """A tokenizer.

    Attributes:
        size: 1 + the highest id.
        special_ids: the tokens that are no text: a policy may take them only as stop tokens.
        control_ids: those of them that never come out of a prompt's text; not the token for unknown words.
        added_ids: the tokens that are found in a text before it is split, special or not; without white space.
    """

    size: int
    special_ids: frozenset[int]
    control_ids: frozenset[int]
    added_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, without BOS or EOS; what reads like a control token stays text."""

    def encode_control(self, text: str) -> list[int]:
        """The ids of a text in which the text of a control token is that token."""

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """The ids of plain texts and tokens (their ids), read as one text. None of these tokens, and no control token,
        comes out of the plain texts.
        """

    def leading(self) -> list[int]:
        """The ids that the tokenizer itself puts before a text (BOS)."""

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """A picklable function from a batch of ids to texts; ids in `skip` and unknown ids leave nothing."""

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it; None for an id that it does not have."""

    def token_id(self, token: str) -> int | None:
        """The id of a token; None if there is none."""

    def tokens(self) -> list[str]:
        """Every token, for suggestions in error messages."""

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write the tokenizer's files as Hugging Face reads them; `config` is its tokenizer_config.json."""


def encode_as_text(encode: Callable[[str], list[int]], text: str, control: Mapping[str, int]) -> list[int]:
    """Encode `text` so that none of the `control` tokens (name to id) comes out of it.

    WordLevel and Unigram models hold their control tokens among the ordinary pieces and find them in plain
    text. There the control token's text is cut after its first character, and the parts are encoded on their
    own.

    Raises: ValueError if a control token comes out even so.
    """
    ids = encode(text)
    written = set(ids)
    found = [token for token, token_id in control.items() if token_id in written]
    if not found:
        return ids
    parts = re.split(
        "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in found), text
    )
    ids = [token_id for part in parts if part for token_id in encode(part)]
    if not set(ids).isdisjoint(control.values()):
        raise ValueError(f"prompt: this tokenizer cannot write {found[0]!r} as text, only as a control token")
    return ids


def leading_ids(framed: list[int], plain: list[int]) -> list[int]:
    """What stands before `plain` in `framed`; nothing if `plain` is not in it."""
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start]
    return []


def vocabulary_size(ids: Collection[int]) -> int:
    """Return 1 + the highest id. Raises: ValueError without any id, or for one that is not below `MOST_TOKENS`."""
    size = 1 + max(ids, default=-1)
    if not size:
        raise ValueError("tokenizer: it has no tokens")
    if size > MOST_TOKENS:
        raise ValueError(f"tokenizer: it has the token id {size - 1}; allowed are ids below {MOST_TOKENS}")
    return size
