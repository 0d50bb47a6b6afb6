"""The rows of a run as the measures of a result, and a run folder as a result."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from textgym_agents.training.curriculum import CurriculumSettings
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.measures import ESTIMATES, NUMBERS

from textgym.checks import Floats, JsonObject
from textgym.estimates import RESAMPLES, Estimate
from textgym.files import read_json, read_lines, reading
from textgym.optimum import Optimum, optimality_of
from textgym_benchmarks.results.format import FORMAT
from textgym_benchmarks.suite import Cell, parted, reward_label
from textgym_benchmarks.suite_folder import family_of

Row = Mapping[str, Any]
LEVELS = {"to_half": 0.5, "to_nine_tenths": 0.9}
_POINT = (
    *("optimality", "optimality_low", "optimality_high", "reward", "gold", "kl"),
    *("objective", "objective_low", "objective_high"),
)
_WHERE_KNOWN = tuple(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high"))
_ANSWER = ("completion", "reward", "terms", "gold")


def snapshot(row: Row) -> JsonObject:
    """Return one evaluation.

    Args:
        row: with `eval/NAME`, as `textgym_agents.training.measures.evaluation_row` makes them.
    Returns: {"mean", "low", "high"} of every estimate and the number of every other measure; None for what there is
        not. `terms` are means of the reward's terms, `failures` counts of completions that the reward failed on.
    """
    result: JsonObject = {}
    for name in ESTIMATES:
        mean, low, high = (row.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
        result[name] = None if mean is None else {"mean": mean, "low": low, "high": high}
    result |= {name: row.get(f"eval/{name}") for name in (*NUMBERS, "answer_tokens")}
    for kind in ("terms", "failures"):
        prefix = f"eval/{kind}/"
        result[kind] = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    return result


def curve(rows: Iterable[Row], after: Row, learned: Row, budget: int) -> list[JsonObject]:
    """Return the evaluations of a run in order.

    Args:
        rows: of metrics.jsonl. after: `eval/...` of the evaluation after learning. learned: `learning/...` at the end.
        budget: episodes. An agent that learns nothing, or stopped by itself, has its last point there.
    """

    def point(row: Row, episode: int, spent: Row) -> JsonObject:
        place = {"episode": episode, "tokens": spent.get("learning/tokens", 0)}
        place |= {name: row.get(f"eval/{name}") for name in _POINT}
        return place | {name: value for name in _WHERE_KNOWN if (value := row.get(f"eval/{name}")) is not None}

    points = [point(row, row["episode"], row) for row in rows if row.get("eval/reward") is not None]
    if not points or points[-1]["episode"] < budget:
        points.append(point(after, budget, learned))
    return points


def curve_seconds(rows: Iterable[Row], learned: Row, budget: int, clock: str = "seconds") -> list[float]:
    """Return the seconds of learning at every point of `curve`. Args: clock: "seconds", of the wall; "cpu_seconds"."""
    rows = [row for row in rows if row.get("eval/reward") is not None]
    seconds = [float(row.get(f"learning/{clock}", 0.0)) for row in rows]
    if not rows or rows[-1]["episode"] < budget:
        seconds.append(float(learned[f"learning/{clock}"]))
    return seconds


def crossing(values: Sequence[float | None], level: float) -> tuple[int, int, float] | None:
    """Return where a curve first reaches a level.

    Args:
        values: of its points; None where one is not known, which is passed over.
    Returns: two points i <= j and the share of the way from i to j; None where it never does, or did at points before
        the first known one.
    """
    before: tuple[int, float] | None = None
    for place, value in enumerate(values):
        if value is None:
            continue
        if value >= level:
            if before is None:
                return None if place else (0, 0, 0.0)
            return before[0], place, (level - before[1]) / (value - before[1])
        before = place, value
    return None


def between(values: Sequence[float], where: tuple[int, int, float] | None) -> float | None:
    """Return the value at a crossing, linear between its two points; None where there is none."""
    if where is None:
        return None
    first, second, share = where
    return values[first] + share * (values[second] - values[first])


def settled(values: Sequence[float], scores: Sequence[float], level: float) -> float | None:
    """Return the value at which a curve reaches a level: at the first of two points in a row that are there.

    Args:
        values, scores: (P,) at its points.
    Returns: linear between that point and the one before; None where no two in a row are there.
    """
    for place in range(len(scores) - 1):
        if min(scores[place : place + 2]) >= level:
            before = max(place - 1, 0)
            gain = scores[place] - scores[before]
            return between(values, (before, place, (level - scores[before]) / gain if gain else 0.0))
    return None


def crossings(points: Sequence[Row]) -> dict[str, dict[str, float | None] | None]:
    """Return episodes and tokens to 0.5 and to 0.9 of optimality; None for never."""
    episodes, tokens = ([float(point[name]) for point in points] for name in ("episode", "tokens"))
    places = {name: crossing([point["optimality"] for point in points], level) for name, level in LEVELS.items()}
    return {
        name: where and {"episodes": between(episodes, where), "tokens": between(tokens, where)}
        for name, where in places.items()
    }


def rescored(measures: JsonObject, optimum: Optimum, missing: bool = False) -> JsonObject:
    """Return the measures of a cell with every optimality, and where it reaches a level, taken from J and an optimum.

    The error of each J is taken as normal, with the standard deviation that its own interval implies.

    Args: missing: only those that are not known; the others stay.
    """
    found = deepcopy(measures)
    for point in found["curve"]:
        if missing and point["optimality"] is not None:
            continue
        ends = (point["objective"], point.get("objective_low"), point.get("objective_high"))
        scores = _scored(*ends, optimum)
        point |= zip(("optimality", "optimality_low", "optimality_high"), scores, strict=True)
    for side in ("before", "after"):
        if missing and found[side]["optimality"] is not None:
            continue
        objective = found[side]["objective"] or {}
        scores = _scored(objective.get("mean"), objective.get("low"), objective.get("high"), optimum)
        interval = dict(zip(("mean", "low", "high"), scores, strict=True))
        found[side]["optimality"] = None if interval["mean"] is None else interval
    return found | crossings(found["curve"])


def _scored(
    objective: float | None, low: float | None, high: float | None, optimum: Optimum
) -> tuple[float | None, float | None, float | None]:
    """Return the optimality of a J and the ends of its interval; those are None where those of J are."""
    found = None
    if objective is not None:
        found = optimality_of(objective, objective + _errors(low, high), optimum)
    if found is None:
        return None, None, None
    return (found.mean, None, None) if low is None or high is None else (found.mean, found.low, found.high)


def _errors(low: float | None, high: float | None) -> Floats:
    """Return normal errors (R,) with the width of a 95% interval, in a fixed random order."""
    if low is None or high is None:
        return np.zeros(RESAMPLES)
    normal = NormalDist(0.0, max((high - low) / (2 * NormalDist().inv_cdf(0.975)), 1e-300))
    errors = [normal.inv_cdf((place + 0.5) / RESAMPLES) for place in range(RESAMPLES)]
    return np.random.default_rng(6).permutation(np.array(errors))


def seconds_to_levels(seconds: Sequence[float], points: Sequence[Row]) -> dict[str, float | None]:
    """Return the seconds of learning after which a curve reaches each level of optimality; None for never.

    Args: seconds: at every point of the curve.
    """
    scores = [point["optimality"] for point in points]
    return {f"seconds_{name}": between(seconds, crossing(scores, level)) for name, level in LEVELS.items()}


def run_timing(rows: Iterable[Row], learned: Row, budget: int, points: Sequence[Row]) -> JsonObject:
    """Return what learning took; None for what the run has not logged.

    Args:
        rows, learned, budget: as `curve` takes them. points: as it returns them.
    """
    spent = learned.get("learning/seconds")
    timing: JsonObject = {f"learning_{name}": learned.get(f"learning/{name}") for name in ("seconds", "cpu_seconds")}
    if spent is not None:
        seconds = curve_seconds(rows, learned, budget)
        timing |= {"tokens_per_second": learned.get("learning/tokens", 0) / spent if spent else None}
        timing |= {**seconds_to_levels(seconds, points), "curve_seconds": seconds}
        timing["curve_cpu_seconds"] = curve_seconds(rows, learned, budget, "cpu_seconds")
    return timing


def side_by_side(before: Sequence[Row], after: Sequence[Row]) -> list[JsonObject]:
    """Return the answers to the same prompts. Args: rows of samples of two evaluations, in the same order."""
    return [
        {"prompt": first["prompt"]}
        | {side: {name: row.get(name) for name in _ANSWER} for side, row in (("before", first), ("after", last))}
        for first, last in zip(before, after, strict=True)
    ]


def read_run(path: Path) -> JsonObject:
    """Return a run's folder as the values of a result.json; "missing", with `so_far`, if the run is not finished.

    Raises: ValueError naming the file and what is wrong with it, or for a run of another format.
    """
    config = RunFolder(path).config()
    with reading(path / "config.json", "the run's settings"):
        env, settings = dict(config["env"]), dict(config["config"])
        usual = asdict(CurriculumSettings())
        settings |= {name: value for name, value in parted(config)[1].items() if value != usual[name]}
        reward = env.pop("reward", None)
        cell = Cell(
            id=config["id"],
            agent=config["agent"],
            episodes=config["episodes"],
            seed=settings.pop("seed", 0),
            reward=reward,
            reward_name=reward_label(reward),
            env=env,
            config=settings,
        )
    versions = config.get("versions", {})
    machine = versions.pop("machine", "") if isinstance(versions, dict) else ""
    data = {"format": FORMAT, "cell": cell.to_json(), "family": family_of(cell.id), "status": "missing"}
    data |= {"error": None, "measures": None, "timing": None, "versions": versions}
    data["machine"] = machine
    if (path / "result.json").exists():
        finished = read_json(path / "result.json")
        with reading(path, "the run of `textgym train`"):
            folder = RunFolder(path)
            measures, timing = _measures(folder, folder.metrics(), finished)
        data |= {"status": "done", "measures": measures, "timing": timing}
    else:
        data["so_far"] = so_far(path) | {"beta": config["config"].get("beta")}
    return data


def so_far(path: Path) -> JsonObject:
    """Return what a run that is not finished has come to, by its folder.

    Returns: its "state", "running" or "interrupted"; the "episodes" that it has learned from; "seconds_left", of
        learning at its mean speed so far, None where nothing tells. From the first evaluation on also what
        `measures` of a result hold; their `after` is the latest evaluation.
    Raises: ValueError naming the file and what is wrong with it.
    """
    folder = RunFolder(path)
    state, budget, rows = folder.state(), folder.config()["episodes"], folder.metrics()
    if state == "finished":  # a cell that was broken off before its own result was written
        state = "interrupted"
    found: JsonObject = {"state": state, "episodes": 0, "seconds_left": None}
    with reading(path, "the run of `textgym train`"):
        evaluated = [row for row in rows if row.get("eval/reward") is not None]
        if evaluated:
            first, last, end = rows[0], evaluated[-1], rows[-1]
            row = {"before": first, "after": last, "optimum": None, "episodes": last["episode"]}
            found |= _measures(folder, rows, row | {"iterations": end["iteration"], "seconds": end["seconds"]})[0]
            found["episodes"], learned = end["episode"], end["episode"] - first["episode"]
            if state == "running" and learned > 0:
                speed = (end["seconds"] - first["seconds"]) / learned
                idle = max(time.time() - (path / "metrics.jsonl").stat().st_mtime, 0.0)
                found["seconds_left"] = max(speed * (budget - end["episode"]) - idle, 0.0)
    return found


def _measures(folder: RunFolder, rows: Sequence[Row], finished: Row) -> tuple[JsonObject, JsonObject]:
    learned = {name: value for name, value in rows[-1].items() if name.startswith("learning/")}
    tokens, episodes = learned.get("learning/tokens", 0), finished["episodes"]
    points = curve(rows, finished["after"], learned, episodes)
    measures = {
        "before": snapshot(finished["before"]),
        "after": snapshot(finished["after"]),
        "optimum": finished["optimum"],
        "curve": points,
        **crossings(points),
        "episodes": episodes,
        "tokens": tokens,
        "iterations": finished["iterations"],
        "samples": _samples(read_lines(folder.path / "samples.jsonl")),
    }
    if finished["optimum"]:  # points that were logged before it was worked out have no optimality
        measures = rescored(measures, _ends(finished["optimum"]), missing=True)
    # What the run has not logged of its time is left out.
    timing = {"seconds": finished["seconds"], "cpu_seconds": rows[-1].get("cpu_seconds")}
    timing |= run_timing(rows, learned, episodes, measures["curve"])
    return measures, {name: value for name, value in timing.items() if value is not None}


def _ends(summary: Row) -> Optimum:
    """Return the optimum that `optimum_summary` told of, without an error of its own."""
    value, reference = (found and Estimate(**found) for found in (summary["value"], summary["reference"]))
    known = value is not None and reference is not None
    ends = np.tile([reference.mean, value.mean] if known else [np.nan, np.nan], (RESAMPLES, 1))
    return Optimum(value, reference, summary["beta"], "", ends)


def _samples(rows: Sequence[Row]) -> list[JsonObject]:
    """Return the answers of the first and the last evaluation to the same prompts, side by side."""
    latest = max((row["iteration"] for row in rows), default=0)
    first, last = (
        {row["prompt"]: row for row in reversed(rows) if row["iteration"] == iteration} for iteration in (0, latest)
    )
    both = [prompt for prompt in dict.fromkeys(row["prompt"] for row in rows) if prompt in first and prompt in last]
    return side_by_side([first[prompt] for prompt in both], [last[prompt] for prompt in both])
