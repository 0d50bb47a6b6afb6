"""Grammars as masks of legal tokens."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Bools, check_count
from textgym.codecs.kinds import LibraryDecoder
from textgym.codecs.protocol import ByteDecoder
from textgym.grammar.expressions import Schema, as_rewarded, has_one_of, narrowed, spelled_out
from textgym.rewards.base import import_extra
from textgym.rewards.json import make_validator
from textgym.state import TokenState
from textgym.vocab import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CHECKS, _CHECKED_TOKENS = 200, 6


class TokenBytes(NamedTuple):
    """The bytes of every token, b"" for tokens that add nothing to a text.

    Args:
        first: V, where nothing is written yet.
        inner: V, after other text; another where a decoder puts spaces between words, or takes away the first.
    """

    first: tuple[bytes, ...]
    inner: tuple[bytes, ...]

    def join(self, ids: list[int]) -> bytes:
        """Return the bytes of a sequence of ids."""
        written = [i for i in ids if self.inner[i]]
        return self.first[written[0]] + b"".join([self.inner[i] for i in written[1:]]) if written else b""


def token_bytes(vocabulary: Vocabulary) -> TokenBytes:
    """Return the bytes that every token of a vocabulary adds to a decoded text.

    Raises: ValueError for a tokenizer whose decoder does more than putting pieces one after the other.
    """
    decoder = vocabulary.decoder
    if isinstance(decoder, ByteDecoder):
        pieces = (decoder.table + (b"",) * (vocabulary.size - len(decoder.table)))[: vocabulary.size]
        return TokenBytes(pieces, pieces)
    if isinstance(decoder, LibraryDecoder) and decoder.cleans:
        raise ValueError(
            "tokenizer: clean_up_tokenization_spaces=True removes spaces of a text that is written, so no grammar can "
            "follow it; allowed are False, and mask=False"
        )
    ids = range(vocabulary.size)
    first = [text.encode() for text in vocabulary.decode([[i] for i in ids])]
    # Letters and digits are what decoders change least.
    plain = [i for kind in (rb"[a-z0-9]+", rb"[!-~]+") for i in ids if re.fullmatch(kind, first[i])]
    if not plain:
        raise ValueError("tokenizer: has no token of visible characters, so that its pieces cannot be told apart")
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


# Without it a text that is forced could be written in one tokenisation only.
_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'
_SCHEMA: Final = f"{_OPTIONS}start: %json "
_PATTERN: Final = f"{_OPTIONS}start: TEXT\nTEXT: "


def _llguidance() -> ModuleType:
    return import_extra("llguidance", "a grammar mask")


def json_grammar(schema: Schema) -> str:
    """Return the grammar of compact JSON that is valid against a schema: `json_schema` pays all of it in full.

    Compact: no white space outside strings; the keys of an object in the order of the schema's
    `properties`, and no others; one key at most where the schema names none (a grammar cannot tell whether a key
    stands twice); characters of strings as they are, escaped only where JSON needs it; integers without point
    and exponent, bounded numbers without exponent, some of them without zeros behind their decimals, minus zero only
    where there are negative numbers; U+0000 of a pattern only where a class has quotes and backslashes too. These
    spellings are all that is legal. In a schema with `$ref`, `allOf`, `anyOf` or `oneOf`, a bound of several decimals
    that is cut off at fewer (9.9 of 9.99, and 0.9 below 1) is legal with zeros behind it alone (9.90).

    Args:
        schema: JSON Schema, Draft 2020-12, that refers to nothing outside of it. Its patterns are those of re2. A $ref
            stands beside no properties and no other $ref of the same object.
    Raises: ValueError for a schema that the reward refuses, or that cannot be made a grammar.
    """
    if not isinstance(schema, Mapping):
        raise ValueError(f"schema={schema!r:.80}: an object is allowed")
    make_validator(schema, "schema")
    try:
        part, open_part = narrowed(schema), as_rewarded(schema)
    except ValueError as error:
        raise ValueError(f"schema={schema!r:.200}: cannot be made a grammar ({error})") from error
    # Of `oneOf`, whether the alternatives exclude each other is for the whole schema to say.
    for each in [open_part, part] if has_one_of(schema) else [part]:
        compact = json.dumps({**each, "x-guidance": {"whitespace_flexible": False}}, default=float)
        grammar = _checked(f"{_SCHEMA}{compact}", "schema", schema)
    return grammar


def regex_grammar(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression of re2 matches as a whole.

    Raises: ValueError for a pattern that re2 does not take or that cannot be made a grammar, as one with anchors or
        word boundaries.
    """
    body = spelled_out(pattern).replace("/", r"\/")
    return _checked(f"{_PATTERN}/{body}/", "pattern", pattern)


