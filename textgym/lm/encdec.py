"""Run an encoder-decoder, such as T5 or BART: the prompt in its encoder, the completion in its decoder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from textgym.codecs import sources
from textgym.lm.backbone import CACHE_NAMES, HuggingFaceBackbone

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Return whether a model is an encoder-decoder."""
    return bool(model.config.is_encoder_decoder)


def refuse_encoder_decoder(model: PreTrainedModel | str | Path, who: str) -> None:
    """Raise ValueError for an encoder-decoder.

    Args: model: an object, folder or hub id. who: begins the message, as in "lora_rank=8".
    """
    if sources.encodes_prompts(model) if isinstance(model, str | Path) else is_encoder_decoder(model):
        kind = "the model" if isinstance(model, str | Path) else type(model).__name__
        raise ValueError(f"{who}: {kind} is an encoder-decoder, which is not supported here; allowed are other models")


def common_end(prompts: Iterable[Sequence[int]], what: str) -> int:
    """Return the token that ends all prompts and stands nowhere else in them.

    It tells an encoder-decoder where a row's prompt ends: observations hold prompt and completion in one.

    Args:
        prompts: token ids of each, one at least. what: begins the message, with the model's name.
    Raises: ValueError if there is no such token.
    """
    rows = list(prompts)
    if rows and all(list(ids).index(ids[-1]) == len(ids) - 1 and ids[-1] == rows[0][-1] for ids in rows):
        return rows[0][-1]
    raise ValueError(
        f"{what} reads a prompt apart from its completion, and no token ends all prompts and stands nowhere else in "
        "them; allowed are prompts with such an end, as a T5's tokenizer or chat='{prompt}</s>' gives them"
    )


@dataclass
class _Read:
    """The rows that an `EncoderDecoderBackbone` has read.

    `encoded` (B, P, H) and `seen` (B, P) are the encoder's answer and which of it is prompt; `ids` (B, T) what the
    decoder is given, with room for more, of which `lengths` (B,) count; `even` whether as many in every row, so that
    there is a cache, `cache`, once they are read; else all are read again.
    """

    encoded: Tensor
    seen: Tensor
    ids: Tensor
    lengths: Tensor
    cache: Cache | None
    even: bool


def decoder_start(model: PreTrainedModel) -> int:
    """Return the token that an encoder-decoder's decoder is given first: padding for a T5 whose config names none.

    Raises: ValueError if another model's config names none.
    """
    names = ("decoder_start_token_id", "pad_token_id")[: 2 if "t5" in model.config.model_type else 1]
    for name in names:
        for config in (model.config, model.generation_config):
            if isinstance(token := getattr(config, name, None), int):
                return token
    raise ValueError(
        f"model: {type(model).__name__} cannot be used, its config has no decoder_start_token_id; allowed is a token id"
    )


