"""A table in the form of a causal LM: logits of its own for every state of a task, whose hidden state is a unit vector.

Every agent on an LM learns in it as it is: what an algorithm does to values and policy is then exact, since no state
shares anything with another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

_ELSEWHERE, _EMPTY = 0, 1  # rows of all texts that are no state, and of the text without tokens


class TableConfig(PretrainedConfig):
    """The sizes of a table. Args: vocab_size: V, tokens. hidden_size: S, rows."""

    model_type = "textgym-table"

    def __init__(self, vocab_size: int = 2, hidden_size: int = 2, **others: Any) -> None:
        super().__init__(**others)
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, 1
        self.num_hidden_layers = self.num_attention_heads = 1  # which sizes of caches are worked out by


class _States:
    """The cache: the row (B,) that each text has come to."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def reorder_cache(self, chosen: Tensor) -> None:
        """Keep some texts, in that order."""
        self.rows = self.rows[chosen]


@dataclass
class _Walked(ModelOutput):
    """What a `_Walk` puts out: unit vectors (B, T, S), and the cache."""

    last_hidden_state: Tensor | None = None
    cache: _States | None = None


@dataclass
class _Told(ModelOutput):
    """What a table puts out: logits (B, T, V), hidden states, and the cache."""

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cache: _States | None = None


class _Walk(PreTrainedModel):
    """From texts to unit vectors: the embedding of a token holds the row that it leads to from every row."""

    config_class = TableConfig

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.successors = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]
        self.successors.requires_grad_(False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: _States | None = None,
        use_cache: bool | None = None,
    ) -> _Walked:
        """Return the unit vectors (B, T, S); what is masked (B, ..., T) leads nowhere."""
        rows = torch.full_like(input_ids[:, 0], _EMPTY) if cache is None else cache.rows
        seen = []
        for column in range(input_ids.shape[1]):
            after = self.successors.weight[input_ids[:, column], rows].long()
            if attention_mask is not None:
                after = torch.where(attention_mask[:, column - input_ids.shape[1]] != 0, after, rows)
            rows = after
            seen.append(rows)
        hidden = nn.functional.one_hot(torch.stack(seen, 1), self.config.hidden_size).to(self.successors.weight.dtype)
        return _Walked(last_hidden_state=hidden, cache=_States(rows) if use_cache else None)


class TableLM(PreTrainedModel):
    """See the module; `lm_head` (V, S) holds the logits."""

    config_class = TableConfig
    base_model_prefix = "model"
    is_table = True

    def __init__(self, config: TableConfig) -> None:
        super().__init__(config)
        self.model = _Walk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        """See `PreTrainedModel.get_input_embeddings`."""
        return cast("nn.Module", self.model.successors)

    def get_output_embeddings(self) -> nn.Module:
        """See `PreTrainedModel.get_output_embeddings`."""
        return cast("nn.Module", self.lm_head)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: _States | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> _Told:
        """Return the logits (B, T, V)."""
        found = self.model(input_ids, attention_mask, cache, use_cache)
        hidden = found.last_hidden_state
        return _Told(logits=self.lm_head(hidden), hidden_states=(hidden,), cache=found.cache)


@torch.no_grad()
def make_table(texts: list[tuple[int, ...]], logits: Tensor) -> TableLM:
    """Return a table with a row for every text, and for what these texts begin with.

    Args:
        texts: S different ones, token ids. logits: (S, V), of the next token; 0 in all other rows.
    """
    logging.disable_progress_bar()  # it would stand in the way when the table is saved
    known: dict[tuple[int, ...], int] = {(): _EMPTY}
    for text in texts:
        for end in range(1, len(text) + 1):
            known.setdefault(text[:end], len(known) + 1)
    with torch.random.fork_rng(devices=[]):
        table = TableLM(TableConfig(logits.shape[1], len(known) + 1))
    table.model.successors.weight.fill_(_ELSEWHERE)
    for text, row in known.items():
        if text:
            table.model.successors.weight[text[-1], known[text[:-1]]] = row
    table.lm_head.weight.zero_()
    table.lm_head.weight[:, [known[text] for text in texts]] = logits.t().to(table.lm_head.weight.dtype)
    table.train(False)
    return table


AutoConfig.register(TableConfig.model_type, TableConfig, exist_ok=True)
AutoModelForCausalLM.register(TableConfig, TableLM, exist_ok=True)
