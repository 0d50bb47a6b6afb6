"""Runs a suite: one folder with one result for each cell; what is finished is skipped, what broke off is resumed."""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
from textgym_agents.registry import make_env

from textgym.checks import JsonObject, TextGymWarning
from textgym.files import plain, read_json, write_json
from textgym.interrupts import DiskFullError, disk_full_at
from textgym.prompts import HeldOut
from textgym.rewards import Scorer
from textgym.sources import versions
from textgym_benchmarks.engines import Engine, Event, Job, make_engine
from textgym_benchmarks.engines.jobs import cores
from textgym_benchmarks.results.format import FORMAT
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.run.optima import settle
from textgym_benchmarks.selection import make_suite, select
from textgym_benchmarks.suite import Cell, Suite, canonical
from textgym_benchmarks.suite_folder import (
    RUN_CELL,
    RUN_ONE,
    CellBusyError,
    cell_folder,
    cell_result,
    family_of,
    hold,
    open_suite,
    put_aside,
)
from textgym_benchmarks.suites import cost
from textgym_benchmarks.summaries.grid import at, finite

Status = Literal["waiting", "running", "done", "failed", "busy"]
"""busy: another process is at work on the cell."""


class BenchInterrupted(KeyboardInterrupt):
    """Ctrl-C while a suite ran; the message says what is done and how to go on."""


class Progress:
    """The state of a run.

    Args:
        cells: of the suite.
        workers: cells that run at a time.

    Attributes:
        status, optimality, errors: of the cells, by key.
        finished_now: keys of the cells that this run has finished.
    """

    def __init__(self, cells: Sequence[Cell], workers: int) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.workers = workers
        self.status: dict[str, Status] = dict.fromkeys(self.cells, "waiting")
        self.optimality: dict[str, float | None] = {}
        self.errors: dict[str, str] = {}
        self.finished_now: list[str] = []
        self._begun: dict[str, float] = {}
        self._seconds = self._planned = 0.0

    def known(self, key: str, result: JsonObject) -> None:
        """Count a cell that had its result before this run."""
        failed = result.get("status") == "failed"
        self.status[key] = "failed" if failed else "done"
        if failed:
            error = result.get("error") or {}
            self.errors[key] = f"{error.get('type')}: {error.get('message')}"
        else:
            self.optimality[key] = finite(at(result, "measures", "after", "optimality", "mean"))

    def start(self, key: str, now: float | None = None) -> None:
        """Count a cell that begins to run."""
        self.status[key] = "running"
        self._begun[key] = time.monotonic() if now is None else now

    def lose(self, key: str) -> None:
        """Count a running cell that waits again."""
        self.status[key] = "waiting"
        self._begun.pop(key, None)

    def finish(self, key: str, result: JsonObject, now: float | None = None) -> None:
        """Count a cell that has ended. One that was never said to run says nothing about how long cells take."""
        begun = self._begun.pop(key, None)
        if result.get("status") == "busy":
            self.status[key] = "busy"
            return
        self.known(key, result)
        self.finished_now.append(key)
        if self.status[key] == "done" and begun is not None:
            self._seconds += (time.monotonic() if now is None else now) - begun
            self._planned += cost(self.cells[key])

    def count(self, status: Status) -> int:
        """Return the number of cells of a status."""
        return list(self.status.values()).count(status)

    def time_left(self, now: float | None = None) -> float | None:
        """Return the seconds until all cells have ended, judged by those that this run has finished; None without."""
        if not self._planned:
            return None
        now = time.monotonic() if now is None else now
        pace = self._seconds / self._planned
        waiting = [pace * cost(self.cells[key]) for key, status in self.status.items() if status == "waiting"]
        running = [max(pace * cost(self.cells[key]) - (now - begun), 0.0) for key, begun in self._begun.items()]
        return max((sum(waiting) + sum(running)) / self.workers, *running, *waiting, 0.0)


class BenchWatcher:
    """Follows the run of a suite; this one does nothing."""

    def begin(self, progress: Progress) -> None:
        """Begin; the runner keeps `progress` up to date."""

    def changed(self, key: str) -> None:
        """Take note that a cell has another status."""

    def note(self, text: str) -> None:
        """Take note of something worth a line."""

    def end(self) -> None:
        """End, whatever came of the run."""