class EncoderDecoderBackbone(HuggingFaceBackbone):
    """`Backbone` over an encoder-decoder. A row is a prompt, up to the first `prompt_end`, and what was written then.

    The decoder is given its start token, and then what was written; so the state behind a prompt is that of the start
    token, and no state stands inside a prompt. Prompts may have any lengths. Rows of which equally much is written
    have a cache of the decoder's keys and values, and of those of the encoder's answer; positions of learned
    embeddings count columns of that cache, so that other rows are read by the decoder again for every new token.

    Raises: ValueError if the model's config names no start token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._start = decoder_start(model)
        self._encoder, self._decoder = (cast("PreTrainedModel", p) for p in (model.get_encoder(), model.get_decoder()))
        parameters = inspect.signature(self._decoder.forward).parameters
        self._cache_name = next(name for name in CACHE_NAMES if name in parameters)

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See `Backbone.features`. Raises: ValueError for a position inside a prompt."""
        starts = self._starts(input_ids)
        places = columns - starts[rows] + 1
        _check_places(places)
        encoded, seen = self._encode(input_ids, starts)
        ids = self._written(input_ids, starts, int(places.max()) + 1)
        return self._decode(ids, encoded, seen)[0][rows, places]

    def read_out(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.read_out`."""
        scale = self.hidden_size**-0.5 if getattr(self._config, "scale_decoder_outputs", False) else 1.0
        logits = self._head(features * scale)
        bias = getattr(self.model, "final_logits_bias", None)
        return (logits if bias is None else logits + bias), features

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[object, Tensor]:
        """See `Backbone.open`."""
        starts = self._starts(input_ids)
        places = lengths - starts
        _check_places(places)
        encoded, seen = self._encode(input_ids, starts)
        ids = pad(self._written(input_ids, starts, int(places.max()) + 1), (0, slots))
        read = _Read(encoded, seen, ids, places + 1, None, bool((places == places[0]).all()))
        return read, self._read_on(read)

    def takes(self, cache: object, most: int) -> bool:
        """See `Backbone.takes`: no more than one token at once."""
        return False

    def extend(self, cache: object, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `Backbone.extend`; one token a row."""
        assert isinstance(cache, _Read)
        assert counts is None
        cache.ids.scatter_(1, cache.lengths[:, None], tokens[:, None])
        cache.lengths += 1
        return self._read_on(cache)

    def select(self, cache: object, rows: Tensor) -> object:
        """See `Backbone.select`."""
        assert isinstance(cache, _Read)
        if cache.cache is not None:
            cache.cache.reorder_cache(rows)  # type: ignore[arg-type]
        encoded, seen, ids, lengths = (part[rows] for part in (cache.encoded, cache.seen, cache.ids, cache.lengths))
        return _Read(encoded, seen, ids, lengths, cache.cache, cache.even)

    def _starts(self, ids: Tensor) -> Tensor:
        """Return how many tokens each prompt has, (B,)."""
        if self.prompt_end is None:
            raise ValueError(
                f"model: {type(self.model).__name__} reads a prompt apart from its completion, and no token is known "
                "to end prompts; allowed are a tokenizer or chat='{prompt}</s>' that write one behind them"
            )
        ends = ids == self.prompt_end
        if not ends.any(1).all():
            raise ValueError(
                f"input_ids: a prompt without the token {self.prompt_end}, which ends those of this task; an "
                "encoder-decoder reads a prompt apart from its completion"
            )
        return ends.int().argmax(1) + 1

    def _written(self, ids: Tensor, starts: Tensor, width: int) -> Tensor:
        """Return what the decoder is given of rows, (B, width): its start token, and what stands behind the prompts."""
        places = starts[:, None] - 1 + torch.arange(width, device=ids.device)
        written = ids.gather(1, places.clamp(max=ids.shape[1] - 1))
        written[:, 0] = self._start
        return written

    def _encode(self, ids: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's answer (B, P, H) to the prompts, and where they are, int64 (B, P)."""
        width = int(starts.max())
        seen = (torch.arange(width, device=ids.device) < starts[:, None]).long()
        return cast("Tensor", self._encoder(input_ids=ids[:, :width], attention_mask=seen).last_hidden_state), seen

    def _decode(self, ids: Tensor, encoded: Tensor, seen: Tensor, **cache: object) -> tuple[Tensor, Cache | None]:
        """Return the decoder's last hidden states (B, T, H), and its cache where `use_cache` asks for one."""
        given = {"encoder_hidden_states": encoded, "encoder_attention_mask": seen, "use_cache": False, **cache}
        output = self._decoder(input_ids=ids, **given)
        return output.last_hidden_state, output.get(self._cache_name)

    def _read_on(self, read: _Read) -> Tensor:
        """Return the features (B, F) of the last token of every row."""
        width = int(read.lengths.max())
        if not read.even:
            hidden, _ = self._decode(read.ids[:, :width], read.encoded, read.seen)
            return hidden[torch.arange(len(hidden), device=hidden.device), read.lengths - 1]
        ids = read.ids[:, :width] if read.cache is None else read.ids[:, width - 1 : width]
        cache = {"use_cache": True, self._cache_name: read.cache}
        hidden, read.cache = self._decode(ids, read.encoded, read.seen, **cache)
        if read.cache is None:
            raise ValueError("its decoder returns no cache")
        return hidden[:, -1].contiguous()


def _check_places(places: Tensor) -> None:
    if int(places.min()) < 0:
        raise ValueError(
            "columns: a state inside a prompt; an encoder-decoder has those from the prompt's end on alone"
        )
