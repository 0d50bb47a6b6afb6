"""What the charts draw, as JSON for the page's script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textgym_benchmarks.summaries.curves import Band, Curve
from textgym_benchmarks.summary import Summary

DIGITS = 5  # significant ones, enough for a screen
MEASURES = ("optimality", "reward", "gold", "kl")


def chart_data(summary: Summary, agents: Mapping[str, int]) -> dict[str, Any]:
    """What figures.js draws from; agents and problems are named by index."""
    curves: list[list[dict[str, Any]]] = [[] for _ in summary.problems]
    for curve in summary.curves:
        curves[curve.problem].append(_curve(curve, agents[curve.agent]))
    lines = summary.profiles
    radar = summary.radar
    return {
        "floor": summary.floor,
        "curves": curves,
        "profiles": [
            {
                "agent": agents[line.agent],
                "thresholds": list(summary.thresholds),
                "share": _rounded(line.share),
                "low": _rounded(line.low),
                "high": _rounded(line.high),
            }
            for line in lines
        ],
        "radar": {
            "axes": list(radar.capabilities),
            "agents": [
                {"agent": agents[name], "values": _rounded(values)}
                for name, values in zip(radar.agents, radar.values, strict=True)
            ],
        },
        "throughput": [
            {
                "agent": agents[row.agent],
                "total": _round(row.tokens_per_cpu_second),
                "problems": [
                    {"problem": entry.problem, "value": _round(entry.tokens_per_cpu_second)}
                    for entry in summary.entries
                    if entry.agent == row.agent and entry.tokens_per_cpu_second
                ],
            }
            for row in summary.leaderboard
            if row.tokens_per_cpu_second
        ],
    }


def _curve(curve: Curve, agent: int) -> dict[str, Any]:
    measures = {name: _band(getattr(curve, name)) for name in MEASURES}
    known = {name: band for name, band in measures.items() if band}
    return {"agent": agent, "episodes": _rounded(curve.episodes), "tokens": _rounded(curve.tokens), **known}


def _band(band: Band) -> dict[str, Any] | None:
    if all(value is None for value in band.mean):
        return None
    return {name: _rounded(getattr(band, name)) for name in ("mean", "low", "high")}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _rounded(values: Sequence[float | None] | None) -> list[float | None] | None:
    return None if values is None else [_round(value) for value in values]
