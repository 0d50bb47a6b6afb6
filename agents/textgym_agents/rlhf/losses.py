"""The losses of reward models, and the modules that are trained on them.

Every loss is one number for each ranking, (G,) nats, with no reduction. Rankings of different K share a batch
through `mask`: what stands in a slot where it is False has no influence and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import functional

from textgym.lm.scoring import Encoded, pad_right, sequence_scores

RankingLoss = Literal["pairwise", "plackett_luce"]


def pair_logits(scores: Tensor, margin: Tensor | None = None) -> Tensor:
    """Logits (G, K, K) that answer i is better than answer j: r_i - r_j - margin.

    Args:
        scores: (G, K) float, reward units.
        margin: (G,) float, reward units, asked of every pair of a ranking; None asks for none.
    Source: Touvron et al. (2023), arXiv:2307.09288, eq. 2 (margin).
    """
    logits = scores[:, :, None] - scores[:, None, :]
    return logits if margin is None else logits - margin[:, None, None]


def pairwise_loss(scores: Tensor, mask: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """Mean of -log sigmoid(r_i - r_j - margin) over the C(K, 2) pairs of every ranking in which i is the better.

    Args:
        scores: (G, K) float, best first.
        mask: (G, K) bool, True at answers; None for all. At least two a row.
        margin: (G,) float, asked of every pair; None asks for none.
    Returns: (G,), nats.
    Raises: ValueError for shapes that do not fit or rankings of fewer than two answers.
    Source: Ouyang et al. (2022), arXiv:2203.02155, eq. 1.
    """
    scores, valid = _clean(scores, mask)
    if margin is not None and margin.shape != scores.shape[:1]:
        raise ValueError(f"margin: its shape is {tuple(margin.shape)}, allowed is ({len(scores)},)")
    return _mean_over_pairs(-F.logsigmoid(pair_logits(scores, margin)), valid)


def plackett_luce_loss(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the order: sum over i < K of log(sum over j >= i of exp(r_j)) - r_i.

    For K = 2 this is the pairwise loss.

    Args:
        scores: (G, K) float, best first.
        mask: (G, K) bool, True at answers; None for all. At least two a row.
    Returns: (G,), nats.
    Raises: ValueError for shapes that do not fit or rankings of fewer than two answers.
    Source: Plackett (1975), The Analysis of Permutations; as a model of preferences Rafailov et al. (2023),
        arXiv:2305.18290, appendix A.3.
    """
    scores, valid = _clean(scores, mask)
    count = scores.shape[1]
    square = torch.ones((count, count), dtype=torch.bool, device=scores.device)
    # A slot without an answer keeps itself, since the logarithm of an empty sum has no gradient.
    left = (valid[:, None, :] & square.triu()) | (square.triu() & square.tril())
    totals = scores[:, None, :].expand(-1, count, -1).masked_fill(~left, -torch.inf).logsumexp(-1)
    return (totals - scores).masked_fill(~valid, 0.0).sum(1)


def centering_loss(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (r_i + r_j)^2 over the pairs of every ranking: a pull of its scores towards mean 0.

    Args:
        scores: (G, K) float.
        mask: (G, K) bool, True at answers; None for all. At least two a row.
    Returns: (G,), squared reward units.
    Raises: ValueError for shapes that do not fit or rankings of fewer than two answers.
    Source: Eisenstein et al. (2023), arXiv:2312.09244, section 2.
    """
    scores, valid = _clean(scores, mask)
    return _mean_over_pairs((scores[:, :, None] + scores[:, None, :]).square(), valid)


def ranking_loss(
    scores: Tensor,
    mask: Tensor | None = None,
    margin: Tensor | None = None,
    kind: RankingLoss = "pairwise",
    centering: float = 0.0,
) -> Tensor:
    """The whole loss of a reward model: that of the order, plus `centering` times `centering_loss`.

    Args:
        scores, mask, margin: see `pairwise_loss`.
        kind: "pairwise" or "plackett_luce"; the latter has no margin.
        centering: >= 0.
    Returns: (G,).
    Raises: ValueError for a bad kind, a margin that the kind does not have, or bad shapes.
    """
    if kind not in get_args(RankingLoss):
        raise ValueError(f"kind={kind!r}: one of {get_args(RankingLoss)} is allowed")
    if kind == "plackett_luce" and margin is not None:
        raise ValueError("margin: kind='plackett_luce' has none; allowed: margin=None, kind='pairwise'")
    loss = pairwise_loss(scores, mask, margin) if kind == "pairwise" else plackett_luce_loss(scores, mask)
    return loss + centering * centering_loss(scores, mask) if centering else loss


def _clean(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The scores with 0 where there is no answer, and the mask."""
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores: the shape is {tuple(scores.shape)}, allowed is (G, K) with K >= 2")
    if mask is None:
        return scores, torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: {mask.dtype} of shape {tuple(mask.shape)}, allowed is torch.bool of {tuple(scores.shape)}"
        )
    if (mask.sum(1) < 2).any():
        raise ValueError("mask: every ranking needs at least two answers")
    return scores.masked_fill(~mask, 0.0), mask


def _mean_over_pairs(values: Tensor, valid: Tensor) -> Tensor:
    """Means (G,) of values (G, K, K) over the pairs i < j of answers."""
    pairs = (valid[:, :, None] & valid[:, None, :]).triu(1)
    return values.masked_fill(~pairs, 0.0).sum((1, 2)) / pairs.sum((1, 2))


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
