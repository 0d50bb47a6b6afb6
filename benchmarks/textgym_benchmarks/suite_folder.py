"""A suite's folder on disk: suite.json, cells/KEY/result.json, and locks so that two runners do not collide."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from textgym_agents.saving import FORMAT, check_format

from textgym.checks import JsonObject
from textgym.files import make_folder, open_lock, plain, read_json, reading, sync, try_to_hold, write_json
from textgym.interrupts import disk_full_at
from textgym.registry import TASKS, load_target
from textgym.sources import versions
from textgym_benchmarks.engines.jobs import cores
from textgym_benchmarks.results.format import check_result
from textgym_benchmarks.suite import Cell, Evaluation, Suite

if TYPE_CHECKING:
    from textgym_agents.training.loop import Watcher

RUN_ONE: Final = "textgym_benchmarks.suite_folder:run_one"
RUN_CELL: Final = "textgym_benchmarks.run.cell:run_cell"
RUN_COUNTED: Final = "textgym_benchmarks.run.cell:run_counted"
PROBE: Final = "textgym_benchmarks.run.cell:probe_cell"


class CellBusyError(ValueError):
    """Another process is at work on a cell."""


def open_suite(out: str | Path, suite: Suite) -> Path:
    """Return the folder of a suite, made if there is none. Cells that it does not hold yet are added to it.

    Raises: ValueError if `out` holds a suite of another name or evaluation, with what differs, or something else.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(out)!r}: is a file; allowed is a folder")
    if folder.is_dir():
        # In this order: another `bench` may be making the suite's folder at this moment.
        others = [entry.name for entry in folder.iterdir() if not entry.name.startswith((".lock", ".suite.json"))]
        if others and not (folder / "suite.json").exists():
            raise ValueError(f"out={str(out)!r}: holds {others[0]!r} but no suite; choose another folder")
    make_folder(folder)
    with hold(folder, wait=True):
        if (folder / "suite.json").exists():
            stored = read_suite(folder)
            different = differences(stored, suite)
            if different:
                raise ValueError(
                    f"out={str(out)!r}: holds another suite, which is never overwritten ({different}); "
                    "choose another folder"
                )
            known = {cell.key for cell in stored.cells}
            added = [cell.to_json() for cell in suite.cells if cell.key not in known]
            if added:
                data = read_json(folder / "suite.json")
                write_json(folder / "suite.json", data | {"cells": [*data["cells"], *added]})
        else:
            data = {"format": FORMAT, **suite.to_json(), "versions": versions(), "machine": _processor()}
            data |= {"cores": cores(), "started": datetime.now(UTC).strftime("%Y-%m-%d")}
            write_json(folder / "suite.json", data)
    return folder


def _processor() -> str:
    """Return cores and processor in a line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = next(iter(names), name)
    return f"{cores()} cores, {name}"


def read_suite(folder: str | Path) -> Suite:
    """Return the suite that a folder holds. Raises: ValueError naming the file, for another format too."""
    path = Path(folder) / "suite.json"
    data = read_json(path)
    check_format(folder, data, "suite")
    try:
        return Suite.from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(stored: Suite, asked: Suite) -> str:
    """Return what keeps the cells of two suites from being compared, in words; "" for nothing. Cells may differ."""
    parts = []
    if stored.name != asked.name:
        parts.append(f"name {stored.name!r}, asked for is {asked.name!r}")
    wanted = asdict(asked.evaluation)
    for name, value in asdict(stored.evaluation).items():
        if value != wanted[name]:
            parts.append(f"evaluation.{name}={value}, asked for is {wanted[name]}")
    return "; ".join(parts)


def cell_folder(suite: Path, cell: Cell) -> Path:
    """Return the folder of a cell's files."""
    return suite / "cells" / cell.key


def cell_result(folder: Path) -> JsonObject | None:
    """Return the values of a cell's result.json; None without one. Raises: ValueError naming the file."""
    path = folder / "result.json"
    if not os.path.lexists(path):
        return None
    data = read_json(path)
    with reading(path, "the result"):
        check_result(data)
    return data


def run_one(
    cell: JsonObject,
    evaluation: JsonObject,
    suite: str,
    function: str,
    save: bool = False,
    watcher: Watcher | None = None,
) -> JsonObject:
    """Run a cell in its folder, or go on with one that was interrupted: the job of a worker.

    Args:
        cell, evaluation: as JSON.
        suite: the suite's folder.
        function: "module:function" that takes a `Cell`, an `Evaluation`, the cell's folder and one for optima that
            cells share, and returns the values of result.json.
        save: also pass `save=True` to the function: the last checkpoint is kept.
        watcher: also passed to the function, where there is one.
    Returns: the values of result.json; those that are there already, if another process was faster.
    Raises: CellBusyError if another process is at work on the cell; DiskFullError; whatever the function raises.
    """
    row = Cell.from_json(cell)
    folder = cell_folder(Path(suite), row)
    with disk_full_at(folder), hold(folder):
        earlier = cell_result(folder)
        if earlier is not None:
            return earlier
        more = ({"save": True} if save else {}) | ({"watcher": watcher} if watcher else {})
        settings = Evaluation.from_json(evaluation)
        result: JsonObject = plain(
            load_target(function, "function")(row, settings, folder, Path(suite) / "optima", **more)
        )
        write_json(folder / "result.json", result)
        return result


def put_aside(folder: Path) -> None:
    """Rename the result of a failed cell, so that it can be tried again; what it says is kept."""
    number = 1
    while (folder / f"failed-{number}.json").exists():
        number += 1
    (folder / "result.json").rename(folder / f"failed-{number}.json")
    sync(folder)


@contextlib.contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep all other processes from holding a folder, made if there is none. The system releases it at our death.

    Raises: CellBusyError if another process holds it; with `wait`, its release is waited for.
    """
    make_folder(folder)
    with open_lock(folder) as lock:
        if not try_to_hold(lock, wait):
            raise CellBusyError(f"{folder}: another process is at work there")
        yield


def family_of(env_id: str) -> str:
    """Return the family of a task; "text" for one that is not in the catalogue."""
    key = env_id.rpartition(":")[2].removeprefix("textgym/")
    return TASKS.entry(key).family if key in TASKS else "text"
