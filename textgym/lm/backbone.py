"""The ways a causal LM is run: all states of finished rows (training), or one token at a time (acting)."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import Bools, Ints, equal_parts
from textgym.lm.reference import Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import Cache, PreTrainedModel

READ_AT_ONCE = 2**28
"""Most numbers that a layer makes of prompts at once: 1 GiB in float32."""
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
_KEEP_SHARE = 0.75  # The cache is compacted when fewer of its rows than this still get tokens.
# Rows are read without a mask where all padding stands to the right; GPT-2 and its kin would warn about that.
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "may be padded" not in record.getMessage())


class Backbone(Protocol):
    """A causal LM as the rest of the library sees it. Rows are right-padded; positions count real tokens.

    A state is kept as its features (F,), of which `read_out` makes logits: F is about H, and V may be a thousand times
    as much. A cache holds the rows that a backbone has read; only the backbone that opened it can use it.
    """

    hidden_size: int
    vocab_size: int

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

    def extend(self, cache: object, tokens: Tensor) -> Tensor:
        """Append one token (B,) to every row of the cache; return the features (B, F) after it."""

    def select(self, cache: object, rows: Tensor) -> object:
        """Return the cache of a subset of its rows (n,) int64, in that order."""


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
    """The rows that a `HuggingFaceBackbone` has read: its model's own cache, mask (B, T), lengths (B,)."""

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
        self._cache_name = next((name for name in _CACHE_NAMES if name in parameters), _CACHE_NAMES[0])

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

    def extend(self, cache: object, tokens: Tensor) -> Tensor:
        """See `Backbone.extend`."""
        assert isinstance(cache, _Past)
        cache.mask = torch.cat([cache.mask, cache.mask.new_ones((len(tokens), 1))], 1)
        positions = cache.lengths[:, None]
        cache.lengths = cache.lengths + 1
        return self._forward(cache, tokens[:, None], positions)

    def select(self, cache: object, rows: Tensor) -> object:
        """See `Backbone.select`."""
        assert isinstance(cache, _Past)
        assert cache.cache is not None
        # Layers of every kind can be reordered, those of state-space models too, and an order may leave rows out.
        cache.cache.reorder_cache(rows)  # type: ignore[arg-type]
        return _Past(cache.cache, cache.mask[rows], cache.lengths[rows])

    def _forward(self, past: _Past, ids: Tensor, positions: Tensor) -> Tensor:
        extra: dict[str, object] = {"logits_to_keep": 1} if self._takes_keep else {}
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
            return torch.as_tensor(output.last_hidden_state[:, -1]).contiguous()
        return torch.cat([last_hidden(output.hidden_states)[:, -1], output.logits[:, -1]], -1)


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

    def extend(self, cache: object, tokens: Tensor) -> Tensor:
        """See `Backbone.extend`."""
        assert isinstance(cache, _Texts)
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


def is_peft(model: torch.nn.Module) -> bool:
    """Return whether a model is one of PEFT's, a base model with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def embedding_rows(model: PreTrainedModel) -> int:
    """Return how many token ids a model's input embeddings hold."""
    return model.get_input_embeddings().get_parameter("weight").shape[0]


def max_tokens(model: PreTrainedModel) -> int | None:
    """Return the longest row that a model can read, tokens; None where it has no limit.

    RoBERTa and its kin count positions from behind their padding token's id. With "longrope" the positions of all
    tokens change once a row has more than `original_max_position_embeddings`, but those in a cache do not.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(limit, int(rope["original_max_position_embeddings"]))
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - int(module.padding_idx) - 1
    return limit


class Decoder:
    """The features of a batch of observations, with a key-value cache that follows the batch.

    A row that is one token longer than when it was last seen is extended, an unchanged row costs nothing, anything
    else (a new prompt, another batch size) is read afresh. So calling it after every `step` costs as much as
    generating, and the caller passes nothing but observations.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self._backbone = backbone
        self._device = device
        self._ids: Ints = np.zeros((0, 0), dtype=np.int64)
        self._lengths: Ints = np.zeros(0, dtype=np.int64)
        self._cache: object | None = None
        self._rows: Ints = np.zeros(0, dtype=np.int64)  # batch row of each cache row
        self._extendable: Bools = np.zeros(0, dtype=np.bool_)
        self._slots = 0
        self._features = torch.zeros(0)

    def reset(self) -> None:
        """Forget every row; needed after the model's parameters change."""
        self._lengths = np.zeros(0, dtype=np.int64)
        self._cache = None

    @torch.inference_mode()
    def advance(self, observation: Observation, active: Bools | None = None) -> Tensor:
        """Return the features (B, F) after each row's last token, not to be written to.

        Args:
            observation: `input_ids` (B, L) int64 and `attention_mask` (B, L), right-padded.
            active: (B,) bool; rows that are False are not computed (their features are stale). None means all.
        """
        ids = np.asarray(observation["input_ids"], dtype=np.int64)
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        wanted = np.ones(len(ids), dtype=np.bool_) if active is None else active
        if not self._continues(ids, lengths, wanted):
            self._open(ids, lengths)
            return self._features
        longer = wanted & (lengths == self._lengths + 1)
        if longer.any():
            self._extend(ids, lengths, longer)
        return self._features

    def _continues(self, ids: Ints, lengths: Ints, wanted: Bools) -> bool:
        if self._cache is None or ids.shape != self._ids.shape:
            return False
        growth = np.where(wanted, lengths - self._lengths, 0)
        longer = growth == 1
        if (growth[~longer] != 0).any() or (longer & ~self._extendable).any() or self._slots < longer.any():
            return False
        width = int(self._lengths.max())
        seen = (np.arange(width) < self._lengths[:, None]) & wanted[:, None]
        return not ((ids[:, :width] != self._ids[:, :width]) & seen).any()

    def _open(self, ids: Ints, lengths: Ints) -> None:
        width = int(lengths.max())
        self._slots, self._cache = ids.shape[1] - width, None  # the old cache goes before there is a new one
        self._cache, self._features = self._backbone.open(
            self._tensor(ids[:, :width]), self._tensor(lengths), self._slots
        )
        self._rows = np.arange(len(ids))
        self._extendable = np.ones(len(ids), dtype=np.bool_)
        self._ids, self._lengths = ids.copy(), lengths

    def _extend(self, ids: Ints, lengths: Ints, longer: Bools) -> None:
        alive = longer[self._rows]
        if alive.mean() < _KEEP_SHARE:
            keep = np.flatnonzero(alive)
            self._cache = self._backbone.select(self._cache, self._tensor(keep))
            self._rows, alive = self._rows[keep], alive[keep]
        # Rows that stay in the cache without a new token read their last one again: they cannot be extended later.
        self._extendable &= longer
        last = lengths[self._rows] - 1
        tokens = ids[self._rows, last]
        features = self._backbone.extend(self._cache, self._tensor(tokens))
        self._slots -= 1
        if len(self._rows) == len(ids) and alive.all():
            self._features = features
        else:
            rows, fresh = self._tensor(self._rows[alive]), self._tensor(np.flatnonzero(alive))
            self._features = self._features.index_copy(0, rows, features[fresh])
        self._ids[self._rows[alive], last[alive]] = tokens[alive]
        self._lengths = np.where(longer, lengths, self._lengths)

    def _tensor(self, array: NDArray[np.integer]) -> Tensor:
        return torch.tensor(array, device=self._device)