def run_suite(
    suite: Suite | str,
    out: str | Path,
    agents: Sequence[str] | None = None,
    engine: str = "pool",
    workers: int | None = None,
    seeds: int | None = None,
    *,
    split: HeldOut | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    save: bool = False,
    watcher: BenchWatcher | None = None,
    function: str = RUN_CELL,
) -> list[Result]:
    """Run the cells of a suite that have no result yet.

    Args:
        suite: a suite, or the name of one, see `make_suite`.
        out: its folder. A new one is made; in one that holds the same suite, the run is continued, and cells that it
            does not hold yet are added.
        agents: registered names or "module:Class", see `select`; None for the suite's own.
        engine: "serial", "pool" or "ray".
        workers: processes; None for the cores that there are.
        seeds: how many, from 0; None for the suite's own.
        split: whose prompts are answered, see `Evaluation`; None for the suite's own.
        address: of a Ray cluster.
        retry_failed: also run cells again that failed; else they stay failed.
        save: keep the last checkpoint of the cells that run, in `cells/KEY/run/checkpoint/`.
        watcher: is told what happens.
        function: see `run_one`.
    Returns: a result for each cell that is asked for, in the suite's order. Failed cells are among them.
    Raises: ValueError for an unknown name, or a folder that holds something else; BenchInterrupted after Ctrl-C or
        SIGTERM; DiskFullError where nothing more can be written, which leaves the running cells open.
    """
    chosen = select(make_suite(suite) if isinstance(suite, str) else suite, agents, seeds)
    if split is not None:
        chosen = replace(chosen, evaluation=replace(chosen.evaluation, split=split))
    runs = make_engine(engine, workers, address)
    folder = open_suite(out, chosen)
    progress = Progress(chosen.cells, runs.workers)
    cells = {cell.key: cell for cell in _unfinished(folder, chosen.cells, retry_failed, progress)}
    settings = {"evaluation": asdict(chosen.evaluation), "function": function, "save": save}
    # The path is absolute, since workers of a cluster have other current folders.
    settings["suite"] = str(folder.resolve())
    jobs = [Job(key, RUN_ONE, {"cell": cell.to_json(), **settings}) for key, cell in cells.items()]
    watcher = watcher or BenchWatcher()
    started = time.monotonic()
    watcher.begin(progress)
    try:
        with disk_full_at(folder, "run the same command again, which goes on"):
            try:
                if jobs:
                    _follow(runs, jobs, cells, folder, progress, watcher)
                if function == RUN_CELL:
                    for line in settle(folder, chosen.evaluation.split, save, watcher.note):
                        watcher.note(line)
                    score_samples(folder, chosen.evaluation.split)
            finally:
                if jobs:
                    _write_timing(folder, engine, runs, time.monotonic() - started, progress)
    except KeyboardInterrupt as interrupt:
        # A worker may have written its result a moment before it was told to stop.
        done = sum(result.status == "done" for result in load_results(folder) if result.cell in chosen.cells)
        raise BenchInterrupted(
            f"{done} of {len(chosen.cells)} cells are done; the same command with the same folder ({folder}) goes on"
        ) from interrupt
    finally:
        watcher.end()
    found = {result.cell.key: result for result in load_results(folder)}
    return [found[cell.key] for cell in chosen.cells]


def score_samples(folder: Path, split: HeldOut) -> None:
    """Score samples of finished cells, as written after learning, under every reward that their task has in a suite.

    What a reward pays for the finished text, without its noise, goes into result.json as `after.rewards`; null where it
    abstains or fails.
    """
    groups: dict[str, list[Result]] = {}
    for result in load_results(folder):
        groups.setdefault(canonical([result.cell.id, dict(result.cell.env)]), []).append(result)
    for results in groups.values():
        cells = {result.cell.reward_name: result.cell for result in results}
        data = [plain(result.to_json()) for result in results if result.measures]
        rows = [row for each in data for row in each["measures"]["samples"] if "ids" in (row["after"] or {})]
        due = {name: [row for row in rows if name not in row["after"].get("rewards", {})] for name in cells}
        if len(cells) == 1 or not any(due.values()):
            continue
        for name, missing in due.items():
            for row, score in zip(missing, _scores(cells[name], split, missing), strict=True):
                row["after"].setdefault("rewards", {})[name] = score
        for each in data:
            place = cell_folder(folder, Cell.from_json(each["cell"]))
            with hold(place, wait=True):
                write_json(place / "result.json", each)


