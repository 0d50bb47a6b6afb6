"""J* of the cells' tasks, one for all that share it; and `python -m textgym_benchmarks.optima`, which commits samples.

    textgym bench --suite core --agents lm-ppo rloo --keep-checkpoints --out runs/proposals
    python -m textgym_benchmarks.optima Format Json Keywords --suite runs/proposals

The script samples the reference and the last policies of a suite's cells, and writes what they wrote, with the task's
fingerprint, to where `textgym.optima.optimum_of` looks for it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from textgym_agents.registry import load_agent, make_env
from textgym_agents.settings import versions
from tyro.conf import Positional

from textgym.catalog import task_entry
from textgym.committed import fingerprint, pays_the_same, samples_path
from textgym.files import make_folder
from textgym.importance import Samples, draw_samples, read_samples, write_samples
from textgym.lm.reference import Reference
from textgym.optima import Optimum, estimated, optimum_of
from textgym.references import make_reference
from textgym.task import Task
from textgym_benchmarks.results import load_results
from textgym_benchmarks.suite import canonical
from textgym_benchmarks.suite_folder import cell_folder


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
    if task_entry(name).family in ("text", "diagnostics"):
        raise ValueError(
            f"tasks: {name!r} is the caller's own or solved; allowed are shipped tasks that are sampled"
        )
    env = make_env(task_entry(name).id, 1)
    task = env.unwrapped.task
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
