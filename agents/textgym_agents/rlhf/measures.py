"""How good the scores of a reward model are: order, probability, calibration, and what they owe to length.

Rankings are given as their answers' scores, best first; a pair is two answers of one ranking, and its margin the
better one's score less the other's. Every pair counts the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textgym.estimates import RESAMPLES, Estimate, interval
from textgym.files import replaced

Floats = NDArray[np.float64]


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
    scores: Sequence[Sequence[float]], tokens: Sequence[Sequence[int]], bins: int = 10, seed: int = 0
) -> dict[str, Any]:
    """All measures of this file, as JSON values.

    Args:
        scores: of G rankings the scores of their answers, best first, reward units.
        tokens: the answers' lengths, in the same shape.
        bins: of the confidence from 0.5 to 1.
        seed: of the bootstrap.
    Returns: `rankings` and `pairs` (counts), `accuracy` with its 95% interval `accuracy_low` and `accuracy_high`,
        `log_loss` (nats), `ece`, `reliability` (a list of `Bin` as dicts), `length_pearson`, `length_spearman`
        (None where a score or a length never differs), and `longer_accuracy`, the accuracy of the rule that the
        longer answer is the better.
    Raises: ValueError if there is no ranking or the shapes differ.
    """
    if len(scores) == 0 or list(map(len, scores)) != list(map(len, tokens)):
        raise ValueError("scores, tokens: one length for every score and at least one ranking are needed")
    margins, groups = ranking_margins(scores)
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


def ranking_margins(scores: Sequence[Sequence[float]]) -> tuple[Floats, NDArray[np.int64]]:
    """The margins (N,) of all pairs of all rankings, and the ranking (N,) that each comes from.

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
    """Whether each pair is in the right order (N,): 1, 0, and 0.5 for a tie. Their mean is the accuracy."""
    return np.asarray((np.sign(margins) + 1) / 2)


def log_loss(margins: Floats) -> float:
    """Mean of -log sigmoid(margin), nats; log 2 for a model that says nothing."""
    return float(np.logaddexp(0.0, -margins).mean())


def accuracy_interval(right: Floats, groups: NDArray[np.int64], seed: int) -> Estimate:
    """The mean and its 95% interval by resampling whole rankings, since the pairs of one are not independent.

    Args:
        right: (N,) in [0, 1], see `in_order`.
        groups: (N,) the ranking of every pair, 0..G-1.
        seed: of the bootstrap.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3 (percentile interval).
    """
    sums, counts = np.bincount(groups, weights=right), np.bincount(groups)
    generator = np.random.default_rng([seed, 5])
    replicates = np.empty(RESAMPLES)
    for replicate in range(RESAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        replicates[replicate] = sums[drawn].sum() / counts[drawn].sum()
    return interval(float(right.mean()), replicates)


def reliability(margins: Floats, bins: int = 10) -> list[Bin]:
    """How often a model is right, by how sure it is.

    Which answer of a pair is the better is what the model has to find out, so it is not told: the model's answer is
    the one with the higher score, its confidence sigmoid(|margin|), from 0.5 to 1, and it is right where the
    margin is positive (a tie is half right). Were sigmoid(margin) itself binned, every pair would count as right.

    Args:
        margins: (N,).
        bins: >= 1, of equal width.
    Source: Guo et al. (2017), arXiv:1706.04599, section 2.
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), in_order(margins)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    result = []
    for number in range(bins):
        chosen = place == number
        means = (float(v[chosen].mean()) if chosen.any() else None for v in (confidence, right))
        result.append(Bin(float(edges[number]), float(edges[number + 1]), int(chosen.sum()), *means))
    return result


def calibration_error(curve: Sequence[Bin]) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| over bins, weighted by their pairs.

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
    """Pearson's and Spearman's correlation of the scores and lengths (N,) of answers; None where one is constant."""
    first, second = np.asarray(scores, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    return _pearson(first, second), _pearson(_ranks(first), _ranks(second))


def _pearson(first: Floats, second: Floats) -> float | None:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])


_SIZE, _DPI = (6.4, 6.4), 130  # inches; pixels per inch
_INK, _FAINT, _GRID = "#1f2430", "#7a8090", "#e6e8ee"
_BARS, _COUNTS = "#2458c5", "#7a8090"


def draw_reliability(curve: Sequence[Bin], target: Path, title: str) -> None:
    """Writes a PNG of the share of pairs in the right order in every bin of confidence, and of the bins' sizes.

    Args:
        curve: see `textgym_agents.rlhf.measures.reliability`.
        target: the file.
        title: stands above the picture.
    Raises: ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    # A title may hold anything; "$" would start a formula.
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold")
    _draw_accuracy(above, curve)
    _draw_counts(below, curve)
    with replaced(target) as partial:
        figure.savefig(partial, format="png")


def _draw_accuracy(axes: Any, curve: Sequence[Bin]) -> None:
    _style(axes, "pairs in the right order")
    filled = [entry for entry in curve if entry.pairs]
    low = min([0.5, *(entry.accuracy or 0.0 for entry in filled)])
    for entry in filled:
        width = entry.high - entry.low
        axes.bar(entry.low, (entry.accuracy or 0.0) - low, width, low, align="edge", color=_BARS, alpha=0.25)
    points = [(entry.confidence, entry.accuracy) for entry in filled]
    if points:
        label = f"model (expected calibration error {calibration_error(curve):.3f})"
        axes.plot(*zip(*points, strict=True), color=_BARS, marker="o", linewidth=1.8, label=label)
    axes.plot(
        [0.5, 1.0], [0.5, 1.0], color=_FAINT, linestyle="--", linewidth=1.2, label="perfectly calibrated"
    )
    axes.set_xlim(0.5, 1.0)
    axes.set_ylim(low, 1.0)
    style = {"fontsize": 9, "frameon": False, "labelcolor": _INK, "borderaxespad": 0.3}
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, **style)


def _draw_counts(axes: Any, curve: Sequence[Bin]) -> None:
    _style(axes, "pairs")
    for entry in curve:
        axes.bar(entry.low, entry.pairs, entry.high - entry.low, align="edge", color=_COUNTS, alpha=0.45)
    axes.set_xlabel("confidence: probability of the answer that the model prefers", color=_INK)


def _style(axes: Any, label: str) -> None:
    axes.set_ylabel(label, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_FAINT, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