def _scores(cell: Cell, split: HeldOut, rows: Sequence[JsonObject]) -> list[float | None]:
    """Return what a cell's reward pays for samples; None for one where it abstains or fails."""
    try:
        task = make_env(cell.id, 1, **cell.options).unwrapped.task
        scorer = Scorer(getattr(task.reward, "expected", task.reward), "skip", timeout=task.timeout)
        prompts = [task.prompt(row["prompt"], split) for row in rows]
        ids = [row["after"]["ids"] for row in rows]
        with warnings.catch_warnings(action="ignore", category=TextGymWarning):
            found = task.judge(split, prompts, ids, range(len(rows)), scorer=scorer)
    except Exception:  # the user's code
        return [None] * len(rows)
    silent = np.all([np.isnan(values) for values in found.terms.values()], axis=0)
    return [None if none else float(score) for none, score in zip(silent, found.total, strict=True)]


def busy_share(folder: str | Path) -> float | None:
    """Return CPU seconds over wall seconds times cores of a suite's last run, a share in [0, 1]; None if unknown."""
    path = Path(folder) / "timing.json"
    if not path.exists():
        return None
    busy = read_json(path)["runs"][-1]["busy"]
    return None if busy is None else float(busy)


def _unfinished(folder: Path, cells: Sequence[Cell], retry_failed: bool, progress: Progress) -> Iterator[Cell]:
    """Yield the cells to run, the longest first: then all cores are busy to the end."""
    for cell in sorted(cells, key=cost, reverse=True):
        path = cell_folder(folder, cell)
        result = cell_result(path)
        if result is not None and result.get("status") == "failed" and retry_failed:
            with hold(path):
                put_aside(path)
            result = None
        if result is None:
            yield cell
        else:
            progress.known(cell.key, result)


def _follow(
    engine: Engine,
    jobs: Sequence[Job],
    cells: Mapping[str, Cell],
    folder: Path,
    progress: Progress,
    watcher: BenchWatcher,
) -> None:
    with closing(engine.run(jobs)) as events:  # type: ignore[type-var]
        for event in events:
            if event.kind == "started":
                progress.start(event.key)
            elif event.kind == "lost":
                watcher.note(f"{event.key}: {event.value}; it is restarted")
                progress.lose(event.key)
            else:
                progress.finish(event.key, _result_of(cells[event.key], event, folder))
            watcher.changed(event.key)


def _result_of(cell: Cell, event: Event, suite: Path) -> JsonObject:
    """Return the result of a finished job, and write it where the worker could not."""
    failure = event.failure
    if failure is None:
        assert isinstance(event.value, dict)
        result: JsonObject = event.value
    elif failure.type == CellBusyError.__name__:
        return {"status": "busy"}
    elif failure.type == DiskFullError.__name__:
        # Not the cell's fault: it stays open, and no other one would fare better.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        found = versions()
        where = found.pop("machine")
        family, error = family_of(cell.id), asdict(failure)
        result = Result(cell, family, "failed", error, versions=found, machine=where).to_json()
    folder = cell_folder(suite, cell)
    # A worker that failed has written none, nor has one with a disk of its own.
    if not (folder / "result.json").exists():
        with hold(folder, wait=True):
            write_json(folder / "result.json", result)
    return result


def _write_timing(folder: Path, name: str, engine: Engine, seconds: float, progress: Progress) -> None:
    used = engine.cpu_seconds
    row = {
        "engine": name,
        "workers": engine.workers,
        "cores": cores(),
        "wall_seconds": seconds,
        "cpu_seconds": used,
        "busy": used / (seconds * cores()) if seconds else None,
        "cells": len(progress.finished_now),
    }
    path = folder / "timing.json"
    before = read_json(path)["runs"] if path.exists() else []
    write_json(path, {"format": FORMAT, "runs": [*before, row]})
