"""The ways a causal LM is run: all states of finished rows (training), or token by token (acting)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textgym.checks import equal_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Cache, PreTrainedModel

READ_AT_ONCE = 2**28
"""Most numbers that a layer makes of prompts at once: 1 GiB in float32."""
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
# Rows are read without a mask where all padding stands to the right; GPT-2 and its kin would warn about that.
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "may be padded" not in record.getMessage())


class Backbone(Protocol):
    """A causal LM as the rest of the library sees it. Rows are right-padded; positions count real tokens.

    A state is kept as its features (F,), of which `read_out` makes logits: F is about H, and V may be a thousand times
    as much. A cache holds the rows that a backbone has read; only the backbone that opened it can use it.
    """

    hidden_size: int
    vocab_size: int
    by_pieces: bool  # whether it can be right where rows of a cache get several tokens at once
    prompt_end: int | None  # the token that ends every prompt, which an encoder-decoder has to know

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the features (N, F) of the states at the positions (rows[i], columns[i]); differentiable.

        Args:
            input_ids: (B, T) int64, right-padded; a causal model never reads the padding after a position.
            rows, columns: (N,) int64.
        """

    def read_out(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, V) and last hidden states (N, H) from features (N, F); differentiable."""

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[object, Tensor]:
        """Read right-padded prompts (B, P) with `lengths` (B,) tokens each.

        Returns: a cache with room for `slots` more tokens a row, and the features (B, F) after the last token.
        """

    def takes(self, cache: object, most: int) -> bool:
        """Return whether rows of a cache can get up to `most` tokens at once, each as many as there are for it."""

    def extend(self, cache: object, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """Append tokens to the rows of a cache; return the features (B, F) after each one's last, without a gradient.

        Args:
            tokens: (B,) int64, one to every row.
            counts: None, or (B,) int64: how many of `tokens` (B, G) each row gets, the first of its own; where a row
                gets none, its features mean nothing.
        """

    def select(self, cache: object, rows: Tensor) -> object:
        """Return the cache of some of its rows (n,) int64, in that order; a row may be there several times."""


def last_hidden(hidden_states: tuple[Tensor, ...]) -> Tensor:
    """Return the last hidden states (B, T, H) among those that a Hugging Face model puts out."""
    hidden = hidden_states[-1]
    # Gemma 3n has several streams (S, B, T, H) and corrects all of them from the first.
    return hidden[0] if hidden.dim() == 4 else hidden


def row_parts(model: PreTrainedModel, rows: int, width: int, logits: int = 0) -> list[slice]:
    """Cut rows of a width into equal parts that are read one after the other.

    What a layer makes of a part stays within `READ_AT_ONCE`, taken as 4 (H + I) numbers a token, 2 of a mask for every
    place in its row, and attention's scores where they are written down. That follows from sizes alone, so that a run
    that is resumed does the same. Of a sharded model all ranks have to take the same passes: one part.

    Args:
        logits: numbers a token that are made besides.
    """
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None)
    inner = max(inner) if isinstance(inner, list | tuple) else inner or 4 * config.hidden_size
    numbers = 4 * (config.hidden_size + inner) + 2 * width + logits
    if getattr(config, "_attn_implementation", None) == "eager":
        numbers += 3 * (getattr(config, "num_attention_heads", None) or 1) * width
    parts = equal_parts(rows, READ_AT_ONCE // (numbers * width))
    shared = len(parts) > 1 and any(hasattr(each, "placements") for each in model.parameters())
    return [slice(0, rows)] if shared else parts


def _can_join(cache: Cache | None) -> bool:
    """Return whether a cache holds nothing but keys and values, whose rows can be put below those of another one."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)


def _pack(past: _Past, behind: Tensor) -> None:
    """Move rows to the right by as many columns (B,) as stand empty behind them; drop columns that no row needs."""
    columns, width = past.mask.shape[1], int(past.lengths.max())
    source = torch.arange(columns - width, columns, device=behind.device) - behind[:, None]
    past.mask = past.mask.gather(1, source.clamp(min=0)) * (source >= 0)
    at = source.clamp(min=0)[:, None, :, None]
    for layer in cast("Cache", past.cache).layers:
        if getattr(layer, "is_initialized", False):
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(layer, name, held.gather(2, at.expand(-1, held.shape[1], -1, held.shape[3])))
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = width


def _join(caches: Sequence[Cache]) -> Cache:
    """Return one cache of the rows of several, which are emptied layer by layer."""
    for first, *others in zip(*(cache.layers for cache in caches), strict=True):
        if first.is_initialized:  # some layers read what another one keeps
            for name in ("keys", "values"):
                setattr(first, name, torch.cat([getattr(each, name) for each in (first, *others)]))
                for each in others:
                    setattr(each, name, None)
    return caches[0]


@dataclass
class _Past:
    """The rows that a `HuggingFaceBackbone` has read: its model's own cache, mask (B, T), lengths (B,).

    Every row ends in the last column.
    """

    cache: Cache | None
    mask: Tensor
    lengths: Tensor


