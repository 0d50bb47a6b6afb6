"""Runs one cell of a suite in a folder of its own, or a short piece of it to tell what the whole will take."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from textgym_agents.algorithms.fixed import reference_of
from textgym_agents.config import TrainSettings
from textgym_agents.conformance.under_test import global_generators
from textgym_agents.protocol import Agent
from textgym_agents.registry import agent_class, batch_of, config_class, make_agent, make_config, make_env
from textgym_agents.saving import FORMAT, task_signs
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import SilentWatcher, Training, Watcher
from textgym_agents.training.measures import (
    TrainResult,
    optimum_summary,
    sample_rows,
    spread,
    to_evaluate,
)

from textgym import TokenVectorEnv
from textgym.checks import JsonObject
from textgym.evaluate import evaluate
from textgym.files import plain, read_json, read_lines, remove_folder
from textgym.optimum import Optimum, optimum_of
from textgym.processes import peak_memory
from textgym.sources import versions
from textgym.task import Task
from textgym_benchmarks.results.rows import crossings, curve, run_timing, side_by_side, snapshot
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.optima import shared_optimum
from textgym_benchmarks.suite import Cell, Evaluation, parted

TUNE_SEEDS = 10_000
"""Added to a cell's seed where it is measured on the split "tune"."""
PROBED = 1.0
"""CPU seconds of learning after which a probe has seen enough."""
ON_THE_WAY, AT_THE_END, OF_THE_REFERENCE = 256, 1024, 4096
"""The fewest completions of an evaluation on the way, of the first and the last one, and of an estimate of J*."""


