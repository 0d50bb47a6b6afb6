"""The mask of a grammar: from states to the tokens that may come next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from textgym.grammar.grammars import import_llguidance, source
from textgym.grammar.token_bytes import TokenBytes, token_bytes
from textgym.state import TokenState
from textgym.vocab import Vocabulary

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

    def __call__(self, text: Any) -> list[int]:
        return []


class _Place:
    """A state of the grammar: after some completion.

    Args:
        matcher: of llguidance; None where the completion is illegal, or is found to have no continuation.
        empty: whether no text is written yet.
    """

    __slots__ = ("bits", "empty", "matcher")

    def __init__(self, matcher: Any, empty: bool) -> None:
        self.matcher, self.empty = matcher, empty
        self.bits: npt.NDArray[np.uint8] | None = None


class GrammarMask:
    """A task's `mask`: every token that a legal text can go on with, and no other.

    A token is allowed where the text with it is the beginning of a legal one; any way to cut a text into
    tokens is allowed. Stop tokens are allowed where the text is legal as it is. Tokens that leave nothing in
    a text (control tokens, unused ids) never are; where a completion has them anyway, they are passed over.
    Only stop tokens are allowed where the text cannot become legal any more, which no sampling under the mask
    leads to as long as every byte that the grammar asks for is a token.

    The budget of tokens is no part of the grammar: a text can be cut off by it.

    States may come in any order. The places of the latest completions are kept, so that a step costs one
    token; from a place that is not kept it is found again from the longest beginning that is.

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
            raise ValueError(
                "vocabulary: a grammar mask needs a stop token, that says that a text is complete"
            )
        if isinstance(places, bool) or not isinstance(places, int) or places < 1:
            raise ValueError(f"places={places!r}: an int from 1 on is allowed")
        self.vocabulary, self.grammar, self.places = vocabulary, grammar, places
        self._table = token_bytes(vocabulary)
        self._kept: OrderedDict[Completion, _Place] = OrderedDict()
        self._start = _Place(self._matcher(), empty=True)
        self._stops = np.zeros(vocabulary.size, np.bool_)
        self._stops[list(vocabulary.stop_ids)] = True
        self._stop_bits = np.packbits(self._stops, bitorder="little")
        self._try_out()

    def __call__(self, states: Sequence[TokenState]) -> npt.NDArray[np.bool_]:
        """The tokens that may come next, bool (B, V), for B states that run."""
        bits = np.stack([self._bits(self._place(state.completion)) for state in states])
        masks = np.unpackbits(bits, axis=1, count=self.vocabulary.size, bitorder="little")
        return masks.view(np.bool_)

    def __getstate__(self) -> tuple[Vocabulary, str, int]:
        return self.vocabulary, self.grammar, self.places

    def __setstate__(self, state: tuple[Vocabulary, str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _matcher(self) -> Any:
        """Tokens 0..V-1 stand for themselves after other text, V..2V-1 for the same at the start."""
        llguidance = import_llguidance()
        table: TokenBytes = self._table
        tokens = [*table.inner, *table.first]
        stops = list(self.vocabulary.stop_ids)
        tokenizer = llguidance.LLTokenizer(_Tokens(tokens, stops[0]), n_vocab=len(tokens), eos_token=stops)
        matcher = llguidance.LLMatcher(tokenizer, self.grammar, log_level=0)
        self._check(matcher)
        return matcher

    def _try_out(self) -> None:
        """Walk with the longest tokens: past what may end soon to what comes behind it, and into what may be long."""
        closing = np.array([written in _CLOSING for written in self._table.inner])
        length = np.array([len(written) for written in self._table.inner])
        for last in (~closing, closing):
            order = np.lexsort((-length, last))
            order = order[~self._stops[order]]
            place = self._start
            for _ in range(_TRIED):
                legal = np.unpackbits(self._bits(place), count=self.vocabulary.size, bitorder="little")[order]
                if not legal.any():
                    break
                place = self._after(place, int(order[legal.argmax()]))

    def _check(self, matcher: Any) -> None:
        """Raise ValueError where the grammar has become too complex to follow."""
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise ValueError(
                f"{source(self.grammar):.200}: too complex for a mask ({reason:.200}); a simpler one, or no mask, is "
                "allowed"
            )

    def _place(self, completion: Completion) -> _Place:
        """The place after a completion: kept, or found from the longest beginning of it that is kept."""
        if not completion:
            return self._start
        length = len(completion)
        found = self._kept.get(completion)
        while found is None and length > 1:
            length -= 1
            found = self._kept.get(completion[:length])
        if found is None:
            length, found = 0, self._start
        else:
            self._kept.move_to_end(completion[:length])
        for end in range(length + 1, len(completion) + 1):
            found = self._after(found, completion[end - 1])
            self._kept[completion[:end]] = found
            if len(self._kept) > self.places:
                self._kept.popitem(last=False)
        return found

    def _after(self, place: _Place, token: int) -> _Place:
        """The place one token further."""
        written = self._table.first[token] if place.empty else self._table.inner[token]
        if place.matcher is None or not written:
            return place
        matcher = place.matcher.deep_copy()
        if not matcher.try_consume_tokens([token + self.vocabulary.size if place.empty else token]):
            self._check(matcher)
            return _Place(None, empty=False)
        return _Place(matcher, empty=False)

    def _bits(self, place: _Place) -> npt.NDArray[np.uint8]:
        """The mask of a place, packed eight tokens a byte."""
        if place.bits is None:
            place.bits = self._stop_bits if place.matcher is None else self._computed(place)
        return place.bits

    def _computed(self, place: _Place) -> npt.NDArray[np.uint8]:
        size = self.vocabulary.size
        packed = np.frombuffer(place.matcher.compute_bitmask(), np.uint8)
        if place.matcher.get_error().startswith("NoExtensionBias"):  # no token has the byte that must come
            place.matcher = None
            return self._stop_bits
        self._check(place.matcher)
        if place.empty:
            both = np.unpackbits(packed, bitorder="little")
            mask = both[size : 2 * size].astype(np.bool_)
            mask |= both[:size].astype(np.bool_) & self._stops
        else:
            mask = np.unpackbits(packed, count=size, bitorder="little").astype(np.bool_)
        return np.packbits(mask, bitorder="little") if mask.any() else self._stop_bits