class HuggingFaceBackbone:
    """`Backbone` over any Hugging Face causal LM, by its own forward and its own cache class.

    Args:
        whole: run the whole model, and keep its logits behind the hidden states as features; else run what is below its
            output embeddings, which are then asked for logits where they are needed.
    Raises: ValueError if it has no output embeddings, from which the number of logits is read.
    """

    by_pieces = False
    prompt_end: int | None = None
    _masks_new_tokens = True

    def __init__(self, model: PreTrainedModel, whole: bool = False) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"model: {type(model).__name__} has no output embeddings")
        # PEFT puts its adapter into the base model, whose forward names all arguments.
        inner = model.get_base_model() if is_peft(model) else model  # type: ignore[operator]
        self.model, self._whole = model, whole
        self._head = cast("Callable[[Tensor], Tensor]", head)
        self._runs = cast("PreTrainedModel", inner if whole else inner.base_model)
        self._config = inner.config.get_text_config()
        self.vocab_size: int = head.weight.shape[0]
        self.hidden_size: int = head.weight.shape[1]
        parameters = inspect.signature(self._runs.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters
        self._logits = self.vocab_size if whole and not self._takes_keep else 0  # of every token
        # Its name depends on the architecture and on the version of transformers.
        self._cache_name = next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0])

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See `Backbone.features`."""
        if not self._whole:
            hidden: Tensor = self._runs(input_ids=input_ids, use_cache=False).last_hidden_state
            return hidden[rows, columns]
        first = int(columns.min()) if self._takes_keep else 0
        span = torch.arange(first, int(columns.max()) + 1, device=input_ids.device)
        keep = {"logits_to_keep": span} if self._takes_keep else {}
        output = self._runs(input_ids=input_ids, use_cache=False, output_hidden_states=True, **keep)
        return torch.cat([last_hidden(output.hidden_states)[rows, columns], output.logits[rows, columns - first]], -1)

    def read_out(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.read_out`."""
        if self._whole:
            return features[:, -self.vocab_size :], features[:, : -self.vocab_size]
        logits = self._head(features)
        # Scales and caps that models put behind their output embeddings: Cohere, Granite, Gemma.
        logits = logits * (getattr(self._config, "logit_scale", None) or 1.0)
        logits = logits / (getattr(self._config, "logits_scaling", None) or 1.0)
        cap = getattr(self._config, "final_logit_softcapping", None)
        return (logits if cap is None else torch.tanh(logits / cap) * cap), features

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[object, Tensor]:
        """See `Backbone.open`. The rows are moved to the right, so that new tokens stand side by side."""
        del slots
        width = input_ids.shape[1]
        shift = torch.arange(width, device=input_ids.device) - (width - lengths)[:, None]
        positions = shift.clamp(min=0)
        ids, past = input_ids.gather(1, positions), _Past(None, (shift >= 0).long(), lengths.clone())
        features, caches, parts = [], [], row_parts(self.model, len(ids), width, self._logits)
        for at in parts:
            part = _Past(None, past.mask[at], past.lengths[at])
            features.append(self._forward(part, ids[at], positions[at]))
            if len(parts) > 1 and not _can_join(part.cache):
                return past, self._forward(past, ids, positions)
            caches.append(cast("Cache", part.cache))
        past.cache = _join(caches) if len(parts) > 1 else caches[0]
        return past, torch.cat(features)

    def takes(self, cache: object, most: int) -> bool:
        """See `Backbone.takes`. Rows are moved within the cache, so a window that has dropped tokens cannot."""
        if not (self.by_pieces and isinstance(cache, _Past) and cache.cache is not None and _can_join(cache.cache)):
            return False
        rows, width = cache.mask.shape
        windows = [layer.sliding_window for layer in cache.cache.layers if hasattr(layer, "sliding_window")]
        return all(width + most < each for each in windows) and len(row_parts(self.model, rows, most)) == 1

    def extend(self, cache: object, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `Backbone.extend`."""
        assert isinstance(cache, _Past)
        if counts is None:
            new, tokens = cache.mask.new_ones((len(tokens), 1)), tokens[:, None]
        else:
            new = (torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]).long()
        # Behind a row's last token no position may stand that the model does not have.
        positions = cache.lengths[:, None] + (new.cumsum(1) - 1).clamp(min=0) * new
        cache.mask, cache.lengths = torch.cat([cache.mask, new], 1), cache.lengths + new.sum(1)
        if counts is None:
            return self._forward(cache, tokens, positions)
        features = self._forward(cache, tokens, positions.minimum(cache.lengths[:, None] - 1), counts - 1)
        _pack(cache, tokens.shape[1] - counts)
        return features

    def select(self, cache: object, rows: Tensor) -> object:
        """See `Backbone.select`."""
        assert isinstance(cache, _Past)
        assert cache.cache is not None
        # Layers of every kind can be reordered, those of state-space models too, and an order may leave rows out.
        cache.cache.reorder_cache(rows)  # type: ignore[arg-type]
        return _Past(cache.cache, cache.mask[rows], cache.lengths[rows])

    def _forward(self, past: _Past, ids: Tensor, positions: Tensor, last: Tensor | None = None) -> Tensor:
        """Read on; return the features (B, F) at the places `last` (B,) among what is read, None: at the last one."""
        extra: dict[str, object] = {"logits_to_keep": 1 if last is None else ids.shape[1]} if self._takes_keep else {}
        at = (slice(None), -1) if last is None else (torch.arange(len(ids), device=ids.device), last)
        if self._whole:
            extra["output_hidden_states"] = True
        if self._takes_positions:
            extra["position_ids"] = positions
        if past.cache is None or self._masks_new_tokens:
            extra["attention_mask"] = past.mask
        extra[self._cache_name] = past.cache
        output = self._runs(input_ids=ids, use_cache=True, **extra)
        past.cache = output.get(self._cache_name)
        if past.cache is None:
            raise ValueError("its forward returns no cache")
        if not self._whole:
            # A view would keep the hidden states of whole prompts (B, P, H) as long as it is kept.
            return torch.as_tensor(output.last_hidden_state[at]).contiguous()
        return torch.cat([last_hidden(output.hidden_states)[at], output.logits[at]], -1)


class StateSpaceBackbone(HuggingFaceBackbone):
    """`Backbone` over a model whose cache is a state, such as Mamba's: a mask is for the tokens that are read."""

    _masks_new_tokens = False


@dataclass
class _Texts:
    """The rows that a `RereadingBackbone` reads: ids (B, T), lengths (B,)."""

    ids: Tensor
    lengths: Tensor


class RereadingBackbone(HuggingFaceBackbone):
    """`Backbone` over a causal LM without a usable cache: it reads the whole row again for every new token."""

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[object, Tensor]:
        """See `Backbone.open`."""
        texts = _Texts(torch.nn.functional.pad(input_ids, (0, slots)), lengths.clone())
        return texts, self._read(texts)

    def takes(self, cache: object, most: int) -> bool:
        """See `Backbone.takes`."""
        return False

    def extend(self, cache: object, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `Backbone.extend`; one token a row."""
        assert isinstance(cache, _Texts)
        assert counts is None
        cache.ids.scatter_(1, cache.lengths[:, None], tokens[:, None])
        cache.lengths += 1
        return self._read(cache)

    def select(self, cache: object, rows: Tensor) -> object:
        """See `Backbone.select`."""
        assert isinstance(cache, _Texts)
        return _Texts(cache.ids[rows], cache.lengths[rows])

    def _read(self, texts: _Texts) -> Tensor:
        ids, last = texts.ids[:, : int(texts.lengths.max())], texts.lengths - 1
        rows = torch.arange(len(ids), device=ids.device)
        parts = row_parts(self.model, len(ids), ids.shape[1], self._logits)
        return torch.cat([self.features(ids[at], rows[: at.stop - at.start], last[at]) for at in parts])


@dataclass(frozen=True)
class _Recomputed:
    """A layer's forward that runs again for the gradient."""

    forward: Callable[..., object]

    def __call__(self, *args: object, **options: object) -> object:
        if not torch.is_grad_enabled():
            return self.forward(*args, **options)
        return checkpoint(partial(self.forward, **options), *args, use_reentrant=False)


def recompute_layers(model: PreTrainedModel) -> None:
    """Make every layer of a Hugging Face model run again in the backward pass; the gradient stays the same.

    transformers' own switch works in training mode only, in which dropout would make acting and scoring two different
    policies.

    Raises: ValueError if the model has no layers that can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"gradient_checkpointing=True: {type(model).__name__} has no layers that can run again; allowed is False"
        )
    for layer in layers:
        if not isinstance(layer.forward, _Recomputed):
            layer.forward = _Recomputed(layer.forward)


def recomputes(model: torch.nn.Module) -> bool:
    """Return whether layers run again, by `recompute_layers` or because transformers' own switch asks for it."""
    return any(
        isinstance(getattr(module, "forward", None), _Recomputed) or getattr(module, "gradient_checkpointing", False)
        for module in model.modules()
    )


def is_peft(model: torch.nn.Module) -> bool:
    """Return whether a model is one of PEFT's, a base model with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many token ids a model's input embeddings hold."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


_LIMITS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "max_encoder_position_embeddings")


def max_tokens(model: PreTrainedModel) -> int | None:
    """Return the longest row that a model can read, tokens; None where it has no limit.

    RoBERTa and its kin count positions from behind their padding token's id. With "longrope" the positions of all
    tokens change once a row has more than `original_max_position_embeddings`, but those in a cache do not.
    """
    config = model.config.get_text_config()
    limit = next((getattr(config, name) for name in _LIMITS if getattr(config, name, None)), None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(limit, int(rope["original_max_position_embeddings"]))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - int(module.padding_idx) - 1
    return limit
