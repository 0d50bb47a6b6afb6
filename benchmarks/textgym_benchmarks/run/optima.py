"""The optima of a suite's tasks: settled after the runs, and committed for the built-in ones.

    textgym bench --suite core --agents lm-ppo rloo --keep-checkpoints --out runs/proposals
    python -m textgym_benchmarks.run.optima Format Json Keywords --suite runs/proposals

The script samples the reference and the last policies of a suite's cells, and writes what they wrote, with the task's
fingerprint, to where `textgym.optimum.optimum_of` looks for it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from textgym_agents.config import versions
from textgym_agents.registry import load_agent, make_env
from textgym_agents.training.measures import optimum_summary, proposals_of
from tyro.conf import Positional

from textgym.catalog import task_entry
from textgym.checks import Floats
from textgym.estimates import RESAMPLES, Samples, draw_samples, read_samples, write_samples
from textgym.files import make_folder, plain, write_json
from textgym.lm.reference import Reference
from textgym.optimum import (
    WELL_KNOWN,
    Optimum,
    estimated,
    fingerprint,
    optimality_of,
    optimum_of,
    pays_the_same,
    samples_path,
    solvable,
)
from textgym.task import Task, make_reference
from textgym_benchmarks.results.rows import LEVELS, between, crossing, crossings
from textgym_benchmarks.results.store import load_results
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


def shared_optimum(
    folder: Path,
    key: dict[str, Any],
    task: Task,
    reference: Reference | None,
    beta: float,
    per_prompt: int,
    split: str = "eval",
) -> Optimum:
    """Return J* on a split's prompts: committed or solved, or from samples that all cells of a folder share.

    It depends on the arguments and on TextGym's version alone: workers that do so at the same time write the same file.

    Args:
        folder: of one file for each sampled optimum. key: says which task and reference it is, JSON values.
        reference: None for the task's own.
        per_prompt: completions of the reference, where J* is estimated.
    """
    # Another version may have another task of this name.
    key = key | {"per_prompt": per_prompt, "textgym": versions().get("textgym")}
    key = key | fingerprint(task, split)
    name = f"{task.name.lower()}.{hashlib.sha256(canonical(key).encode()).hexdigest()[:16]}.safetensors"
    path = folder / name
    if path.exists() and beta > 0:
        samples, there = read_samples(path)
        if there != key:
            raise ValueError(f"{path}: holds the optimum of {there!r:.200}, allowed is {key!r:.200}")
        if not pays_the_same(task, split, samples):
            raise ValueError(f"{path}: its completions earn something else now; allowed is the same reward")
        return estimated(samples, beta, split)
    optimum = optimum_of(task, (), reference, beta=beta, split=split, per_prompt=per_prompt)
    if optimum.samples is not None and not optimum.committed:
        make_folder(folder)
        write_samples(optimum.samples, path, key)
    return optimum


@dataclass(frozen=True)
class Commit:
    """Commit samples of shipped tasks, from which J* is computed at any beta."""

    tasks: Positional[tuple[str, ...]]
    """Names of tasks, as Format."""
    suite: Path | None = None
    """Folder of a suite that was run with --keep-checkpoints: the last policies of its cells are proposals."""
    proposals: tuple[Path, ...] = ()
    """Folders of more trained policies: runs or checkpoints; of one task, if several are named."""
    most: int = 4
    """The most proposals that are sampled, those with the greatest J first."""
    samples: int = 1024
    """Completions a prompt, of all policies together."""
    split: Annotated[str, tyro.conf.arg(metavar="SPLIT")] = "eval"
    """Which prompts."""
    seed: int = 0
    """Of the sampling."""


def commit(settings: Commit, name: str) -> tuple[Samples, Optimum]:
    """Sample one task's reference and proposals and write the samples; the optimum at the task's own beta.

    Raises: ValueError for a task without prompts or a reward of its own, or one that is solved.
    """
    env = make_env(task_entry(name).id, 1)
    task = env.unwrapped.task
    if task_entry(name).family == "text" or solvable(task, settings.split):
        raise ValueError(
            f"tasks: {name!r} is the caller's own or solved; allowed are shipped tasks that are sampled"
        )
    found = [load_agent(folder, env) for folder in _folders(settings, task_entry(name).id)]
    each = -(-settings.samples // (1 + len(found)))
    samples = draw_samples(
        task, make_reference(task), found, split=settings.split, each=each, seed=settings.seed
    )
    path = samples_path(task, settings.split)
    make_folder(path.parent)
    write_samples(samples, path, fingerprint(task, settings.split))
    return samples, estimated(samples, task.beta, settings.split)


def _folders(settings: Commit, env_id: str) -> list[Path]:
    """The runs of the best proposals: one for each cell of the task, those with the greatest J first."""
    ranked: list[tuple[float, Path]] = []
    if settings.suite is not None:
        for result in load_results(settings.suite):
            cell, run = result.cell, cell_folder(settings.suite, result.cell) / "run"
            own = cell.id == env_id and not cell.env and cell.reward is None
            if own and result.measures and (run / "checkpoint").is_dir():
                after = result.measures["after"]["objective"]
                ranked += [] if after is None else [(after["mean"], run)]
    best = [run for _, run in sorted(ranked, key=lambda pair: -pair[0])]
    return [*settings.proposals, *best][: settings.most]


def main() -> None:
    """Commit and print."""
    settings = tyro.cli(Commit, description=__doc__)
    table = Table("task", "policies", "samples a prompt", "effective", "J of the reference", "J*")
    for name in settings.tasks:
        samples, optimum = commit(settings, name)
        row = [name, str(samples.policies), str(samples.returns.shape[1]), f"{optimum.effective_samples:.0f}"]
        table.add_row(*row, str(optimum.reference), str(optimum.value or optimum.unknown))
    Console().print(table)


if __name__ == "__main__":
    main()
