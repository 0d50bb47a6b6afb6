"""The numbers of one cell, from what its run has logged: before, after, the curve, crossings and samples. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textgym_agents.measures import ESTIMATES, NUMBERS

Row = Mapping[str, Any]
LEVELS = {"to_half": 0.5, "to_nine_tenths": 0.9}
_POINT = (
    *("optimality", "optimality_low", "optimality_high", "reward", "gold", "kl"),
    *("objective", "objective_low", "objective_high"),
)
_ANSWER = ("completion", "reward", "terms", "gold")


def snapshot(row: Row) -> dict[str, Any]:
    """One evaluation.

    Args:
        row: with `eval/NAME`, as `textgym_agents.measures.evaluation_row` makes them.
    Returns: {"mean", "low", "high"} of every estimate and the number of every other measure; None for what there is
        not. `terms` are means of the reward's terms, `failures` counts of completions that the reward failed on.
    """
    result: dict[str, Any] = {}
    for name in ESTIMATES:
        mean, low, high = (row.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
        result[name] = None if mean is None else {"mean": mean, "low": low, "high": high}
    result |= {name: row.get(f"eval/{name}") for name in (*NUMBERS, "answer_tokens")}
    return result | {kind: _under(row, f"eval/{kind}/") for kind in ("terms", "failures")}


def curve(rows: Iterable[Row], after: Row, learned: Row, budget: int) -> list[dict[str, Any]]:
    """The evaluations of a run in order.

    Args:
        rows: of metrics.jsonl. after: `eval/...` of the evaluation after learning. learned: `learning/...` at the end.
        budget: episodes. An agent that learns nothing, or stopped by itself, has its last point there.
    """
    points = [_point(row, row["episode"], row) for row in rows if row.get("eval/reward") is not None]
    if not points or points[-1]["episode"] < budget:
        points.append(_point(after, budget, learned))
    return points


def curve_seconds(rows: Iterable[Row], learned: Row, budget: int) -> list[float]:
    """Wall seconds of learning at every point of `curve`."""
    rows = [row for row in rows if row.get("eval/reward") is not None]
    seconds = [float(row.get("learning/seconds", 0.0)) for row in rows]
    at_the_end = rows and rows[-1]["episode"] >= budget
    return seconds if at_the_end else [*seconds, float(learned["learning/seconds"])]


def crossing(values: Sequence[float | None], level: float) -> tuple[int, int, float] | None:
    """Where a curve first reaches a level.

    Args:
        values: of its points; None where one is not known, which is passed over.
    Returns: two points i <= j and the share of the way from i to j; None where it never does.
    """
    before: int | None = None
    for place, value in enumerate(values):
        if value is None:
            continue
        if value >= level:
            if before is None:
                return place, place, 0.0
            low = values[before]
            assert low is not None
            return before, place, (level - low) / (value - low)
        before = place
    return None


def between(values: Sequence[float], where: tuple[int, int, float] | None) -> float | None:
    """The value at a crossing, linear between its two points; None where there is none."""
    if where is None:
        return None
    first, second, share = where
    return values[first] + share * (values[second] - values[first])


def crossings(points: Sequence[Row]) -> dict[str, dict[str, float | None] | None]:
    """Episodes and tokens to 0.5 and to 0.9 of optimality; None for never."""
    values = [point["optimality"] for point in points]
    found: dict[str, dict[str, float | None] | None] = {}
    for name, level in LEVELS.items():
        where = crossing(values, level)
        places = {"episodes": "episode", "tokens": "tokens"}
        found[name] = where and {
            key: between([float(point[at]) for point in points], where) for key, at in places.items()
        }
    return found


def side_by_side(before: Sequence[Row], after: Sequence[Row]) -> list[dict[str, Any]]:
    """Answers to the same prompts. Args: rows of samples of two evaluations, in the same order."""
    return [
        {"prompt": first["prompt"], "before": _answer(first), "after": _answer(last)}
        for first, last in zip(before, after, strict=True)
    ]


def _answer(row: Row) -> dict[str, Any]:
    return {name: row.get(name) for name in _ANSWER}


def _point(row: Row, episode: int, learned: Row) -> dict[str, Any]:
    place = {"episode": episode, "tokens": learned.get("learning/tokens", 0)}
    return place | {name: row.get(f"eval/{name}") for name in _POINT}


def _under(row: Row, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
