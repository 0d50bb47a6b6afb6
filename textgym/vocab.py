"""The vocabulary of a token MDP: a frozen view of any tokenizer."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, SupportsIndex, cast

import numpy as np

from textgym.checks import Bools, JsonObject, TextGymWarning, check_count, did_you_mean, shown
from textgym.codecs import Codec, Decoder, WordCodec
from textgym.codecs.chat import MASK, Conversation, FormatTemplate, around, one_message
from textgym.codecs.protocol import MOST_TOKENS
from textgym.codecs.sources import Source, encodes_prompts, find_source, generation_stops, model_logits, with_template

BUILTIN_CHAT = "<|user|>{prompt}<|end|><|assistant|>"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The action set, and the conversion between text and ids, made by `load_vocabulary`.

    Args:
        size: V, the number of actions and of a model's logits, including unused rows.
        stop_ids: the ids that end an episode; may be empty.
        pad_id: the id that pads observations on the right; may be a stop id or any other.
        allowed: bool (V,), read-only; False for control tokens that are not stop ids and for ids without a token.
        codec: the tokenizer.
        decoder: maps a batch of ids to texts.
        before_ids, after_ids: ids that a chat template or the tokenizer (BOS) puts around a prompt, for an
            encoder-decoder including its EOS. A tokenizer may merge the first or last of a chat template's ids with the
            prompt's own.
        conversation: the chat template; None: there is none.
        config: the tokenizer_config.json of this tokenizer.
        has_types: whether a completion has the token type 1, as the second text of a pair that an encoder reads.
    """

    size: int
    stop_ids: tuple[int, ...]
    pad_id: int
    allowed: Bools = field(repr=False)
    codec: Codec = field(repr=False)
    decoder: Decoder = field(repr=False)
    before_ids: tuple[int, ...] = ()
    after_ids: tuple[int, ...] = ()
    conversation: Conversation | None = field(default=None, repr=False)
    config: JsonObject = field(default_factory=dict, repr=False)
    has_types: bool = False

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a prompt: the text, with the chat template or BOS around it.

        With a chat template they are the ids of `apply_chat_template` with the generation prompt: the conversation is
        written, then encoded as one text. Control tokens in `text` ("<|end|>") are encoded as plain text.

        Raises: TypeError if it is not a string; ValueError if it is empty, cannot be written as UTF-8, or has no
            tokens, and as `Conversation.encode`.
        """
        if not isinstance(text, str):
            raise TypeError(f"prompt {text!r:.80} is a {type(text).__name__}, allowed is a string")
        if not text:
            raise ValueError("'' is empty, allowed is a text with at least one token")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r:.80} cannot be written as UTF-8 ({error.reason})") from error
        if self.conversation is not None:
            return _conversation_ids(self.conversation, text)
        ids = self.codec.encode(one_message(text))
        if not ids:
            raise ValueError(f"{text!r:.80} has no tokens in this vocabulary, allowed is at least one")
        return (*self.before_ids, *ids, *self.after_ids)

    def decode(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of a batch of ids. Control, stop and unused ids decode to nothing; bad UTF-8 to U+FFFD."""
        return self.decoder(batch)

    def save(self, folder: Path) -> None:
        """Write the tokenizer to an existing folder that `AutoTokenizer.from_pretrained` can read."""
        self.codec.save(folder, self.config)

    def token_text(self, token_id: int) -> str:
        """Return a printable form of the token `token_id`: its text, or its name in the vocabulary if that is empty."""
        name = self.codec.token(token_id)
        if name is None:
            return f"<unused {token_id}>"
        if token_id in self.codec.special_ids or token_id in self.stop_ids:
            return name
        text = self.decode([[token_id]])[0]
        return name if not text or "\ufffd" in text else text


