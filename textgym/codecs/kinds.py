"""The kinds of codecs: over tokenizers in Rust, over Hugging Face's in Python, and over a list of words."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from textgym.checks import JsonObject
from textgym.codecs.chat import MASK
from textgym.codecs.protocol import ByteDecoder, Codec, Decoder, byte_table, encode_as_text, frame_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the name of a stand-in for a token begins with: lower-case letters, which no normalizer changes.
_ALIAS = "textgymcontrol"


class FastCodec(Codec):
    """A codec over a tokenizer in Rust. It works on copies: the caller's tokenizer is never changed.

    Args:
        tokenizer: any tokenizer that can be written as JSON.
        special: names of control tokens beyond those that the tokenizer itself marks as special.
        cleans: whether decoded texts lose spaces before punctuation, as with `clean_up_tokenization_spaces`.
    Raises: ValueError as `Codec`, or if it cannot be written as JSON (a part of it is a Python object).
    """

    def __init__(self, tokenizer: Tokenizer, special: Collection[str] = (), cleans: bool = False) -> None:
        super().__init__(tokenizer.get_vocab(with_added_tokens=True))
        try:
            written = tokenizer.to_str()
        except Exception as error:  # the library raises no narrower type
            raise ValueError(f"tokenizer: {tokenizer!r:.80} cannot be copied through JSON ({error})") from error
        self._tokenizer = Tokenizer.from_str(written)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        description = json.loads(written)
        decoder = description["decoder"] or {"type": None}
        if decoder["type"] == "Sequence" and len(decoder["decoders"]) == 1:
            decoder = decoder["decoders"][0]
        self._byte_level, self._cleans = decoder["type"] == "ByteLevel", cleans
        added = tokenizer.get_added_tokens_decoder().items()
        named = {self._vocabulary[name] for name in special if name in self._vocabulary}
        self.special_ids = frozenset(named.union(i for i, token in added if token.special))
        # The token for unknown words comes out of ordinary text, and controls nothing.
        unknown = (description["model"].get("unk_token"), description["model"].get("unk_id"))
        self._forbidden = {
            token_id: self._names[token_id]
            for token_id in sorted(self.special_ids.intersection(self._names))
            if self._names[token_id] not in unknown and token_id not in unknown
        }
        self.control_ids = frozenset(self._forbidden)
        self.added_ids = frozenset(i for i, token in added if token.content.strip())
        self._aliased: tuple[Tokenizer, dict[int, str]] | None = None

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, see `Codec`."""
        ids = self._ids(text)
        if self.control_ids.isdisjoint(ids):
            return ids
        return encode_as_text(lambda piece: _encode(self._for_text, piece), text, self._forbidden)

    def encode_control(self, text: str) -> list[int]:
        """Return the ids of a text with control tokens, see `Codec`."""
        return self._ids(text, as_text=False)

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of texts and tokens, see `Codec`."""
        # In place of every token stands another added one, which the library finds in the same way.
        aliased, aliases = self._with_aliases({part for part in parts if isinstance(part, int)})
        text = "".join(aliases[part] if isinstance(part, int) else part for part in parts)
        ids = encode_as_text(lambda piece: _encode(aliased, piece), text, self._forbidden)
        meant = {aliased.token_to_id(alias): token_id for token_id, alias in aliases.items()}
        return [meant.get(token_id, token_id) for token_id in ids]

    @cached_property
    def _for_text(self) -> Tokenizer:
        """The tokenizer for text that holds control tokens."""
        return self._without(self.control_ids)

    def _without(self, token_ids: Collection[int]) -> Tokenizer:
        """Return a tokenizer that does not find these tokens in a text, where it encodes special ones as text."""
        text = self._tokenizer.to_str()
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        if not isinstance(self._tokenizer.model, models.Unigram) and special.issuperset(token_ids):
            return Tokenizer.from_str(text)  # as it is; reading the JSON of a large vocabulary takes seconds
        written = json.loads(text)
        pieces = written["model"].get("vocab")
        unigram = isinstance(pieces, list)  # it finds control tokens among its pieces, too
        for token_id in set(token_ids).intersection(range(len(pieces))) if unigram else ():
            pieces[token_id][0] = _unreadable(token_id)
        for token in written["added_tokens"]:
            if token["id"] in token_ids:
                token["special"] = True
                token["content"] = _unreadable(token["id"]) if unigram else token["content"]
        return Tokenizer.from_str(json.dumps(written))

    def _with_aliases(self, token_ids: Collection[int]) -> tuple[Tokenizer, dict[int, str]]:
        """Return a tokenizer that finds these tokens, and those asked for before, by other names; and the names.

        It finds no control token by its own name.
        """
        made = self._aliased
        if made is None or not made[1].keys() >= set(token_ids):
            letters = str.maketrans("0123456789", "abcdefghij")
            ids = sorted({*token_ids, *(made[1] if made else ())})
            aliases = {i: _ALIAS + f"{i:09}".translate(letters) for i in ids}
            aliased = self._without(self.control_ids.union(ids))
            known = self._tokenizer.get_added_tokens_decoder()
            for token_id, alias in aliases.items():
                like = known.get(token_id, AddedToken("", normalized=False))
                flags = {name: getattr(like, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
                aliased.add_tokens([AddedToken(alias, **flags)])
            self._aliased = made = aliased, aliases  # at once: tasks in other threads read it
        return made

    def frame(self) -> tuple[list[int], list[int]]:
        """Return what the post-processor puts before a text and after it."""
        # A tokenizer of words without a token for unknown ones encodes its own words only.
        words = (self._names[token_id] for token_id in sorted(self._names) if token_id not in self.special_ids)
        for text in ("a", *words):
            with contextlib.suppress(ValueError):
                return frame_ids(self._ids(text, framed=True), self._ids(text))
        return [], []

    def _ids(self, text: str, *, as_text: bool = True, framed: bool = False) -> list[int]:
        return _encode(self._tokenizer, text, as_text, framed)

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Return what joins bytes by table where the tokenizer is byte-level, elsewhere the library's own decoder."""
        if self._byte_level and not self._cleans:
            return ByteDecoder(byte_table(self._tokenizer, self.size, skip))
        return LibraryDecoder(self._tokenizer, frozenset(self._names) - skip, self._cleans)

    def token(self, token_id: int) -> str | None:
        """Return the token of this id."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or of a text that is a single token."""
        if token in self._vocabulary:
            return self._vocabulary[token]
        try:
            ids = self._ids(token)
        except ValueError:
            return None
        if len(ids) != 1 or ids[0] in self.special_ids:
            return None
        return ids[0] if _stands_for(self._tokenizer.decode(ids, skip_special_tokens=False), token) else None

    def save(self, folder: Path, config: JsonObject) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        _save(self._tokenizer, folder, config)


