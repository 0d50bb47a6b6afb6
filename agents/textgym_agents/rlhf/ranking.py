"""Scores of ranked answers: the losses that reward models learn from, and measures of how good they are.

A loss is one number for each ranking, (G,) nats, with no reduction. Rankings of different K share a batch through
`mask`: what stands in a slot where it is False has no influence and gets no gradient.

For measures, rankings are given as their answers' scores, best first; a pair is two answers of one ranking, and its
margin the better one's score less the other's. Every pair counts the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from textgym.checks import Floats, Ints, JsonObject
from textgym.estimates import RESAMPLES, Estimate, interval
from textgym.rewards import Reward
from textgym_agents.rlhf.settings import RankingLoss
from textgym_agents.training.curves import FAINT, HUES, INK, legend_above, style_axes, two_panels

# Losses


def pair_logits(scores: Tensor, margin: Tensor | None = None) -> Tensor:
    """Return logits (G, K, K) that answer i is better than answer j: r_i - r_j - margin.

    Args:
        scores: (G, K) float, reward units.
        margin: (G,) float, reward units, asked of every pair of a ranking; None asks for none.
    Source: Touvron et al. (2023), arXiv:2307.09288, eq. 2 (margin).
    """
    logits = scores[:, :, None] - scores[:, None, :]
    return logits if margin is None else logits - margin[:, None, None]


def pairwise_loss(scores: Tensor, mask: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
    """Return the mean of -log sigmoid(r_i - r_j - margin) over the C(K, 2) pairs of every ranking, i the better one.

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
    """Return the negative log-likelihood of the order: sum over i < K of log(sum over j >= i of exp(r_j)) - r_i.

    For K = 2 this is the pairwise loss, whose arguments and errors it has.

    Returns: (G,), nats.
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
    """Return the mean of (r_i + r_j)^2 over the pairs of every ranking: a pull of its scores towards mean 0.

    Args and Raises: see `pairwise_loss`.
    Returns: (G,), squared reward units.
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
    """Return the whole loss of a reward model: that of the order, plus `centering` times `centering_loss`.

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
    """Return the scores with 0 where there is no answer, and the mask."""
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
    """Return means (G,) of values (G, K, K) over the pairs i < j of answers."""
    pairs = (valid[:, :, None] & valid[:, None, :]).triu(1)
    return values.masked_fill(~pairs, 0.0).sum((1, 2)) / pairs.sum((1, 2))


# Measures


class Bin(NamedTuple):
    """The pairs whose confidence is in (low, high]: how many, their mean confidence, the share in the right order.

    Without pairs the means are None.
    """

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: float | None


def measure_rankings(
    scores: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    bins: int = 10,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
) -> JsonObject:
    """Return all measures of a reward model, as JSON values.

    Args:
        scores: of G rankings the scores of their answers, best first, reward units.
        tokens: the answers' lengths, in the same shape.
        bins: of the confidence from 0.5 to 1.
        seed: of the bootstrap.
        prompts: (G,) of the rankings, which are the units that the bootstrap draws; None: every ranking is one.
    Returns: `rankings` and `pairs` (counts), `accuracy` with its 95% interval `accuracy_low` and `accuracy_high`,
        `log_loss` (nats), `ece`, `reliability` (a list of `Bin` as dicts), `length_pearson`, `length_spearman`
        (None where a score or a length never differs), and `longer_accuracy`, the accuracy of the rule that the
        longer answer is the better.
    Raises: ValueError if there is no ranking or the shapes differ.
    """
    if len(scores) == 0 or list(map(len, scores)) != list(map(len, tokens)):
        raise ValueError("scores, tokens: one length for every score and at least one ranking are needed")
    margins, groups = ranking_margins(scores)
    if prompts is not None:
        groups = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)[1][groups]
    right = in_order(margins)
    estimate = accuracy_interval(right, groups, seed)
    curve = reliability(margins, bins)
    pearson, spearman = length_correlation(np.concatenate(scores), np.concatenate(tokens))
    return {
        "rankings": len(scores),
        "pairs": len(margins),
        "accuracy": estimate.mean,
        "accuracy_low": estimate.low,
        "accuracy_high": estimate.high,
        "log_loss": log_loss(margins),
        "ece": calibration_error(curve),
        "reliability": [entry._asdict() for entry in curve],
        "length_pearson": pearson,
        "length_spearman": spearman,
        "longer_accuracy": float(in_order(ranking_margins(tokens)[0]).mean()),
    }


def ranking_margins(scores: Sequence[Sequence[float]]) -> tuple[Floats, Ints]:
    """Return the margins (N,) of all pairs of all rankings, and the ranking (N,) that each comes from.

    Raises: ValueError for a ranking of fewer than two answers.
    """
    margins, groups = [], []
    for number, ranking in enumerate(scores):
        if len(ranking) < 2:
            raise ValueError(f"ranking {number} has {len(ranking)} answers; allowed is 2 or more")
        row = np.asarray(ranking, dtype=np.float64)
        better, worse = np.triu_indices(len(row), 1)
        margins.append(row[better] - row[worse])
        groups.append(np.full(len(better), number))
    return np.concatenate(margins), np.concatenate(groups)


def in_order(margins: Floats) -> Floats:
    """Return whether each pair is in the right order (N,): 1, 0, and 0.5 for a tie; their mean is the accuracy."""
    return np.asarray((np.sign(margins) + 1) / 2)


def log_loss(margins: Floats) -> float:
    """Return the mean of -log sigmoid(margin), nats; log 2 for a model that says nothing."""
    return float(np.logaddexp(0.0, -margins).mean())


def accuracy_interval(right: Floats, groups: Ints, seed: int) -> Estimate:
    """Return the mean and its 95% interval by resampling whole rankings: the pairs of one are not independent.

    If all G rankings say the same, the rule of three widens it, with 3 / G as the bound of a probability, unless all
    pairs are ties: such a model says nothing of any pair.

    Args:
        right: (N,) in [0, 1], see `in_order`.
        groups: (N,) the ranking of every pair, 0..G-1.
        seed: of the bootstrap.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3 (percentile interval).
    """
    sums, counts = np.bincount(groups, weights=right), np.bincount(groups)
    if len(sums) < 2:  # one group is no sample of groups
        return Estimate(float(right.mean()), math.nan, math.nan)
    generator = np.random.default_rng([seed, 5])
    replicates = np.empty(RESAMPLES)
    for replicate in range(RESAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        replicates[replicate] = sums[drawn].sum() / counts[drawn].sum()
    found = interval(float(right.mean()), replicates)
    agree = found.high - found.low < 1e-9 and (right != 0.5).any()
    unseen = 3.0 / len(sums) if agree else 0.0
    return Estimate(found.mean, max(found.low - unseen, 0.0), min(found.high + unseen, 1.0))


def reliability(margins: Floats, bins: int = 10) -> list[Bin]:
    """Return how often a model is right, by how sure it is.

    The model's answer is the one with the higher score, and its confidence is sigmoid(|margin|), from 0.5 to 1. It is
    right where the margin is positive; a tie is half right. (Bins of sigmoid(margin) would use the label.)

    Args:
        margins: (N,).
        bins: >= 1, of equal width.
    Source: Guo et al. (2017), arXiv:1706.04599, section 2.
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), in_order(margins)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    result = []
    for number, (low, high) in enumerate(pairwise(edges.tolist())):
        chosen = place == number
        means = (float(v[chosen].mean()) if chosen.any() else None for v in (confidence, right))
        result.append(Bin(low, high, int(chosen.sum()), *means))
    return result