def load_vocabulary(
    tokenizer: object = None,
    *,
    stop: str | int | Sequence[str | int] | None = None,
    vocab_size: int | None = None,
    chat: bool | str | None = None,
    model: str | Path | None = None,
) -> Vocabulary:
    """Make a vocabulary from any tokenizer. The tokenizer itself is never changed.

    Args:
        tokenizer: None for the built-in world's; a path to a tokenizer.json or to its folder; a hub id of a model
            with one (needs transformers); a `tokenizers.Tokenizer`; a Hugging Face tokenizer, fast or slow; or a list
            of words (a word in angle brackets is a control token). The tokenizer.json of a folder or hub id is read
            unchanged; pass the object from AutoTokenizer if its class rebuilds it, as transformers' LlamaTokenizer
            does.
        stop: the tokens that end an episode, as strings or ids, one or several; () for none. None: the control tokens
            at which the model's generation config ends a text, first the one that the chat template writes after an
            answer (special or not); without any, the tokenizer's EOS token, if it has one.
        vocab_size: V, tokens, at most 2^22: a model's number of logits; it may leave out the last control tokens, but
            for stop tokens and those around a prompt. None: the number in the model's config.json, at least so many;
            without a model, the number of the tokenizer.
        chat: None: the tokenizer's chat template if it has one; True: the same, but required; False: none;
            "before{prompt}after": a template of its own; FILE.jinja: a template in Hugging Face's form, which is
            rendered in a separate process and refused after 5 seconds of CPU time.
        model: folder or hub id of the model whose generation config names the stop tokens, and whose config tells the
            number of logits and whether it is an encoder-decoder (its prompts then end as the tokenizer ends a text);
            None: the stop tokens are those of the tokenizer's folder.
    Raises: TypeError, ValueError or FileNotFoundError, naming the argument and what is allowed.
    Warns: TextGymWarning about ids in a generation config that are not such tokens, unless the file says that it was
    only derived from a model's config.
    """
    if tokenizer is stop is vocab_size is chat is model is None:
        return _builtin_vocabulary()
    return _load(find_source(tokenizer), stop, vocab_size, chat, model)


@cache
def _builtin_vocabulary() -> Vocabulary:
    """Return the vocabulary of the built-in world, the same one for all of its tasks."""
    return _load(find_source(None), None, None, None, None)


def _load(
    source: Source,
    stop: str | int | Sequence[str | int] | None,
    vocab_size: int | None,
    chat: bool | str | None,
    model: str | Path | None,
) -> Vocabulary:
    """Return the vocabulary of a tokenizer that was found, see `load_vocabulary`."""
    if isinstance(chat, str) and chat.endswith(".jinja"):
        source, chat = with_template(source, Path(chat)), True
    codec = source.codec
    conversation = _conversation(source, chat)
    if stop is None:
        stop_ids = _own_stop_ids(source, model, conversation)
    else:
        stops = stop if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]
        stop_ids = tuple(dict.fromkeys(_stop_id(codec, token) for token in stops))
    before, after = codec.frame()
    places = [place for place in (model, source.folder) if place is not None]
    if not any(encodes_prompts(place) for place in places):
        after = []  # a decoder would take it for the end of its own text
    if conversation is not None:
        texts = around(conversation.template(MASK))
        before, after = (codec.encode_control(text) if text else [] for text in texts)
    if isinstance(codec, WordCodec):
        conversation = None  # words are read one by one, whatever stands around them
    tokens = {i for i in range(codec.size) if codec.token(i) is not None}
    # Gemma 3's tokenizer has a control token, for images, without a logit in its models of text.
    least = 1 + max((tokens - codec.control_ids).union(stop_ids, before, after), default=0)
    size = codec.size
    if vocab_size is not None:
        size = check_count("vocab_size", vocab_size, least, MOST_TOKENS, f"tokens; the tokenizer has {codec.size}")
    elif model is not None and (logits := model_logits(model)):
        size = min(MOST_TOKENS, max(least, logits))
    actions = sorted(tokens - codec.special_ids.difference(stop_ids))
    if not actions:
        raise ValueError("tokenizer: every one of its tokens is a control token, so no action is allowed")
    allowed = np.zeros(size, dtype=np.bool_)
    allowed[actions] = True
    allowed.flags.writeable = False
    return Vocabulary(
        size,
        stop_ids,
        next(i for i in (source.pad_id, *stop_ids, 0) if i is not None and i < size),
        allowed,
        codec,
        codec.decoder(codec.special_ids | frozenset(stop_ids)),
        tuple(before),
        tuple(after),
        conversation,
        source.config,
    )


