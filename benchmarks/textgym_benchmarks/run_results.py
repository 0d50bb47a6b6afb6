"""The run folder of `textgym train` as a result of a cell, so that the report can show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textgym_agents.runs import RunFolder

from textgym.files import read_json, read_lines, reading
from textgym_benchmarks.measures import (
    LEVELS,
    Row,
    between,
    crossing,
    crossings,
    curve,
    curve_seconds,
    side_by_side,
    snapshot,
)
from textgym_benchmarks.results_format import FORMAT, check_timing
from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suite_folder import family_of


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
