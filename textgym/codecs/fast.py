"""Codecs over the Rust tokenizers: those of a tokenizer.json, and one of plain words."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from textgym.codecs.chat import MASK
from textgym.codecs.protocol import (
    ByteDecoder,
    Decoder,
    byte_table,
    encode_as_text,
    is_byte_level,
    leading_ids,
    vocabulary_size,
)

# Lower-case letters, which no normalizer changes.
_MARK = "textgymcontrol"


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
        self.control_ids = frozenset(self._forbidden.values())
        added = tokenizer.get_added_tokens_decoder().items()
        self.added_ids = frozenset(i for i, token in added if token.content.strip())
        self._marked: Tokenizer | None = None
        self._marks: dict[int, str] = {}

    def encode(self, text: str) -> list[int]:
        """Plain text. Raises: ValueError where a control token cannot be written as text."""
        ids = self._ids(text)
        if self.control_ids.isdisjoint(ids):
            return ids
        return encode_as_text(
            lambda piece: _encode(self._for_text, piece, as_text=True), text, self._forbidden
        )

    def encode_control(self, text: str) -> list[int]:
        """A text with control tokens."""
        return self._ids(text, as_text=False)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Texts and tokens, read as one text. Raises: ValueError as `encode`."""
        # In place of every token stands another added one, which the library finds in the same way.
        marked = self._with_marks({part for part in parts if isinstance(part, int)})
        text = "".join(self._marks[part] if isinstance(part, int) else part for part in parts)
        ids = encode_as_text(lambda piece: _encode(marked, piece, as_text=True), text, self._forbidden)
        meant = {marked.token_to_id(mark): token_id for token_id, mark in self._marks.items()}
        return [meant.get(token_id, token_id) for token_id in ids]

    @cached_property
    def _for_text(self) -> Tokenizer:
        """The tokenizer for text that holds control tokens."""
        return self._without(self.control_ids)

    def _without(self, token_ids: Collection[int]) -> Tokenizer:
        """A tokenizer that does not find these tokens in a text, where it encodes special ones as text."""
        written = json.loads(self._tokenizer.to_str())
        pieces = written["model"].get("vocab")
        unigram = isinstance(pieces, list)  # it finds control tokens among its pieces, too
        for token_id in set(token_ids).intersection(range(len(pieces))) if unigram else ():
            pieces[token_id][0] = _unreadable(token_id)
        for token in written["added_tokens"]:
            if token["id"] in token_ids:
                token["special"] = True
                token["content"] = _unreadable(token["id"]) if unigram else token["content"]
        return Tokenizer.from_str(json.dumps(written))

    def _with_marks(self, token_ids: Collection[int]) -> Tokenizer:
        """A tokenizer that finds these tokens by the names in `_marks`, and no control token by its own."""
        if self._marked is None or not self._marks.keys() >= set(token_ids):
            names = sorted(self._marks.keys() | set(token_ids))
            self._marks = {
                i: _MARK + "".join(chr(ord("a") + int(digit)) for digit in f"{i:09}") for i in names
            }
            self._marked = self._without(self.control_ids.union(names))
            known = self._tokenizer.get_added_tokens_decoder()
            for token_id, mark in self._marks.items():
                like = known.get(token_id, AddedToken("", normalized=False))
                flags = {
                    name: getattr(like, name) for name in ("single_word", "lstrip", "rstrip", "normalized")
                }
                self._marked.add_tokens([AddedToken(mark, **flags)])
        return self._marked

    def leading(self) -> list[int]:
        """What the post-processor puts before a text."""
        return leading_ids(self._ids("a", framed=True), self._ids("a"))

    def _ids(self, text: str, *, as_text: bool = True, framed: bool = False) -> list[int]:
        return _encode(self._tokenizer, text, as_text, framed)

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

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """tokenizer.json and tokenizer_config.json."""
        save_tokenizer(self._tokenizer, folder, config)


@dataclass(frozen=True)
class LibraryDecoder:
    """The tokenizers library's decoder, without the ids in `skip`."""

    tokenizer: Tokenizer
    skip: frozenset[int]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Batch of ids to texts; ids that the tokenizer does not have leave nothing."""
        skip, decode = self.skip, self.tokenizer.decode
        return [decode([i for i in ids if i not in skip], skip_special_tokens=False) for ids in batch]


def _encode(tokenizer: Tokenizer, text: str, as_text: bool, framed: bool = False) -> list[int]:
    # Set for every text, because the tokenizers library forgets it when a tokenizer is copied or pickled.
    tokenizer.encode_special_tokens = as_text
    ids: list[int] = tokenizer.encode(text, add_special_tokens=framed).ids
    return ids


def _unreadable(token_id: int) -> str:
    """A name for a control token that no text has by chance."""
    return f"{MASK}{token_id}{MASK}"


def _written(tokenizer: Tokenizer) -> str:
    try:
        text: str = tokenizer.to_str()
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"tokenizer: {tokenizer!r:.80} cannot be copied through JSON ({error})") from error
    return text


def save_tokenizer(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Write a tokenizer and its tokenizer_config.json into an existing folder."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")


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