def _stands_for(decoded: str, token: str) -> bool:
    """Return whether a text of one token was encoded by it: an unknown word too becomes one token, another one."""
    if token.isspace():  # a decoder may leave the first space of a text out
        return decoded in (token, token.removeprefix(" "))
    return decoded.strip() == token.strip()


class SlowCodec(Codec):
    """A codec over a Hugging Face tokenizer without a Rust backend. It works on a copy: the caller's is never changed.

    Raises: ValueError as `Codec`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        super().__init__(self._tokenizer.get_vocab())
        self.special_ids = frozenset(i for i in self._tokenizer.all_special_ids if i is not None)
        unknown = self._tokenizer.unk_token_id
        self._forbidden = {i: self._names[i] for i in self.special_ids if i in self._names and i != unknown}
        self.control_ids = frozenset(self._forbidden)
        added = self._tokenizer.added_tokens_encoder.items()
        self.added_ids = frozenset(token_id for token, token_id in added if token.strip())

    def _encode(self, text: str, as_text: bool = True) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": as_text}
        return [int(i) for i in self._tokenizer.encode(text, **options)]

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, see `Codec`."""
        return encode_as_text(self._encode, text, self._forbidden)

    def encode_control(self, text: str) -> list[int]:
        """Return the ids of a text with control tokens, see `Codec`."""
        return self._encode(text, as_text=False)

    def frame(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before a text and after it."""
        return frame_ids([int(i) for i in self._tokenizer.encode("a")], self.encode_control("a"))

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Return the tokenizer's own decoder."""
        return LibraryDecoder(self._tokenizer, frozenset(self._names) - skip)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or of a text that is a single token."""
        if token in self._vocabulary:
            return self._vocabulary[token]
        ids = self._encode(token)
        if len(ids) != 1 or ids[0] in self.special_ids or ids[0] == self._tokenizer.unk_token_id:
            return None
        return ids[0] if _stands_for(str(self._tokenizer.decode(ids)), token) else None

    def save(self, folder: Path, config: JsonObject) -> None:
        """Write the tokenizer's own files, which say what `config` does, with its chat template."""
        self._tokenizer.chat_template = config.get("chat_template", self._tokenizer.chat_template)
        self._tokenizer.save_pretrained(folder)


class WordCodec(Codec):
    """A codec of words separated by spaces; a word's id is its index. <pad> and the like are control tokens.

    Args:
        words: at least one, all different, none empty or with white space inside.
    Raises: ValueError otherwise.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        for word in self.words:
            if not isinstance(word, str) or word.split() != [word]:
                raise ValueError(f"tokenizer: {word!r} is not a word (a string without white space)")
        if not self.words or len(set(self.words)) < len(self.words):
            raise ValueError(f"tokenizer: {self.words[:8]!r}... must be at least one word, each only once")
        super().__init__({word: token_id for token_id, word in enumerate(self.words)})
        self.special_ids = frozenset(
            i for i, word in enumerate(self.words) if len(word) > 2 and word[0] == "<" and word[-1] == ">"
        )
        self.control_ids = self.special_ids
        self.added_ids = frozenset()

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words. Raises: ValueError for a word that the vocabulary does not have."""
        words = text.split()
        for word in words:
            if word not in self._vocabulary or self._vocabulary[word] in self.special_ids:
                shown = " ".join(self.words[:12]) + (" ..." if self.size > 12 else "")
                raise ValueError(
                    f"prompt: {word!r} is not a word of this vocabulary; its {self.size} words are: {shown}"
                )
        return [self._vocabulary[word] for word in words]

    def encode_control(self, text: str) -> list[int]:
        """Return the ids of words and control tokens. Raises: ValueError for an unknown word."""
        for word in text.split():
            if word not in self._vocabulary:
                raise ValueError(f"chat: {word!r} is not a word of this vocabulary")
        return [self._vocabulary[word] for word in text.split()]

    def decoder(self, skip: frozenset[int]) -> Decoder:
        """Return what joins words by spaces."""
        return WordDecoder(tuple(None if i in skip else word for i, word in enumerate(self.words)))

    def save(self, folder: Path, config: JsonObject) -> None:
        """Write a tokenizer that splits at white space."""
        tokenizer = Tokenizer(models.WordLevel(self._vocabulary))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([self.words[i] for i in sorted(self.special_ids)])
        _save(tokenizer, folder, config)


# What transformers' `clean_up_tokenization` replaces, one after the other, by the same without spaces.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True)
class LibraryDecoder:
    """A tokenizer's own decoder, for the ids in `kept` only; `cleans`, see `FastCodec`."""

    tokenizer: Tokenizer | PreTrainedTokenizerBase
    kept: frozenset[int]
    cleans: bool = False

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of a batch of ids."""
        kept, decode = self.kept, cast("Callable[..., str]", self.tokenizer.decode)
        texts = [decode([i for i in ids if i in kept], skip_special_tokens=False) for ids in batch]
        for spaced in _CLEANED if self.cleans else ():
            texts = [text.replace(spaced, spaced.replace(" ", "")) for text in texts]
        return texts


@dataclass(frozen=True)
class WordDecoder:
    """Joins words by spaces. `words[id]` is None where the id leaves nothing."""

    words: tuple[str | None, ...]

    def __call__(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of a batch of ids."""
        words, size = self.words, len(self.words)
        return [" ".join([w for i in ids if i < size and (w := words[i]) is not None]) for ids in batch]


def _encode(tokenizer: Tokenizer, text: str, as_text: bool = True, framed: bool = False) -> list[int]:
    # Set for every text, because the tokenizers library forgets it when a tokenizer is copied or pickled.
    tokenizer.encode_special_tokens = as_text
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=framed).ids
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"prompt: this tokenizer cannot encode {text!r:.80} ({error})") from error
    return ids


def _unreadable(token_id: int) -> str:
    """Return a name for a control token that no text has by chance."""
    return f"{MASK}{token_id}{MASK}"


def _save(tokenizer: Tokenizer, folder: Path, config: JsonObject) -> None:
    """Write a tokenizer and its tokenizer_config.json into an existing folder."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1) + "\n", encoding="utf-8")