def calibration_error(curve: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence| over bins, weighted by their pairs.

    Source: Guo et al. (2017), arXiv:1706.04599, eq. 3.
    """
    total = sum(entry.pairs for entry in curve)
    gaps = [
        entry.pairs * abs(entry.accuracy - entry.confidence)
        for entry in curve
        if entry.accuracy is not None and entry.confidence is not None
    ]
    return sum(gaps) / total if total else math.nan


def length_correlation(scores: ArrayLike, tokens: ArrayLike) -> tuple[float | None, float | None]:
    """Return Pearson's and Spearman's correlation of scores and lengths (N,) of answers; None where one is constant."""
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    return _pearson(first, second), _pearson(_ranks(first), _ranks(second))


def _pearson(first: Floats, second: Floats) -> float | None:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Return ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])


def calibrate(proxy: Floats, gold: Floats) -> dict[str, float]:
    """Return `scale` and `offset` with which offset + scale * proxy has the mean and spread of gold.

    A Bradley-Terry model knows differences only, in units of its annotator's noise.
    """
    scale = float(gold.std() / proxy.std()) if proxy.std() > 0 else 1.0
    return {"scale": scale, "offset": float(gold.mean() - scale * proxy.mean())}


def score_answers(reward: Reward, answers: Iterable[tuple[str, str, bool]], stop_ids: Sequence[int]) -> Floats:
    """Return a reward's scores (N,) of answers, as it sees them in an environment.

    Args:
        answers: prompt, text, and whether it came to its end: with the first of `stop_ids`, if there is one.
    """
    prompts, texts, ended = (list(column) for column in zip(*answers, strict=True))
    ids = [list(stop_ids[:1]) if whole else [] for whole in ended]
    return np.array(reward(prompts, texts, completion_ids=ids), dtype=np.float64)


def shifted(estimate: Estimate, by: float) -> Estimate:
    """Return an estimate with a constant added."""
    return Estimate(estimate.mean + by, estimate.low + by, estimate.high + by)


def draw_reliability(curve: Sequence[Bin], target: Path, title: str) -> None:
    """Write a PNG of the share of pairs in the right order in every bin of confidence, and of the bins' sizes.

    Args: see `reliability` and `two_panels`.
    Raises: ModuleNotFoundError without matplotlib.
    """
    with two_panels(target, title, (6.4, 6.4), (3.2, 1.0)) as (above, below):
        style_axes(above, "pairs in the right order")
        style_axes(below, "pairs")
        filled = [entry for entry in curve if entry.accuracy is not None]
        low = min([0.5, *(entry.accuracy or 0.0 for entry in filled)])
        for entry in filled:
            width = entry.high - entry.low
            height = (entry.accuracy or 0.0) - low
            above.bar(entry.low, height, width, low, align="edge", color=HUES[0], alpha=0.25)
            below.bar(entry.low, entry.pairs, width, align="edge", color=FAINT, alpha=0.45)
        points = [(entry.confidence, entry.accuracy) for entry in filled]
        if points:
            label = f"model (expected calibration error {calibration_error(curve):.3f})"
            above.plot(*zip(*points, strict=True), color=HUES[0], marker="o", linewidth=1.8, label=label)
        label = "perfectly calibrated"
        above.plot([0.5, 1.0], [0.5, 1.0], color=FAINT, linestyle="--", linewidth=1.2, label=label)
        above.set_xlim(0.5, 1.0)
        above.set_ylim(low, 1.0)
        legend_above(above)
        below.set_xlabel("confidence: probability of the answer that the model prefers", color=INK)
