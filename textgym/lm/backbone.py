"""The two ways a causal LM is run: all states of finished rows (training), or one token at a time (acting)."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from textgym.lm import llama


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


class HuggingFaceBackbone:
    """`Backbone` over any Hugging Face causal LM, by its own forward and its own cache class."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.hidden_size: int = model.get_output_embeddings().weight.shape[1]
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        plain = (
            model.get_base_model() if is_peft(model) else model
        )  # PEFT's own forward hands on what it does not name
        parameters = inspect.signature(plain.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.states`."""
        first = int(columns.min()) if self._takes_keep else 0
        span = torch.arange(first, int(columns.max()) + 1, device=input_ids.device)
        keep = {"logits_to_keep": span} if self._takes_keep else {}
        output = self.model(input_ids=input_ids, use_cache=False, output_hidden_states=True, **keep)
        return output.logits[rows, columns - first], output.hidden_states[-1][rows, columns]

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        """See `Backbone.open`. The rows are moved to the right, so that new tokens stand side by side."""
        del slots
        width = input_ids.shape[1]
        shift = torch.arange(width, device=input_ids.device) - (width - lengths)[:, None]
        mask = (shift >= 0).long()
        moved = input_ids.gather(1, shift.clamp(min=0))
        cache = {"past": None, "mask": mask, "lengths": lengths.clone()}
        logits, hidden = self._forward(cache, moved, shift.clamp(min=0))
        return cache, logits, hidden

    def extend(self, cache: dict[str, Any], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.extend`."""
        cache["mask"] = torch.cat([cache["mask"], cache["mask"].new_ones((len(tokens), 1))], 1)
        positions = cache["lengths"][:, None]
        cache["lengths"] = cache["lengths"] + 1
        return self._forward(cache, tokens[:, None], positions)

    def select(self, cache: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        """See `Backbone.select`."""
        cache["past"].batch_select_indices(rows)
        return {"past": cache["past"], "mask": cache["mask"][rows], "lengths": cache["lengths"][rows]}

    def _forward(self, cache: dict[str, Any], ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._takes_keep else {}
        if self._takes_positions:
            extra["position_ids"] = positions
        output = self.model(
            input_ids=ids,
            attention_mask=cache["mask"],
            past_key_values=cache["past"],
            use_cache=True,
            output_hidden_states=True,
            **extra,
        )
        cache["past"] = output.past_key_values
        return output.logits[:, -1], output.hidden_states[-1][:, -1]


def is_peft(model: Any) -> bool:
    """Whether a model is one of PEFT's, a base model with an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def make_backbone(model: Any, lean: bool | None = None) -> Backbone:
    """The fastest backbone that gives `model`'s own logits.

    Args:
        model: a Hugging Face causal LM.
        lean: True or False asks for the hand-written Llama or the model's own forward; None chooses.
    Raises: ValueError if `lean` is True and the model is no plain small Llama.
    """
    possible = llama.supports(model)
    if lean and not possible:
        raise ValueError(
            f"lean=True: {type(model).__name__} is not a plain float32 Llama; allowed: None, False"
        )
    if possible if lean is None else lean:
        return llama.LlamaBackbone(model)
    return HuggingFaceBackbone(model)