def run_cell(
    cell: Cell,
    settings: Evaluation,
    folder: Path,
    optima: Path,
    *,
    watcher: Watcher | None = None,
    save: bool = False,
    counted: bool = False,
) -> JsonObject:
    """Run a cell, or go on with one that was broken off.

    Learning is on one thread; every random number comes from the cell's seed (`seed_of`). J is measured at the task's
    beta, so that agents of one task are compared on one scale, whatever beta they learn with.

    Args:
        cell, settings: what is run and how it is measured.
        folder: of the cell; the run is in `run/`, which nobody else may be writing.
        optima: folder of the optima that cells share.
        watcher: is told what happens.
        save: keep the last checkpoint, as `run/checkpoint/`. It stays, too, where J* is to be worked out with it.
        counted: the measures hold the completions `scored` while it learned.
    Returns: the cell's result, format 1, of status "done"; JSON values.
    Raises: whatever task, agent or reward raise.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    seed = seed_of(cell, settings)
    with _one_thread(), global_generators(seed):
        task = make_env(cell.id, 1, **cell.options).unwrapped.task
        plan = plan_of(cell, settings, task)
        run = reopened(folder / "run", plan, task)
        if run is not None:  # the logged part of a run that was broken off counts
            earlier = (run.metrics() or [{}])[-1]
            started -= float(earlier.get("seconds", 0.0))
            cpu_started -= float(earlier.get("cpu_seconds", 0.0))
        training = Training(plan, run, beta=task.beta, seed=seed, pictures=False)
        optimum = _optimum(cell, plan, training, optima)
        result = training.run(folder / "run", watcher or SilentWatcher(), optimum)
    run = RunFolder(folder / "run")
    if not (save or optimum.improvable):
        remove_folder(run.checkpoint)  # at once: a run that has no result yet goes on from a whole one, or anew
    measures = _measures(cell, plan, run, result)
    if training.has_own_reference:
        measures["optimum"]["own"] = True
    timing = run_timing(run.metrics(), result.learned, cell.episodes, measures["curve"])
    if counted:
        measures["scored"] = result.learned["learning/scored"]
    timing |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu_started}
    found = versions()
    return Result(
        cell,
        family=task.family,
        status="done",
        measures=plain(measures),
        timing=plain(timing),
        machine=found.pop("machine"),
        versions=found,
    ).to_json()


run_counted = partial(run_cell, counted=True)
"""`run_cell` for the leaderboard."""


def probe_cell(cell: JsonObject, evaluation: JsonObject) -> JsonObject:
    """Run a piece of a cell: a few batches, one evaluation and a thin J*. Nothing is written.

    Args:
        cell, evaluation: as JSON.
    Returns: {"learning", "measuring", "optimum"}: what the whole cell will take, CPU seconds, if all goes on as it
        begins; the optimum once for all cells of a task and reward. {"peak"}: the most that the process held, bytes.
    Raises: whatever task, agent or reward raise.
    """
    row, settings = Cell.from_json(cell), Evaluation.from_json(evaluation)
    seed = seed_of(row, settings)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: a worker may have probed another cell
    with _one_thread(), global_generators(seed):
        task = make_env(row.id, 1, **row.options).unwrapped.task
        plan = plan_of(row, settings, task)
        config = make_config(agent_class(row.agent), plan.config)
        env = make_env(row.id, batch_of(config, row.episodes), **row.options)
        agent = make_agent(row.agent, env, config)
        learning = _pace(agent, env, row.episodes) * row.episodes if agent.learns else 0.0
        started = time.process_time()
        own = agent.own_reference()
        each = plan.eval_per_prompt
        optimum = optimum_of(task, (), own, split=plan.split, per_prompt=each, seed=seed)
        worked_out = time.process_time()
        with to_evaluate(agent, row.agent, env) as copy:
            evaluate(copy, task, reference_of(agent, task), optimum, split=plan.split, per_prompt=each, seed=seed)
        once = time.process_time() - worked_out
    thicker = 1.0 if optimum.exact or optimum.committed else plan.optimum_per_prompt / each
    points = plan.eval_points if agent.learns else 0
    evaluations = points + (1 + agent.learns) * plan.final_per_prompt / each
    taken = {"learning": learning, "measuring": once * evaluations, "optimum": (worked_out - started) * thicker}
    return {**taken, "peak": peak_memory()}


def _pace(agent: Agent, env: TokenVectorEnv, budget: int) -> float:
    """Return the CPU seconds of an episode, the first batch left out where there are more: it warms up."""
    marks = [(time.process_time(), 0)]

    def after(metrics: Mapping[str, float]) -> bool:
        marks.append((time.process_time(), int(metrics.get("episode", len(marks) * env.num_envs))))
        return len(marks) > 2 and marks[-1][0] - marks[1][0] > PROBED

    episodes = min(budget, max(4 * env.num_envs, 1024))
    agent.learn(env, episodes, after)
    if len(marks) == 1:  # an agent that never reports
        marks.append((time.process_time(), episodes))
    (start, before), (end, then) = marks[1 if len(marks) > 2 else 0], marks[-1]
    return (end - start) / max(then - before, 1)


def plan_of(cell: Cell, settings: Evaluation, task: Task) -> TrainSettings:
    """Return the training that a cell is.

    Where a task has few prompts, each is answered more often; a batch is no larger than the budget.
    """
    prompts = len(task.prompt_set(settings.split).texts)
    thickest = -(-OF_THE_REFERENCE // prompts)
    return TrainSettings(
        id=cell.id,
        agent=cell.agent,
        episodes=cell.episodes,
        config=_config(cell, seed_of(cell, settings)),
        env=cell.options,
        eval_every=0,
        save_every=0,
        eval_points=settings.points,
        eval_per_prompt=max(settings.per_prompt, -(-ON_THE_WAY // prompts)),
        final_per_prompt=max(settings.final_per_prompt, -(-AT_THE_END // prompts)),
        optimum_per_prompt=settings.optimum_per_prompt and max(settings.optimum_per_prompt, thickest),
        samples=settings.samples,
        split=settings.split,
        **parted(cell.config)[1],
    )


def _config(cell: Cell, seed: int) -> JsonObject:
    """Return the agent's settings: the cell's, with a seed, and a batch that the cell's budget has episodes for."""
    kind, found = config_class(agent_class(cell.agent)), parted(cell.config)[0]
    names = getattr(kind, "__dataclass_fields__", ())
    if "seed" in names:
        found["seed"] = seed
    if "batch" in names:
        config = make_config(agent_class(cell.agent), found)
        rows, group = batch_of(config, cell.episodes), int(getattr(config, "group", 1))
        fitting = rows if rows <= cell.episodes else max(cell.episodes // group, 1) * group
        if fitting != getattr(config, "batch", None):
            found["batch"] = fitting
    return found


def seed_of(cell: Cell, settings: Evaluation) -> int:
    """Return the seed that a cell runs with: another one where settings are chosen than where they are reported."""
    return cell.seed + (TUNE_SEEDS if settings.split == "tune" else 0)


def reopened(path: Path, plan: TrainSettings, task: Task) -> RunFolder | None:
    """Return the run to resume; None for a new one, after removing a run that cannot be resumed.

    That is a run of other settings or versions or of another task, and one of an agent that does not say that it
    `resumes`, so that a result never depends on where a worker died. A run holds no result: nothing is lost but time.

    Args: path: the run's folder. plan: its settings. task: what it learns.
    """
    if not path.exists():
        return None
    run = RunFolder(path)
    if run.state() != "none" and agent_class(plan.agent).resumes:
        signs = {"versions": versions(), "task": task_signs(task, plan.split)}
        started_with = plain({"format": FORMAT} | asdict(plan) | signs)
        if read_json(path / "config.json") == json.loads(json.dumps(started_with)):
            # A run may have ended just before its result was handed over.
            (path / "result.json").unlink(missing_ok=True)
            return RunFolder.reopen(path)
    shutil.rmtree(path)
    return None


def _optimum(cell: Cell, plan: TrainSettings, training: Training, folder: Path) -> Optimum:
    key: JsonObject = {"id": cell.id, "env": plan.env, "reference": "task"}
    reference = None
    if training.has_own_reference:
        reference = training.reference
        key["reference"] = {"agent": cell.agent, "config": plan.config, "seed": cell.seed}
    per_prompt = plan.optimum_per_prompt
    return shared_optimum(folder, key, training.task, reference, training.beta, per_prompt, plan.split)


def _measures(cell: Cell, plan: TrainSettings, run: RunFolder, result: TrainResult) -> JsonObject:
    rows = run.metrics()
    points = curve(rows, result.after, result.learned, cell.episodes)
    after = list(sample_rows(result.last, plan.samples))
    before = read_lines(run.path / "samples.jsonl")[: len(after)]
    samples = side_by_side(before, after)
    episodes = result.last.episodes
    for sample, prompt in zip(samples, spread(episodes.weights, plan.samples), strict=True):
        # Other rewards of the suite score the same tokens, see `score_samples`.
        tokens = episodes.tokens[prompt, 0]
        sample["after"]["ids"] = tokens[tokens >= 0].tolist()
    return {
        "before": snapshot(rows[0]),
        "after": snapshot(result.after),
        "optimum": optimum_summary(result.optimum),
        "curve": points,
        **crossings(points),
        "episodes": result.episodes,
        "tokens": result.learned["learning/tokens"],
        "iterations": result.iterations,
        "samples": samples,
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Give torch one thread: sums over several depend on how many there are."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