def _own_stop_ids(source: Source, model: str | Path | None, conversation: Conversation | None) -> tuple[int, ...]:
    """Return the tokens that end a text by the model's files, or else the tokenizer's EOS token."""
    places = dict.fromkeys(str(place) for place in (model, source.folder) if place is not None)
    named = [(place, *generation_stops(place)) for place in places]
    eos = () if source.eos_id is None else (int(source.eos_id),)
    if not any(ids for _, ids, _ in named):
        return eos
    ending = [] if conversation is None else conversation.ending_ids
    # Configurations of models that were made with other tokenizers name ordinary tokens.
    known = source.codec.control_ids.union(source.codec.added_ids.intersection(ending))
    for place, ids, meant in named:
        dropped = [i for i in ids if i not in known]
        if dropped and meant:
            warnings.warn(
                f"stop: the generation config of {place} ends texts at eos_token_id={shown(ids)}, of which "
                f"{shown(dropped)} are no control tokens of this tokenizer and are left out; stop= can name them",
                TextGymWarning,
                stacklevel=4,
            )
        stops = [i for i in ids if i in known]
        if stops:
            first = [i for i in ending if i in stops][:1]
            return tuple(dict.fromkeys([*first, *stops]))
    return eos


def _stop_id(codec: Codec, token: object) -> int:
    if isinstance(token, str):
        token_id = codec.token_id(token)
        if token_id is None:
            raise ValueError(f"stop {token!r}: not a token of this tokenizer.{did_you_mean(token, codec.tokens())}")
        return token_id
    try:
        index = -1 if isinstance(token, bool | np.bool_) else operator.index(cast("SupportsIndex", token))
    except TypeError:
        index = -1
    if not 0 <= index < codec.size or codec.token(index) is None:
        raise ValueError(f"stop {shown(token)}: neither a token's text nor a token id in 0..{codec.size - 1}")
    return index


_BUILTIN_TEMPLATE: Final = FormatTemplate(BUILTIN_CHAT)
_BUILTIN_IDS: Final[dict[str, tuple[int, ...]]] = {}
_MOST_KNOWN: Final = 4096  # prompts


def _conversation_ids(conversation: Conversation, text: str) -> tuple[int, ...]:
    """Return the ids of a prompt. With the built-in tokenizer they are kept: many tasks have the same hundreds."""
    if conversation.template is not _BUILTIN_TEMPLATE:
        return tuple(conversation.encode(text))
    ids = _BUILTIN_IDS.get(text)
    if ids is None:
        ids = tuple(conversation.encode(text))
        if len(_BUILTIN_IDS) < _MOST_KNOWN:
            _BUILTIN_IDS[text] = ids
    return ids


def _conversation(source: Source, chat: bool | str | None) -> Conversation | None:
    if isinstance(chat, str):
        return Conversation(source.codec, FormatTemplate(chat))
    if chat is not None and not isinstance(chat, bool):
        raise TypeError(f"chat={shown(chat)}: allowed are None, True, False, 'before{{prompt}}after' and FILE.jinja")
    if chat is False:
        return None
    if source.builtin:
        return Conversation(source.codec, _BUILTIN_TEMPLATE)
    if source.template is not None:
        return Conversation(source.codec, source.template)
    if source.template_names:
        names = ", ".join(map(repr, source.template_names))
        raise ValueError(
            f"chat={chat}: this tokenizer's chat templates are named {names}, and none is 'default'; allowed are "
            "False, 'before{prompt}after' and a tokenizer whose chat_template is one text"
        )
    if chat:
        raise ValueError("chat=True: this tokenizer has no chat template; give chat='before{prompt}after'")
    return None
