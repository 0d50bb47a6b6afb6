"""Decoding byte-level BPE by joining bytes: the text that the tokenizers library gives, many times faster."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

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
