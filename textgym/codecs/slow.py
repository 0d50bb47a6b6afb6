"""The codec of a Hugging Face tokenizer that is written in Python (a "slow" one)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgym.codecs.protocol import Decoder, encode_as_text, leading_ids, vocabulary_size


class SlowCodec:
    """Works on a copy: the caller's tokenizer is never changed.

    Args:
        tokenizer: a Hugging Face tokenizer object without a Rust backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._vocabulary: dict[str, int] = dict(self._tokenizer.get_vocab())
        self.size = vocabulary_size(self._vocabulary.values())
        self._names = {token_id: token for token, token_id in self._vocabulary.items()}
        self.special_ids = frozenset(i for i in self._tokenizer.all_special_ids if i is not None)
        unknown = self._tokenizer.unk_token_id
        self._forbidden = {self._names[i]: i for i in self.special_ids if i in self._names and i != unknown}
        self.control_ids = frozenset(self._forbidden.values())
        added = self._tokenizer.added_tokens_encoder.items()
        self.added_ids = frozenset(token_id for token, token_id in added if token.strip())

    def _encode(self, text: str, as_text: bool) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": as_text}
        return [int(i) for i in self._tokenizer.encode(text, **options)]

    def encode(self, text: str) -> list[int]:
        """Plain text. Raises: ValueError where a control token cannot be written as text."""
        return encode_as_text(lambda part: self._encode(part, as_text=True), text, self._forbidden)

    def encode_control(self, text: str) -> list[int]:
        """A text with control tokens."""
        return self._encode(text, as_text=False)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Texts and control tokens; these tokenizers, too, read the text between two control tokens by itself."""
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.encode(part) if part else []
        return ids

    def leading(self) -> list[int]:
        """What the tokenizer puts before a text."""
        return leading_ids([int(i) for i in self._tokenizer.encode("a")], self.encode_control("a"))

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """The tokenizer's own decoder."""
        return SlowDecoder(self._tokenizer, frozenset(self._names) - skip)

    def token(self, token_id: int) -> str | None:
        """The token of this id."""
        return self._names.get(token_id)

    def token_id(self, token: str) -> int | None:
        """The id of a token, or of a text that is a single token."""
        if token in self._vocabulary:
            return self._vocabulary[token]
        ids = self._encode(token, as_text=True)
        known = len(ids) == 1 and ids[0] not in self.special_ids and ids[0] != self._tokenizer.unk_token_id
        return ids[0] if known else None

    def tokens(self) -> list[str]:
        """Every token."""
        return list(self._vocabulary)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """The tokenizer's own files."""
        del config  # it has its own
        self._tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class SlowDecoder:
    """A Hugging Face tokenizer's decoder, for the ids in `keep` only."""

    tokenizer: Any
    keep: frozenset[int]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Batch of ids to texts."""
        keep = self.keep
        return [
            self.tokenizer.decode([i for i in ids if i in keep], skip_special_tokens=False) for ids in batch
        ]
