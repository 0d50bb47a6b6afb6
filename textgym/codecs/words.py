"""A vocabulary that is a list of words: what a task with a tiny vocabulary brings along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from textgym.codecs.fast import save_tokenizer
from textgym.codecs.protocol import Decoder


def _is_control(word: str) -> bool:
    return len(word) > 2 and word[0] == "<" and word[-1] == ">"


class WordCodec:
    """Words with spaces between them; the id of a word is its place. Words in angle brackets (<pad>) are
    control tokens.

    Args:
        words: at least one, all different, none empty or with white space inside.
    Raises: ValueError otherwise.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        for word in self.words:
            if not isinstance(word, str) or word.split() != [word]:
                raise ValueError(f"tokenizer: {word!r} is not a word (a string without white space)")
        self._ids = {word: token_id for token_id, word in enumerate(self.words)}
        if not self.words or len(self._ids) < len(self.words):
            raise ValueError(f"tokenizer: {self.words[:8]!r}... must be at least one word, each only once")
        self.size = len(self.words)
        self.special_ids = frozenset(i for i, word in enumerate(self.words) if _is_control(word))
        self.control_ids = self.special_ids
        self.added_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """Word by word. Raises: ValueError for a word that the vocabulary does not have."""
        words = text.split()
        for word in words:
            if word not in self._ids or self._ids[word] in self.special_ids:
                shown = " ".join(self.words[:12]) + (" ..." if self.size > 12 else "")
                raise ValueError(
                    f"prompt: {word!r} is not a word of this vocabulary; its {self.size} words are: {shown}"
                )
        return [self._ids[word] for word in words]

    def encode_control(self, text: str) -> list[int]:
        """Word by word, control tokens included. Raises: ValueError for an unknown word."""
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise ValueError(f"chat: {unknown[0]!r} is not a word of this vocabulary")
        return [self._ids[word] for word in text.split()]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Words and control tokens."""
        ids: list[int] = []
        for part in parts:
            ids += [part] if isinstance(part, int) else self.encode(part)
        return ids

    def leading(self) -> list[int]:
        """Nothing."""
        return []

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Words joined by spaces."""
        return WordDecoder(tuple(None if i in skip else word for i, word in enumerate(self.words)))

    def token(self, token_id: int) -> str | None:
        """The word at this place."""
        return self.words[token_id] if 0 <= token_id < self.size else None

    def token_id(self, token: str) -> int | None:
        """The word's place."""
        return self._ids.get(token)

    def tokens(self) -> list[str]:
        """Every word."""
        return list(self.words)

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """A tokenizer that splits at white space."""
        model = models.WordLevel({word: i for i, word in enumerate(self.words)})
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([self.words[i] for i in sorted(self.special_ids)])
        save_tokenizer(tokenizer, folder, config)


@dataclass(frozen=True)
class WordDecoder:
    """Joins words by spaces. `words[id]` is None where the id leaves nothing."""

    words: tuple[str | None, ...]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Batch of ids to texts."""
        words, size = self.words, len(self.words)
        return [" ".join([w for i in ids if i < size and (w := words[i]) is not None]) for ids in batch]
