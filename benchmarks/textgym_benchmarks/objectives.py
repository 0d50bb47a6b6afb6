"""Objectives of papers on the diagnostics, each with as many trials as the others.

    python -m textgym_benchmarks.objectives --out runs/objectives
    python -m textgym_benchmarks.objectives --out runs/objectives --table

Every objective runs with the same changes of its settings on the split "tune"; the change with the best mean optimality
over all tasks then runs with fresh seeds. The first line runs what has no result yet; the second prints what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import tyro
from rich.console import Console
from textgym_agents.registry import agent_class, make_config

from textgym.checks import Floats, JsonObject
from textgym.commands.console import folded, number, script, table
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.statistics import leads
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suites import ALGORITHMS, DIAGNOSTICS, LONG, rows
from textgym_benchmarks.summaries.grid import at

COMPARED: Final = ("lm-ppo", "rloo", "grpo")
"""The best of these is the baseline of all comparisons."""
TRIALS: Final[Sequence[JsonObject]] = (
    {},
    {"batch": 64, "learning_rate": 1e-3},
    {"batch": 64},
    {"batch": 64, "learning_rate": 1e-2},
)
"""Changes of every objective's settings: smaller batches, and with them a third and three times the learning rate."""
_TRIAL_SEED: Final = 1000


def trial_label(name: str, place: int) -> str:
    """Return the name of an objective's trial in tables."""
    return f"{name} {place}"


def trials(tasks: Sequence[str]) -> Suite:
    """Return the suite of all trials, one seed."""
    cells = [
        replace(cell, seed=_TRIAL_SEED)
        for name in ALGORITHMS
        for place in range(len(TRIALS))
        for cell in _cells(name, place, tasks, 1, trial_label(name, place))
    ]
    return Suite("objectives-trials", tuple(cells), "The same trials of every objective.", _evaluation("tune"))


def finals(chosen: Mapping[str, int], tasks: Sequence[str], seeds: int) -> Suite:
    """Return the suite of every objective with its chosen trial. Args: chosen: objective -> place in `TRIALS`."""
    cells = [cell for name, place in chosen.items() for cell in _cells(name, place, tasks, seeds, name)]
    return Suite("objectives", tuple(cells), "Every objective with its best settings.", _evaluation("eval"))


def _evaluation(split: Literal["eval", "tune"]) -> Evaluation:
    return Evaluation(points=1, per_prompt=2, final_per_prompt=8, optimum_per_prompt=0, split=split)


def _cells(name: str, place: int, tasks: Sequence[str], seeds: int, label: str) -> Iterable[Cell]:
    agent, own = ALGORITHMS[name]
    known = make_config(agent_class(agent), {})
    config = {**own, **{key: value for key, value in TRIALS[place].items() if hasattr(known, key)}}
    for some, budget in (([t for t in tasks if t not in LONG], 4096), ([t for t in tasks if t in LONG], 16_384)):
        yield from rows(some, [agent], budget, seeds, config, label)


def scores(results: Iterable[Result]) -> tuple[list[str], dict[str, Floats]]:
    """Return the T tasks that have an optimality, and label -> that after learning (S, T); seeds with all T only."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for each in results:
        value = None if each.measures is None else at(each.measures, "after", "optimality", "mean")
        if value is not None:
            found.setdefault(each.cell.name, {}).setdefault(each.cell.seed, {})[each.cell.task] = value
    tasks = sorted({task for by_seed in found.values() for row in by_seed.values() for task in row})
    whole = {
        label: [[row[task] for task in tasks] for row in by_seed.values() if len(row) == len(tasks)]
        for label, by_seed in found.items()
    }
    return tasks, {label: np.array(each) for label, each in whole.items() if each}


def choose(found: Mapping[str, Floats]) -> dict[str, int]:
    """Return for every objective the trial with the best mean optimality, of those that have run on every task."""
    chosen: dict[str, int] = {}
    for name in ALGORITHMS:
        means = {
            place: found[label].mean() for place in range(len(TRIALS)) if (label := trial_label(name, place)) in found
        }
        if means:
            chosen[name] = max(means, key=lambda place: means[place])
    return chosen


def print_scores(found: Mapping[str, Floats], chosen: Mapping[str, int], tasks: Sequence[str]) -> None:
    """Print the mean optimality of every objective, best first, and how far the best of `COMPARED` is ahead of it.

    Without one of these it is the best of all. Args: found, tasks: see `scores`. chosen: see `choose`.
    """
    means = {name: each.mean(1, keepdims=True) for name, each in found.items()}
    if not means:
        print("no objective has been run on all tasks yet")
        return
    best = max([name for name in COMPARED if name in means] or means, key=lambda name: float(means[name].mean()))
    heads = (folded(task.removesuffix("-v0"), justify="right") for task in tasks)
    shown = table("", number("mean"), folded(f"{best} ahead by", justify="right"), "settings", *heads)
    for name in sorted(means, key=lambda name: -float(means[name].mean())):
        ahead = "-"
        if name != best and min(len(means[name]), len(means[best])) > 1:
            lead, low, high = leads(means[best], means[name])[:, 0]
            ahead = f"{lead:+.3f} [{low:+.3f}, {high:+.3f}]"
        changes = ", ".join(f"{key} {value}" for key, value in TRIALS[chosen[name]].items()) or "defaults"
        columns = (f"{value:.2f}" for value in found[name].mean(0))
        shown.add_row(name, f"{means[name].mean():.3f}", ahead, changes, *columns)
    Console(highlight=False).print(shown)


def print_missing(results: Sequence[Result], found: Mapping[str, Floats]) -> None:
    """Print of which objectives seeds are left out of `scores`, or all."""
    for name in dict.fromkeys(each.cell.name for each in results):
        asked, there = {each.cell.seed for each in results if each.cell.name == name}, len(found.get(name, ()))
        if there < len(asked):
            print(f"{name}: {there} of {len(asked)} seeds; the others have a task without a result")


@dataclass(frozen=True)
class ObjectivesFlags:
    """Compare objectives of papers on the diagnostics, with an equal number of trials, or print the results."""

    out: Path = Path("runs/objectives")
    """Folder of the two suites."""
    tasks: tuple[str, ...] = DIAGNOSTICS
    """Names of shipped tasks."""
    seeds: int = 5
    """Number of seeds for the chosen settings."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    table: bool = False
    """Print the existing results and run nothing."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(ObjectivesFlags)
    if not flags.table:
        run_suite(trials(flags.tasks), flags.out / "trials", workers=flags.workers)
    chosen = choose(scores(load_results(flags.out / "trials"))[1])
    if not flags.table:
        run_suite(finals(chosen, flags.tasks, flags.seeds), flags.out / "finals", workers=flags.workers)
    results = load_results(flags.out / "finals")
    measured, found = scores(results)
    print_scores(found, chosen, measured)
    print_missing(results, found)


if __name__ == "__main__":
    script(main)
