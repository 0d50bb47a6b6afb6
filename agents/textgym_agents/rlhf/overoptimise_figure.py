"""The picture of over-optimisation: gold and proxy reward against the root of the KL divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textgym.files import replaced

_TITLES = {"best-of-n": "best-of-n", "ppo": "PPO, falling KL penalty"}


def draw_overoptimisation(curves: Sequence[Mapping[str, Any]], target: Path, title: str) -> None:
    """Writes a picture: a panel for each method and size of the reward model, a colour for each number of pairs.

    Solid lines are the gold reward, dashed ones the proxy that is optimised; bands are 95% intervals.

    Args:
        curves: of the result of `run_overoptimise`.
    Raises: ModuleNotFoundError without matplotlib (extra `report`).
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    sizes = sorted({curve["layers"] for curve in curves})
    amounts = sorted({curve["pairs"] for curve in curves})
    figure = Figure(figsize=(5 * len(methods), 3.4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(methods), squeeze=False, sharey=True)
    colours = {pairs: f"C{number}" for number, pairs in enumerate(amounts)}
    for curve in curves:
        panel = panels[sizes.index(curve["layers"])][methods.index(curve["method"])]
        _draw_curve(panel, curve, colours[curve["pairs"]])
    for row, layers in zip(panels, sizes, strict=True):
        row[0].set_ylabel("reward, gold units")
        for panel, method in zip(row, methods, strict=True):
            panel.set_title(
                f"{_TITLES[method]}; reward model of {layers} layer{'s' * (layers > 1)}", fontsize=9
            )
            panel.set_xlabel("square root of KL, nats")
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with replaced(target) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _draw_curve(panel: Any, curve: Mapping[str, Any], colour: str) -> None:
    points = sorted(curve["points"], key=lambda point: point["kl"]["mean"])
    roots = [math.sqrt(max(point["kl"]["mean"], 0.0)) for point in points]
    for name, style in (("gold", "-"), ("proxy", "--")):
        means, lows, highs = ([point[name][end] for point in points] for end in ("mean", "low", "high"))
        label = f"{curve['pairs']:,} pairs, {name} ({curve['accuracy']:.2f} right)"
        panel.plot(roots, means, style, color=colour, label=label, marker=".", markersize=4)
        panel.fill_between(roots, lows, highs, color=colour, alpha=0.15, linewidth=0)
