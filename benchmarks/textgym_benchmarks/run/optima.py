"""The optima of a suite's tasks: worked out after the runs, and committed for the built-in tasks.

    textgym bench --suite core --agents lm-ppo rloo --keep-checkpoints --out runs/proposals
    python -m textgym_benchmarks.run.optima Format Json Keywords --suite runs/proposals

The script samples the reference and the last policies of a suite's cells, and writes the samples, with the task's
fingerprint, to where `textgym.optimum.optimum_of` looks for them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from textgym_agents.registry import load_agent, make_env
from textgym_agents.training.measures import optimum_summary, proposals_of
from tyro.conf import Positional

from textgym.checks import JsonObject
from textgym.commands.console import script
from textgym.estimates import Samples, draw_samples, read_samples, write_samples
from textgym.files import make_folder, plain, write_json
from textgym.lm.reference import Reference
from textgym.optimum import (
    WELL_KNOWN,
    Optimum,
    estimated,
    fingerprint,
    optimum_of,
    pays_the_same,
    samples_path,
    solvable,
)
from textgym.prompts import HeldOut
from textgym.sources import versions
from textgym.task import Task, make_reference, task_entry
from textgym_benchmarks.results.rows import rescored, seconds_to_levels
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.suite import canonical
from textgym_benchmarks.suite_folder import hold
from textgym_benchmarks.summaries.grid import at

MOST = 4
"""Trained policies that are sampled beside the reference: those with the greatest J."""


def settle(folder: Path, split: HeldOut, save: bool, say: Callable[[str], object] = str) -> list[str]:
    """Work J* out anew where the reference's own completions do not tell it, and score the finished cells on it.

    Args:
        folder: of the suite.
        split: whose prompts its cells are measured on.
        save: keep the checkpoints that were kept for this.
        say: is told of each task before the work.
    Returns: a line for each task that was settled.
    """
    lines = []
    for key, results in _unsettled(folder).items():
        say(f"{results[0].cell.task}: working out J*, with what was trained")
        optimum, count = _work_out(_kept(folder, key), results, split)
        for result in results:
            data = result.to_json()
            data["measures"] = rescored(data["measures"], optimum) | {"optimum": optimum_summary(optimum)}
            seconds = data["timing"]["curve_seconds"]
            data["timing"] |= seconds_to_levels(seconds, data["measures"]["curve"])
            with hold(_run(result).parent, wait=True):
                write_json(_run(result).parent / "result.json", plain(data))
            if not save:
                shutil.rmtree(_run(result) / "checkpoint", ignore_errors=True)
        lines.append(f"{results[0].cell.id}: {optimum}, with {count} trained policies")
    return lines


def _unsettled(folder: Path) -> dict[str, list[Result]]:
    """Return the finished cells, by task, whose optimum was sampled from the reference alone, and too thinly."""
    groups: dict[str, list[Result]] = {}
    for result in load_results(folder):
        if result.measures is None:
            continue
        cell, optimum = result.cell, result.measures["optimum"]
        few = optimum["value"] is None or (optimum["effective_samples"] or 0) < WELL_KNOWN
        own = optimum.get("own", bool(cell.config.get("model")))  # a reference of its own, which others do not share
        if optimum.get("policies") == 1 and not optimum["committed"] and few and not own:
            key = canonical({"id": cell.id, "reward": cell.reward, "env": cell.env})
            groups.setdefault(key, []).append(result)
    return {key: found for key, found in groups.items() if _best(found) or _kept(folder, key).exists()}


def _best(results: Iterable[Result]) -> list[Result]:
    """Return the finished cells whose last policy is kept and has a J, the greatest J first."""
    known = ((at(result.measures, "after", "objective", "mean"), result) for result in results)
    kept = [(mean, each) for mean, each in known if mean is not None and (_run(each) / "checkpoint").is_dir()]
    return [result for _, result in sorted(kept, key=lambda pair: -pair[0])]


def _run(result: Result) -> Path:
    assert result.folder is not None
    return result.folder / "run"


def _kept(folder: Path, key: str) -> Path:
    """Return the file of the samples of a settled task: cells that end later are scored on them too."""
    return folder / "optima" / f"settled.{_digest(key)}.safetensors"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _work_out(path: Path, results: Sequence[Result], split: HeldOut) -> tuple[Optimum, int]:
    """Return J* of the task of some finished cells, and how many of their policies were sampled."""
    cell = results[0].cell
    env = make_env(cell.id, 1, **cell.options)
    task = env.unwrapped.task
    if path.exists():
        samples, _ = read_samples(path)
        return estimated(samples, task.beta, split), samples.policies - 1
    agents = [load_agent(_run(each), env, each.cell.agent) for each in _best(results)]
    chosen = [agent for agent in agents if proposals_of(agent, task)][:MOST]
    samples = draw_samples(task, make_reference(task), chosen, split=split, each=256)
    make_folder(path.parent)
    write_samples(samples, path, {"cell": cell.to_json()})
    return estimated(samples, task.beta, split), len(chosen)


def shared_optimum(
    folder: Path,
    key: JsonObject,
    task: Task,
    reference: Reference | None,
    beta: float,
    per_prompt: int,
    split: HeldOut = "eval",
) -> Optimum:
    """Return J* on a split's prompts: committed or solved, or from samples that all cells of a folder share.

    It depends on the arguments and on TextGym's version alone: workers that do so at the same time write the same file.

    Args:
        folder: of one file for each sampled optimum. key: says which task and reference it is, JSON values.
        reference: None for the task's own.
        per_prompt: completions of the reference, where J* is estimated.
    """
    # Another version may have another task of this name.
    key = key | {"per_prompt": per_prompt, "textgym": versions().get("textgym")} | fingerprint(task, split)
    path = folder / f"{task.name.lower()}.{_digest(canonical(key))}.safetensors"
    if path.exists() and beta > 0:
        samples, stored = read_samples(path)
        if stored != key:
            raise ValueError(f"{path}: holds the optimum of {stored!r:.200}, allowed is {key!r:.200}")
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
    most: int = MOST
    """The most proposals that are sampled, those with the greatest J first."""
    samples: int = 1024
    """Completions a prompt, of all policies together."""
    split: HeldOut = "eval"
    """Which prompts."""
    seed: int = 0
    """Of the sampling."""


def commit(settings: Commit, name: str) -> tuple[Samples, Optimum]:
    """Sample one task's reference and proposals, and write the samples; return them and J* at the task's own beta.

    Raises: ValueError for a task without a gold reward, as one for the caller's own rewards, or one that is solved.
    """
    entry = task_entry(name)
    env = make_env(entry.id, 1)
    task = env.unwrapped.task
    if task.gold is None or solvable(task, settings.split):
        raise ValueError(f"tasks: {name!r} has no gold reward, or is solved; allowed are sampled tasks with one")
    of_suite = [] if settings.suite is None else load_results(settings.suite)
    own = [each for each in of_suite if each.cell.id == entry.id and not each.cell.options]
    folders = [*settings.proposals, *map(_run, _best(own))][: settings.most]
    agents = [load_agent(folder, env) for folder in folders]
    samples = draw_samples(
        task,
        make_reference(task),
        agents,
        split=settings.split,
        each=-(-settings.samples // (1 + len(agents))),
        seed=settings.seed,
    )
    path = samples_path(task, settings.split)
    make_folder(path.parent)
    write_samples(samples, path, fingerprint(task, settings.split))
    return samples, estimated(samples, task.beta, settings.split)


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
    script(main)