def source(grammar: str) -> str:
    """Return what a grammar was made of, as messages name it: the schema or the pattern, spelled out."""
    for argument, start in (("schema", _SCHEMA), ("pattern", _PATTERN)):
        if grammar.startswith(start):
            return f"{argument}={grammar.removeprefix(start)}"
    return f"grammar={grammar!r}"


def _checked(grammar: str, argument: str, value: object) -> str:
    failed, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(grammar)
    if failed or messages:
        reason = messages[0].partition("\n")[0].partition("): ")[2] or messages[0]
        raise ValueError(f"{argument}={value!r:.200}: cannot be made a grammar ({reason:.300})")
    return grammar


Completion = tuple[int, ...]
_TRIED: Final = 64
"""Steps of a walk that a grammar is tried out with."""
_CLOSING: Final = frozenset([b'"', b"]", b"}", b","])


class _Tokens:
    """A list of tokens as llguidance takes it from Python; it is never asked to tokenise."""

    def __init__(self, tokens: list[bytes], stop_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = stop_id
        self.bos_token_id = None
        self.special_token_ids: list[int] = []
        self.is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        return []


@dataclass(slots=True)
class _Place:
    """A state of the grammar: after some completion.

    Args:
        matcher: of llguidance; None where the completion is illegal, or is found to have no continuation.
        empty: whether no text is written yet.
        bits: the mask, packed eight tokens a byte, once it is asked for.
    """

    matcher: LLMatcher | None
    empty: bool = False
    bits: NDArray[np.uint8] | None = None


class GrammarMask:
    """A task's `mask`: exactly the tokens with which a legal text can continue.

    A token is allowed where the text with it is the beginning of a legal one; any way to cut a text into
    tokens is allowed. Stop tokens are allowed where the text is legal as it is. Tokens that leave nothing in
    a text (control tokens, unused ids) never are; a completion that has them anyway is read without them.
    Only stop tokens are allowed where the text cannot become legal any more, which no sampling under the mask
    leads to as long as every byte that the grammar asks for is a token.

    The budget of tokens is no part of the grammar: a text can be cut off by it. States may come in any order; those
    of the latest completions are kept, so that a step costs one token.

    Args:
        vocabulary: with at least one stop token.
        grammar: of `json_grammar` or `regex_grammar`.
        places: how many completions are kept, 1 or more.
    Raises: ValueError without a stop token, for a decoder that no grammar can follow, or for a grammar that is too
        complex for llguidance, as far as walks to try it out show (others raise it when they are called);
        ModuleNotFoundError without llguidance.
    """

    def __init__(self, vocabulary: Vocabulary, grammar: str, places: int = 4096) -> None:
        if not vocabulary.stop_ids:
            raise ValueError("vocabulary: a grammar mask needs a stop token, that says that a text is complete")
        self.vocabulary, self.grammar, self.places = vocabulary, grammar, check_count("places", places)
        self._table = token_bytes(vocabulary)
        self._kept: OrderedDict[Completion, _Place] = OrderedDict()
        # Tokens 0..V-1 stand for themselves after other text, V..2V-1 for the same at the start.
        tokens, stops = [*self._table.inner, *self._table.first], list(vocabulary.stop_ids)
        llguidance = _llguidance()
        tokenizer = llguidance.LLTokenizer(_Tokens(tokens, stops[0]), n_vocab=len(tokens), eos_token=stops)
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        self._check(matcher)
        self._start = _Place(matcher, empty=True)
        self._stops = np.zeros(vocabulary.size, np.bool_)
        self._stops[list(vocabulary.stop_ids)] = True
        self._stop_bits = np.packbits(self._stops, bitorder="little")
        self._try_out()

    def __call__(self, states: Sequence[TokenState]) -> Bools:
        """Return the tokens that may come next, bool (B, V), for B states that run."""
        bits = np.stack([self._bits(self._place(state.completion)) for state in states])
        masks = np.unpackbits(bits, axis=1, count=self.vocabulary.size, bitorder="little")
        return masks.view(np.bool_)

    def __getstate__(self) -> tuple[Vocabulary, str, int]:
        return self.vocabulary, self.grammar, self.places

    def __setstate__(self, state: tuple[Vocabulary, str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _try_out(self) -> None:
        """Walk with the longest tokens: past what may end soon to what comes behind it, and into what may be long."""
        closing = np.array([written in _CLOSING for written in self._table.inner])
        length = np.array([len(written) for written in self._table.inner])
        for last in (~closing, closing):
            tokens = np.lexsort((-length, last))
            tokens = tokens[~self._stops[tokens]]
            place = self._start
            for _ in range(_TRIED):
                mask = np.unpackbits(self._bits(place), count=self.vocabulary.size, bitorder="little")
                legal = mask[tokens]
                if not legal.any():
                    break
                place = self._after(place, int(tokens[legal.argmax()]))

    def _check(self, matcher: LLMatcher) -> None:
        """Raise ValueError where the grammar has become too complex to follow."""
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise ValueError(
                f"{source(self.grammar):.200}: too complex for a mask ({reason:.200}); a simpler one, or no mask, is "
                "allowed"
            )

    def _place(self, completion: Completion) -> _Place:
        """Return the place after a completion: kept, or found from the longest beginning of it that is kept."""
        length = len(completion)
        while length and completion[:length] not in self._kept:
            length -= 1
        found = self._kept[completion[:length]] if length else self._start
        if length:
            self._kept.move_to_end(completion[:length])
        for end in range(length + 1, len(completion) + 1):
            found = self._after(found, completion[end - 1])
            self._kept[completion[:end]] = found
            if len(self._kept) > self.places:
                self._kept.popitem(last=False)
        return found

    def _after(self, place: _Place, token: int) -> _Place:
        """Return the place one token further."""
        written = self._table.first[token] if place.empty else self._table.inner[token]
        if place.matcher is None or not written:
            return place
        matcher = place.matcher.deep_copy()
        if not matcher.try_consume_tokens([token + self.vocabulary.size if place.empty else token]):
            self._check(matcher)
            return _Place(None)
        return _Place(matcher)

    def _bits(self, place: _Place) -> NDArray[np.uint8]:
        if place.bits is None:
            place.bits = self._stop_bits if place.matcher is None else self._computed(place, place.matcher)
        return place.bits

    def _computed(self, place: _Place, matcher: LLMatcher) -> NDArray[np.uint8]:
        """Return the mask of a place, packed eight tokens a byte."""
        size = self.vocabulary.size
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.get_error().startswith("NoExtensionBias"):  # no token has the byte that must come
            place.matcher = None
            return self._stop_bits
        self._check(matcher)
        if place.empty:
            both = np.unpackbits(packed, bitorder="little")
            mask = both[size : 2 * size].astype(np.bool_)
            mask |= both[:size].astype(np.bool_) & self._stops
        else:
            mask = np.unpackbits(packed, count=size, bitorder="little").astype(np.bool_)
        return np.packbits(mask, bitorder="little") if mask.any() else self._stop_bits
