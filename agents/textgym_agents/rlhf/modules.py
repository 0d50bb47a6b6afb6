"""What is trained: a model with its loss, summed over the items of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from textgym.lm.scoring import Encoded, pad_right, sequence_scores
from textgym_agents.rlhf.losses import RankingLoss, ranking_loss

IGNORED = -100  # the label of tokens that are not to be learnt: prompts and padding


class CompletionLoss(nn.Module):
    """Cross entropy of completion tokens, nats; an item is a token.

    Args:
        model: a causal LM.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """The sum over the tokens with a label.

        Args:
            input_ids: (B, T) int64, padded on the right. attention_mask: (B, T), 1 at real tokens.
            labels: (B, T) int64, the ids of completion tokens, `IGNORED` elsewhere.
        """
        logits, targets = self.predictions(input_ids, attention_mask, labels)
        return functional.cross_entropy(logits, targets, reduction="sum")

    def predictions(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, V) float32 and targets (N,) of the N tokens with a label."""
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        wanted = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        return outputs.logits[:, :-1][wanted].float(), labels[:, 1:][wanted]

    @staticmethod
    def count(batch: dict[str, Tensor]) -> int:
        """The tokens to be learnt."""
        return int((batch["labels"] != IGNORED).sum())

    @staticmethod
    def collate(rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Rows as one batch, as long as the longest of them."""
        input_ids, lengths = pad_right([row.ids for row in rows])
        place = torch.arange(input_ids.shape[1])[None]
        starts = torch.tensor([row.prompt_tokens for row in rows])[:, None]
        real = place < lengths[:, None]
        labels = input_ids.masked_fill(~real | (place < starts), IGNORED)
        return {"input_ids": input_ids, "attention_mask": real.long(), "labels": labels}


class RankedRow(NamedTuple):
    """The answers to one prompt, best first.

    Args:
        answers: K, each with its prompt.
        margin: reward units that are asked of every pair.
    """

    answers: tuple[Encoded, ...]
    margin: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the longest answer."""
        return max(len(answer.ids) for answer in self.answers)


class PreferenceLoss(nn.Module):
    """The loss of a reward model; an item is a ranking.

    Args:
        model: a sequence classifier with one label.
        kind, centering: see `losses.ranking_loss`.
        has_margins: whether the rows' margins count.
    """

    def __init__(self, model: Any, kind: RankingLoss, centering: float, has_margins: bool) -> None:
        super().__init__()
        self.model = model
        self._kind, self._centering, self._has_margins = kind, centering, has_margins

    def forward(self, input_ids: Tensor, lengths: Tensor, mask: Tensor, margins: Tensor) -> Tensor:
        """The sum over the rankings.

        Args:
            input_ids: (N, T) int64, the answers of all G rankings one after the other, padded on the right.
            lengths: (N,) int64. mask: (G, K) bool with N times True. margins: (G,) float.
        """
        flat = sequence_scores(self.model, input_ids, lengths)
        scores = flat.new_zeros(mask.shape).masked_scatter(mask, flat)
        asked = margins if self._has_margins else None
        return ranking_loss(scores, mask, asked, self._kind, self._centering).sum()

    @staticmethod
    def count(batch: dict[str, Tensor]) -> int:
        """The rankings."""
        return len(batch["mask"])

    @staticmethod
    def collate(rows: Sequence[RankedRow]) -> dict[str, Tensor]:
        """Rankings as one batch, as long as the longest answer."""
        input_ids, lengths = pad_right([answer.ids for row in rows for answer in row.answers])
        counts = torch.tensor([len(row.answers) for row in rows])
        return {
            "input_ids": input_ids,
            "lengths": lengths,
            "mask": torch.arange(int(counts.max()))[None] < counts[:, None],
            "margins": torch.tensor([row.margin for row in rows], dtype=torch.float32),
        }
