"""The two ways a causal LM is run: all states of finished rows (training), or one token at a time (acting)."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class Cache(Protocol):
    """What a backbone remembers of the rows it has read."""


class Backbone(Protocol):
    """A causal LM as the rest of the library sees it. Rows are right-padded; positions count real tokens."""

    hidden_size: int
    vocab_size: int

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and last hidden states (N, H) at the positions (rows[i], columns[i]); differentiable.

        Args:
            input_ids: (B, T) int64, right-padded; a causal model never reads the padding after a position.
            rows, columns: (N,) int64.
        """

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[Any, Tensor, Tensor]:
        """Reads right-padded prompts (B, P) with `lengths` (B,) tokens each.

        Returns: a cache with room for `slots` more tokens a row, logits (B, V), hidden (B, H) after the last token.
        """

    def extend(self, cache: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Appends one token (B,) to every row of the cache; returns logits (B, V) and hidden (B, H)."""

    def select(self, cache: Any, rows: Tensor) -> Any:
        """The cache of a subset of its rows (n,) int64, in that order."""


def last_hidden(output: Any) -> Tensor:
    """The last hidden states (B, T, H) in the output of a Hugging Face model."""
    hidden: Tensor = output.hidden_states[-1]
    # Gemma 3n has several streams (S, B, T, H) and corrects all of them from the first.
    return hidden[0] if hidden.dim() == 4 else hidden


class HuggingFaceBackbone:
    """`Backbone` over any Hugging Face causal LM, by its own forward and its own cache class.

    Args:
        model: a Hugging Face causal LM.
    Raises: ValueError if it has no output embeddings, from which the number of logits is read.
    """

    _masks_new_tokens = True

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"model: {type(model).__name__} has no output embeddings")
        self.model = model
        self.vocab_size: int = head.weight.shape[0]
        self.hidden_size: int = head.weight.shape[1]
        # PEFT's own forward hands on what it does not name.
        parameters = inspect.signature(
            (model.get_base_model() if is_peft(model) else model).forward
        ).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters
        # Its name depends on the architecture and on the version of transformers.
        self._cache_name = next((name for name in _CACHE_NAMES if name in parameters), _CACHE_NAMES[0])

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.states`."""
        first = int(columns.min()) if self._takes_keep else 0
        span = torch.arange(first, int(columns.max()) + 1, device=input_ids.device)
        keep = {"logits_to_keep": span} if self._takes_keep else {}
        output = self.model(input_ids=input_ids, use_cache=False, output_hidden_states=True, **keep)
        return output.logits[rows, columns - first], last_hidden(output)[rows, columns]

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[Any, Tensor, Tensor]:
        """See `Backbone.open`. The rows are moved to the right, so that new tokens stand side by side."""
        del slots
        width = input_ids.shape[1]
        shift = torch.arange(width, device=input_ids.device) - (width - lengths)[:, None]
        mask = (shift >= 0).long()
        moved = input_ids.gather(1, shift.clamp(min=0))
        cache = {"past": None, "mask": mask, "lengths": lengths.clone()}
        logits, hidden = self._forward(cache, moved, shift.clamp(min=0))
        return cache, logits, hidden

    def extend(self, cache: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.extend`."""
        cache["mask"] = torch.cat([cache["mask"], cache["mask"].new_ones((len(tokens), 1))], 1)
        positions = cache["lengths"][:, None]
        cache["lengths"] = cache["lengths"] + 1
        return self._forward(cache, tokens[:, None], positions)

    def select(self, cache: Any, rows: Tensor) -> Any:
        """See `Backbone.select`."""
        # Layers of every kind can be reordered, those of state-space models too, and an order may leave rows out.
        cache["past"].reorder_cache(rows)
        return {"past": cache["past"], "mask": cache["mask"][rows], "lengths": cache["lengths"][rows]}

    def _forward(self, cache: dict[str, Any], ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._takes_keep else {}
        if self._takes_positions:
            extra["position_ids"] = positions
        if cache["past"] is None or self._masks_new_tokens:
            extra["attention_mask"] = cache["mask"]
        extra[self._cache_name] = cache["past"]
        output = self.model(input_ids=ids, use_cache=True, output_hidden_states=True, **extra)
        cache["past"] = output.get(self._cache_name)
        if cache["past"] is None:
            raise ValueError("its forward returns no cache")
        return output.logits[:, -1], last_hidden(output)[:, -1]


def is_peft(model: Any) -> bool:
    """Whether a model is one of PEFT's, a base model with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


class StateSpaceBackbone(HuggingFaceBackbone):
    """`Backbone` over a model whose cache is a state, such as Mamba's: a mask is for the tokens that are read."""

    _masks_new_tokens = False


class RereadingBackbone(HuggingFaceBackbone):
    """`Backbone` over a causal LM without a usable cache: it reads the whole row again for every new token."""

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[Any, Tensor, Tensor]:
        """See `Backbone.open`."""
        cache = {"ids": torch.nn.functional.pad(input_ids, (0, slots)), "lengths": lengths.clone()}
        return cache, *self._read(cache)

    def extend(self, cache: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.extend`."""
        cache["ids"].scatter_(1, cache["lengths"][:, None], tokens[:, None])
        cache["lengths"] += 1
        return self._read(cache)

    def select(self, cache: Any, rows: Tensor) -> Any:
        """See `Backbone.select`."""
        return {name: tensor[rows] for name, tensor in cache.items()}

    def _read(self, cache: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        lengths = cache["lengths"]
        rows = torch.arange(len(lengths), device=lengths.device)
        return self.states(cache["ids"][:, : int(lengths.max())], rows, lengths - 1)


def max_tokens(model: Any) -> int | None:
    """The longest row that a model can read, tokens; None where it has no limit.

    RoBERTa and its kin count positions from behind their padding token's id. With "longrope" the positions of all
    tokens change once a row has more than `original_max_position_embeddings`, and what a cache holds does not.
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
