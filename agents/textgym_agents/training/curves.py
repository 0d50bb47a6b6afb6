"""The learning curve as a picture: the objective between the reference and the optimum, and the price in KL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike

from textgym.checks import Floats, JsonObject
from textgym.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[JsonObject]

INK, FAINT, _GRID = "#1f2430", "#7a8090", "#e6e8ee"
HUES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that colour-blind readers tell apart. Source: Okabe and Ito (2008), Color Universal Design."""
_OBJECTIVE, _REWARD, _OPTIMUM, _KL = HUES[:4]


def draw_curves(
    rows: Rows, target: Path, title: str, levels: tuple[float, float] | None = None, beta: float = 0.0
) -> None:
    """Draw a run's metrics as a PNG.

    Args:
        rows: of metrics.jsonl.
        levels: J of the reference and J*, reward units; None where they are not known.
        beta: reward units per nat.
    Raises: ModuleNotFoundError without matplotlib.
    """
    with two_panels(target, title, (8.0, 7.2), (2.0, 1.0)) as (above, below):
        _draw_objective(above, rows, levels, beta)
        _draw_kl(below, rows)
        below.set_xlabel("episodes", color=INK)


@contextlib.contextmanager
def two_panels(
    target: Path, title: str, size: tuple[float, float], heights: tuple[float, float]
) -> Iterator[tuple[Axes, Axes]]:
    """Give two panels, one above the other; the picture is written as a PNG at the end of the block.

    Args:
        size: width and height, inches.
        heights: of the panels, relative to each other.
    Raises: ModuleNotFoundError without matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    # A title may hold anything; "$" would start a formula.
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    yield above, below
    with replaced(target) as partial:
        figure.savefig(partial, format="png")


def _draw_objective(axes: Axes, rows: Rows, levels: tuple[float, float] | None, beta: float) -> None:
    style_axes(axes, "reward units")
    _line(axes, rows, "objective/scores", _REWARD, "reward, training batches")
    _points(axes, rows, "eval/reward", _REWARD, "reward, held-out prompts")
    _points(axes, rows, "eval/objective", _OBJECTIVE, f"objective J = reward - {beta:g} KL, held-out prompts")
    if levels is not None:
        low, high = levels
        axes.axhline(high, color=_OPTIMUM, linestyle="--", linewidth=1.4, label=f"optimum J* = {high:.3f}")
        axes.axhline(low, color=FAINT, linestyle=":", linewidth=1.4, label=f"reference J = {low:.3f}")
        if high > low:
            _optimality_scale(axes, low, high)
    axes.margins(y=0.08)
    legend_above(axes)


def _optimality_scale(axes: Axes, low: float, high: float) -> None:
    """Add a scale on the right, on which the reference is 0 and the optimum 1."""
    span = high - low

    def optimality(j: ArrayLike) -> Floats:
        return (np.asarray(j, dtype=np.float64) - low) / span

    def objective(o: ArrayLike) -> Floats:
        return low + np.asarray(o, dtype=np.float64) * span

    scale = axes.secondary_yaxis("right", functions=(optimality, objective))
    scale.set_ylabel("optimality of J", color=_OBJECTIVE)
    scale.tick_params(colors=_OBJECTIVE, labelsize=9)
    scale.spines["right"].set_visible(False)


def _draw_kl(axes: Axes, rows: Rows) -> None:
    style_axes(axes, "KL to the reference\n(nats per answer)")
    _line(axes, rows, "objective/kl", _KL, "training batches")
    _points(axes, rows, "eval/kl", _KL, "held-out prompts")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    legend_above(axes)


def _line(axes: Axes, rows: Rows, name: str, colour: str, label: str) -> None:
    # A batch shows the policy that the batches before it had made.
    shown = [{**row, "episode": before["episode"]} for before, row in pairwise(rows)]
    episodes, values = _series(shown, name)
    if len(values):
        axes.plot(episodes, values, color=colour, alpha=0.45, linewidth=1.3, label=label)


def _points(axes: Axes, rows: Rows, name: str, colour: str, label: str) -> None:
    """Draw estimates with their 95% intervals."""
    episodes, values = _series(rows, name)
    if not len(values):
        return
    low, high = _series(rows, f"{name}_low")[1], _series(rows, f"{name}_high")[1]
    axes.plot(episodes, values, color=colour, linewidth=1.8, marker="o", markersize=4.5, label=label)
    if len(low) == len(high) == len(values):
        axes.fill_between(episodes, low, high, color=colour, alpha=0.15, linewidth=0)


def _series(rows: Rows, name: str) -> tuple[Floats, Floats]:
    pairs = [(row["episode"], row[name]) for row in rows if row.get(name) is not None]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no curve."""
    if axes.get_legend_handles_labels()[0]:
        style: dict[str, Any] = {"fontsize": 9, "frameon": False, "labelcolor": INK, "borderaxespad": 0.3}
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, **style)


def style_axes(axes: Axes, label: str) -> None:
    """Give axes a label, a faint grid, and no frame above and on the right."""
    axes.set_ylabel(label, color=INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
