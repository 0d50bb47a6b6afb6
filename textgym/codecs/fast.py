"""The codec of a `tokenizers.Tokenizer`: of tokenizer.json files and Hugging Face's fast tokenizers."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from textgym.codecs.byte_level import ByteDecoder, byte_table, is_byte_level
from textgym.codecs.protocol import Decoder, encode_as_text, leading_ids, vocabulary_size


class FastCodec:
    """Works on copies: the caller's tokenizer is never changed.

    Args:
        tokenizer: any tokenizer that can be written as JSON.
        special: names of control tokens beyond those that the tokenizer itself marks as special.
    Raises: ValueError if the tokenizer has no tokens, or an id beyond `MOST_TOKENS`, or cannot be written as JSON (a
        part of it is a Python object).
    """

    def __init__(self, tokenizer: Tokenizer, special: Collection[str] = ()) -> None:
        self._vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.size = vocabulary_size(self._vocabulary.values())
        written = _written(tokenizer)
        self._tokenizer = Tokenizer.from_str(written)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        description = json.loads(written)
        self._byte_level = is_byte_level(description["decoder"])
        marked = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        named = {self._vocabulary[name] for name in special if name in self._vocabulary}
        self.special_ids = frozenset(marked | named)
        # The token for unknown words comes out of ordinary text, and controls nothing.
        unknown = (description["model"].get("unk_token"), description["model"].get("unk_id"))
        self._forbidden = {
            token: token_id
            for token, token_id in self._vocabulary.items()
            if token_id in self.special_ids and token not in unknown and token_id not in unknown
        }

    def encode(self, text: str) -> list[int]:
        """Plain text. Raises: ValueError where a control token cannot be written as text."""
        return encode_as_text(self._ids, text, self._forbidden)

    def encode_control(self, text: str) -> list[int]:
        """A template's fixed part."""
        return self._ids(text, as_text=False)

    def leading(self) -> list[int]:
        """What the post-processor puts before a text."""
        return leading_ids(self._ids("a", framed=True), self._ids("a"))

    def _ids(self, text: str, *, as_text: bool = True, framed: bool = False) -> list[int]:
        # Set for every text, because the tokenizers library forgets it when a tokenizer is copied or pickled.
        self._tokenizer.encode_special_tokens = as_text
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=framed).ids
        return ids

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Bytes joined by table where the tokenizer is byte-level, the library's own decoder elsewhere."""
        if self._byte_level:
            return ByteDecoder(byte_table(self._tokenizer, self.size, skip))
        return LibraryDecoder(self._tokenizer, skip)

    def token(self, token_id: int) -> str | None:
        """The token of this id."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def token_id(self, token: str) -> int | None:
        """The id of a token, or of a text that is a single token."""
        if token in self._vocabulary:
            return self._vocabulary[token]
        ids = self._ids(token)
        if len(ids) != 1 or ids[0] in self.special_ids:
            return None
        # An unknown word also becomes one token, which is another one.
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return ids[0] if text.strip() == token.strip() else None

    def tokens(self) -> list[str]:
        """Every token."""
        return list(self._vocabulary)


@dataclass(frozen=True)
class LibraryDecoder:
    """The tokenizers library's decoder, without the ids in `skip`."""

    tokenizer: Tokenizer
    skip: frozenset[int]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Batch of ids to texts; ids that the tokenizer does not have leave nothing."""
        skip, decode = self.skip, self.tokenizer.decode
        return [decode([i for i in ids if i not in skip], skip_special_tokens=False) for ids in batch]


def _written(tokenizer: Tokenizer) -> str:
    try:
        text: str = tokenizer.to_str()
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"tokenizer: {tokenizer!r:.80} cannot be copied through JSON ({error})") from error
    return text
