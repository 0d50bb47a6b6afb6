"""The calibration of a reward model as a picture: how often it is right against how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textgym.files import replaced
from textgym_agents.rlhf.measures import Bin, calibration_error

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
