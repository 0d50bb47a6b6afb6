"""The run folder of `textgym train` as a result of a cell, so that the report can show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textgym_agents.runs import RunFolder
from textgym_agents.storage import read_lines

from textgym_benchmarks.measures import crossings, curve, side_by_side, snapshot
from textgym_benchmarks.results_format import FORMAT, read_object
from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suite_folder import family_of


def read_run(path: Path) -> dict[str, Any]:
    """A run's folder as the values of a result.json; "missing" if the run is not finished.

    Raises: ValueError naming the file and what is wrong with it.
    """
    config = read_object(path / "config.json")
    cell = _cell(path, config)
    versions = config.get("versions", {})
    data = {"format": FORMAT, "cell": cell.to_json(), "family": family_of(cell.id), "status": "missing"}
    data |= {"error": None, "measures": None, "timing": None, "versions": versions}
    data["machine"] = versions.get("machine", "") if isinstance(versions, Mapping) else ""
    if not (path / "result.json").exists():
        return data
    finished = read_object(path / "result.json")
    try:
        measures, timing = _measures(RunFolder(path), finished)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no run of `textgym train` ({type(error).__name__}: {error})") from error
    return data | {"status": "done", "measures": measures, "timing": timing}


def _cell(path: Path, config: Mapping[str, Any]) -> Cell:
    try:
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
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'}: no run's settings ({error})") from error


def _measures(folder: RunFolder, finished: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = folder.metrics()
    learned = {name: value for name, value in rows[-1].items() if name.startswith("learning/")}
    points = curve(rows, finished["after"], {"learning/tokens": 0} | learned, finished["episodes"])
    optimum = finished["optimum"]
    if optimum is not None:
        value = optimum["value"]
        optimum = {**optimum, "exact": value["low"] == value["mean"] == value["high"]}
    measures = {
        "before": snapshot(finished["before"]),
        "after": snapshot(finished["after"]),
        "optimum": optimum,
        "curve": points,
        **crossings(points),
        "episodes": finished["episodes"],
        "tokens": points[-1]["tokens"],
        "iterations": finished["iterations"],
        "samples": _samples(folder),
    }
    return measures, {"seconds": finished["seconds"]}


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
