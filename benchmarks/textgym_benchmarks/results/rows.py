"""A run folder as a row of results, and the numbers that rows have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from textgym_agents.training.folder import RunFolder
from textgym_agents.training.measures import ESTIMATES, NUMBERS

from textgym.files import read_json, read_lines, reading
from textgym_benchmarks.results.format import FORMAT, check_timing
from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suite_folder import family_of

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
        row: with `eval/NAME`, as `textgym_agents.training.measures.evaluation_row` makes them.
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


def read_run(path: Path) -> dict[str, Any]:
    """A run's folder as the values of a result.json; "missing" if the run is not finished.

    Raises: ValueError naming the file and what is wrong with it.
    """
    config = read_json(path / "config.json")
    cell = _cell(path, config)
    versions = config.get("versions", {})
    data = {"format": FORMAT, "cell": cell.to_json(), "family": family_of(cell.id), "status": "missing"}
    data |= {"error": None, "measures": None, "timing": None, "versions": versions}
    data["machine"] = versions.get("machine", "") if isinstance(versions, Mapping) else ""
    if not (path / "result.json").exists():
        return data
    finished = read_json(path / "result.json")
    with reading(path, "the run of `textgym train`"):
        measures, timing = _measures(RunFolder(path), finished)
    return data | {"status": "done", "measures": measures, "timing": timing}


def _cell(path: Path, config: Mapping[str, Any]) -> Cell:
    with reading(path / "config.json", "the run's settings"):
        env, settings = dict(config["env"]), dict(config["config"])
        return Cell(
            id=config["id"],
            agent=config["agent"],
            episodes=config["episodes"],
            seed=settings.pop("seed", 0),
            reward=env.pop("reward", None),
            env=env,
            config=settings,
        )


def _measures(folder: RunFolder, finished: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = folder.metrics()
    learned = {name: value for name, value in rows[-1].items() if name.startswith("learning/")}
    episodes = finished["episodes"]
    points = curve(rows, finished["after"], learned, episodes)
    measures = {
        "before": snapshot(finished["before"]),
        "after": snapshot(finished["after"]),
        "optimum": finished["optimum"],
        "curve": points,
        **crossings(points),
        "episodes": episodes,
        "tokens": learned.get("learning/tokens", 0),
        "iterations": finished["iterations"],
        "samples": _samples(folder),
    }
    return measures, _timing(finished, rows, points, learned)


def _timing(finished: Row, rows: Sequence[Row], points: Sequence[Row], learned: Row) -> dict[str, Any]:
    """What the run has logged of its time; what it has not is not there."""
    timing = {"seconds": finished["seconds"], "cpu_seconds": rows[-1].get("cpu_seconds")}
    timing |= {f"learning_{name}": learned.get(f"learning/{name}") for name in ("seconds", "cpu_seconds")}
    check_timing(timing)
    spent = timing["learning_seconds"]
    if spent is not None:
        seconds = curve_seconds(rows, learned, finished["episodes"])
        scores = [point["optimality"] for point in points]
        timing["tokens_per_second"] = learned.get("learning/tokens", 0) / spent if spent else None
        timing |= {
            f"seconds_{name}": between(seconds, crossing(scores, level)) for name, level in LEVELS.items()
        }
        timing["curve_seconds"] = seconds
    return {name: value for name, value in timing.items() if value is not None}


def _samples(folder: RunFolder) -> list[dict[str, Any]]:
    """The answers of the first and the last evaluation to the same prompts, side by side."""
    rows = read_lines(folder.path / "samples.jsonl")
    latest = max((row["iteration"] for row in rows), default=0)
    first = {row["prompt"]: row for row in reversed(rows) if row["iteration"] == 0}
    last = {row["prompt"]: row for row in reversed(rows) if row["iteration"] == latest}
    both = [
        prompt
        for prompt in dict.fromkeys(row["prompt"] for row in rows)
        if prompt in first and prompt in last
    ]
    return side_by_side([first[prompt] for prompt in both], [last[prompt] for prompt in both])
