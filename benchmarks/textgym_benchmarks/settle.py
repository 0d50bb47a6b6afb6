"""J* of a suite's own tasks, once their cells are done: sampled from the reference and from what they trained."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from textgym_agents.measures import optimum_summary
from textgym_agents.optima import proposals_of
from textgym_agents.registry import load_agent, make_env

from textgym.bootstrap import RESAMPLES, Floats
from textgym.files import make_folder, plain, write_json
from textgym.importance import draw_samples, read_samples, write_samples
from textgym.optima import WELL_KNOWN, Optimum, estimated, optimality_of
from textgym.references import make_reference
from textgym_benchmarks.measures import LEVELS, between, crossing, crossings
from textgym_benchmarks.suite import Cell, canonical
from textgym_benchmarks.suite_folder import cell_folder, cell_result, hold

MOST = 4
"""Trained policies that are sampled beside the reference: those with the greatest J."""


@dataclass(frozen=True)
class _Done:
    """A finished cell: its folder and its result."""

    cell: Cell
    folder: Path
    result: dict[str, Any]

    @property
    def objective(self) -> float:
        """J after learning; the least number where it has none."""
        found = self.result["measures"]["after"]["objective"]
        return float("-inf") if found is None else float(found["mean"])


def settle(folder: Path, cells: Sequence[Cell], split: str, save: bool) -> list[str]:
    """Work J* out anew where the reference's own completions do not tell it, and score the finished cells on it.

    Args:
        folder: of the suite. cells: its cells. split: whose prompts they are measured on.
        save: keep the checkpoints that were kept for this.
    Returns: a line for each task that was settled.
    """
    said = []
    for key, done in _unsettled(folder, cells).items():
        optimum, count = _work_out(_kept(folder, key), done, split)
        for each in done:
            measures = rescored(each.result["measures"], optimum)
            result = each.result | {"measures": measures, "timing": _timed(each.result["timing"], measures)}
            with hold(each.folder, wait=True):
                write_json(each.folder / "result.json", plain(result))
            if not save:
                shutil.rmtree(each.folder / "run" / "checkpoint", ignore_errors=True)
        said.append(f"{done[0].cell.id}: {optimum}, with {count} trained policies")
    return said


def rescored(measures: Mapping[str, Any], optimum: Optimum) -> dict[str, Any]:
    """Return the measures of a cell with every optimality taken from its J and another optimum.

    The interval takes the error of each J as normal, of the size that its own interval tells.
    """
    curve = [dict(point) for point in measures["curve"]]
    for point in curve:
        point |= _scored(point["objective"], point.get("objective_low"), point.get("objective_high"), optimum)
    sides = {side: dict(measures[side]) for side in ("before", "after")}
    for side in sides.values():
        worth = side["objective"] or {}
        found = _scored(worth.get("mean"), worth.get("low"), worth.get("high"), optimum)
        ends = {"mean": "optimality", "low": "optimality_low", "high": "optimality_high"}
        side["optimality"] = (
            None if found["optimality"] is None else {name: found[column] for name, column in ends.items()}
        )
    return dict(measures) | sides | {"curve": curve, "optimum": optimum_summary(optimum), **crossings(curve)}


def _timed(timing: Mapping[str, Any], measures: Mapping[str, Any]) -> dict[str, Any]:
    """The timing of a cell with the seconds to each level taken from its new scores."""
    seconds, scores = timing["curve_seconds"], [point["optimality"] for point in measures["curve"]]
    places = {f"seconds_{name}": crossing(scores, level) for name, level in LEVELS.items()}
    return dict(timing) | {name: between(seconds, where) for name, where in places.items()}


def _scored(
    objective: float | None, low: float | None, high: float | None, optimum: Optimum
) -> dict[str, float | None]:
    found = None
    if objective is not None:
        found = optimality_of(objective, objective + _spread(low, high), optimum)
    if found is None:
        return {"optimality": None, "optimality_low": None, "optimality_high": None}
    return {"optimality": found.mean, "optimality_low": found.low, "optimality_high": found.high}


def _spread(low: float | None, high: float | None) -> Floats:
    """Normal errors (R,) with the width of a 95% interval, in a fixed random order."""
    if low is None or high is None:
        return np.zeros(RESAMPLES)
    normal = NormalDist(0.0, max((high - low) / (2 * NormalDist().inv_cdf(0.975)), 1e-300))
    errors = [normal.inv_cdf((place + 0.5) / RESAMPLES) for place in range(RESAMPLES)]
    return np.random.default_rng(6).permutation(np.array(errors))


def _unsettled(folder: Path, cells: Sequence[Cell]) -> dict[str, list[_Done]]:
    """The finished cells whose optimum was sampled from the reference alone, and from too little, by their task."""
    groups: dict[str, list[_Done]] = {}
    for cell in cells:
        result = cell_result(cell_folder(folder, cell))
        if result is None or result["status"] != "done":
            continue
        optimum = result["measures"]["optimum"]
        few = optimum["value"] is None or (optimum["effective_samples"] or 0) < WELL_KNOWN
        own = bool(cell.config.get("model"))  # a reference of its own, which others do not share
        if optimum.get("policies") == 1 and not optimum["committed"] and few and not own:
            key = canonical({"id": cell.id, "reward": cell.reward, "env": dict(cell.env)})
            groups.setdefault(key, []).append(_Done(cell, cell_folder(folder, cell), result))
    return {key: done for key, done in groups.items() if any(_loadable(done)) or _kept(folder, key).exists()}


def _kept(folder: Path, key: str) -> Path:
    """Where the samples of a task are that was settled: cells that end later are scored on them too."""
    return folder / "optima" / f"settled.{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _loadable(done: Sequence[_Done]) -> Iterator[_Done]:
    return (each for each in done if (each.folder / "run" / "checkpoint").is_dir())


def _work_out(path: Path, done: Sequence[_Done], split: str) -> tuple[Optimum, int]:
    cell = done[0].cell
    options = dict(cell.env) | ({} if cell.reward is None else {"reward": cell.reward})
    env = make_env(cell.id, 1, **options)
    task = env.unwrapped.task
    if path.exists():
        samples, _ = read_samples(path)
        return estimated(samples, task.beta, split), samples.policies - 1
    ranked = sorted(_loadable(done), key=lambda each: -each.objective)
    agents = [load_agent(each.folder / "run", env, each.cell.agent) for each in ranked]
    chosen = [agent for agent in agents if proposals_of(agent, task)][:MOST]
    samples = draw_samples(task, make_reference(task), chosen, split=split, each=256)
    make_folder(path.parent)
    write_samples(samples, path, {"cell": cell.to_json()})
    return estimated(samples, task.beta, split), len(chosen)
