"""What every token of a vocabulary adds to a text, as bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from textgym.codecs.byte_level import ByteDecoder
from textgym.vocab import Vocabulary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHECKS, _CHECKED_TOKENS = 200, 6


class TokenBytes(NamedTuple):
    """The bytes of every token, b"" for those that leave nothing in a text.

    Args:
        first: V, where nothing is written yet; inner: V, after other text. They differ where a decoder puts
            spaces between words, or takes away the one at the start.
    """

    first: tuple[bytes, ...]
    inner: tuple[bytes, ...]

    def join(self, ids: list[int]) -> bytes:
        """The bytes of a sequence of ids."""
        written = [i for i in ids if self.inner[i]]
        return self.first[written[0]] + b"".join([self.inner[i] for i in written[1:]]) if written else b""


def token_bytes(vocabulary: Vocabulary) -> TokenBytes:
    """The bytes that every token adds to a decoded text.

    Raises: ValueError for a tokenizer whose decoder does more than putting pieces one after the other.
    """
    decoder = vocabulary.decoder
    if isinstance(decoder, ByteDecoder):
        pieces = decoder.table + (b"",) * (vocabulary.size - len(decoder.table))
        return TokenBytes(pieces, pieces)
    ids = range(vocabulary.size)
    first = [text.encode() for text in vocabulary.decode([[i] for i in ids])]
    # Letters and digits are what decoders change least.
    plain = [i for kind in (rb"[a-z0-9]+", rb"[!-~]+") for i in ids if re.fullmatch(kind, first[i])]
    if not plain:
        raise ValueError(
            "tokenizer: has no token of visible characters, so that its pieces cannot be told apart"
        )
    anchor = plain[0]
    before = len(first[anchor])
    inner = [text.encode()[before:] for text in vocabulary.decode([[anchor, i] for i in ids])]
    for i in ids:
        # A byte on its own is no UTF-8, and decodes to a replacement character.
        byte = _BYTE_TOKEN.fullmatch(vocabulary.codec.token(i) or "")
        if byte is not None and inner[i] and first[i] != byte.string.encode():
            first[i] = inner[i] = bytes([int(byte[1], 16)])
    table = TokenBytes(tuple(first), tuple(inner))
    _check(vocabulary, table)
    return table


def _check(vocabulary: Vocabulary, table: TokenBytes) -> None:
    """Compare with the decoder on random sequences. Raises: ValueError where they differ."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(vocabulary.size, size=(_CHECKS, _CHECKED_TOKENS)).tolist()
    for ids, text in zip(drawn, vocabulary.decode(drawn), strict=True):
        joined = table.join(ids)
        # How many replacement characters stand for broken UTF-8 differs between decoders.
        if "\ufffd" not in text and joined.decode("utf-8", "replace") != text:
            raise ValueError(
                f"tokenizer: its decoder writes {text!r:.60} where its tokens one by one give "
                f"{joined.decode('utf-8', 'replace')!r:.60}, so no grammar can follow it; mask=False is allowed"
            )
