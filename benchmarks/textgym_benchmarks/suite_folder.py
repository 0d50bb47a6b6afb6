"""A suite's folder on disk: suite.json, cells/KEY/result.json, and locks so that two runners do not collide."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from textgym_agents.config import versions

from textgym.files import make_folder, open_lock, read_json, reading, sync, write_json
from textgym.task import task_entry, task_names
from textgym_benchmarks.engines.jobs import cores
from textgym_benchmarks.results.format import FORMAT, check_result
from textgym_benchmarks.suite import Cell, Suite


class CellBusyError(ValueError):
    """Another process is at work on a cell."""


def open_suite(out: str | Path, suite: Suite) -> Path:
    """The folder of a suite, made if there is none.

    Raises: ValueError if `out` holds another suite, with what differs, or something else.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out={str(out)!r}: is a file; allowed is a folder")
    if folder.is_dir():
        # In this order: another `bench` may be making the suite's folder at this moment.
        others = [
            entry.name for entry in folder.iterdir() if not entry.name.startswith((".lock", ".suite.json"))
        ]
        if others and not (folder / "suite.json").exists():
            raise ValueError(f"out={str(out)!r}: holds {others[0]!r} but no suite; choose another folder")
    make_folder(folder)
    with hold(folder, wait=True):
        if (folder / "suite.json").exists():
            different = differences(read_suite(folder), suite)
            if different:
                raise ValueError(
                    f"out={str(out)!r}: holds another suite, which is never overwritten ({different}); "
                    "choose another folder"
                )
        else:
            started = datetime.now(UTC).strftime("%Y-%m-%d")
            write_json(
                folder / "suite.json",
                {"format": FORMAT, **suite.to_json(), "versions": versions(), "machine": machine()}
                | {"cores": cores(), "started": started},
            )
    return folder


def read_suite(folder: str | Path) -> Suite:
    """The suite that a folder holds. Raises: ValueError naming the file."""
    path = Path(folder) / "suite.json"
    data = read_json(path)
    if data.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path}: format={data['format']!r}: allowed is {FORMAT}")
    try:
        return Suite.from_json({name: value for name, value in data.items() if name != "format"})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(there: Suite, asked: Suite) -> str:
    """What differs between a stored suite and one that is asked for, in words; "" for nothing that matters."""
    parts = []
    if there.name != asked.name:
        parts.append(f"name {there.name!r}, asked for is {asked.name!r}")
    for name, value in there.evaluation.to_json().items():
        wanted = asked.evaluation.to_json()[name]
        if value != wanted:
            parts.append(f"evaluation.{name}={value}, asked for is {wanted}")
    stored, wanted_cells = {cell.key for cell in there.cells}, {cell.key for cell in asked.cells}
    for what, keys in (("only there", stored - wanted_cells), ("only asked for", wanted_cells - stored)):
        if keys:
            parts.append(f"{len(keys)} cells {what}, as {min(keys)}")
    return "; ".join(parts)


def cell_folder(suite: Path, cell: Cell) -> Path:
    """Where a cell's files are."""
    return suite / "cells" / cell.key


def cell_result(folder: Path) -> dict[str, Any] | None:
    """What a cell's result.json holds; None without one. Raises: ValueError naming the file."""
    path = folder / "result.json"
    if not os.path.lexists(path):
        return None
    data = read_json(path)
    with reading(path, "the result"):
        check_result(data)
    return data


def failed_result(cell: Cell, error: dict[str, Any]) -> dict[str, Any]:
    """The result of a cell that failed for good."""
    return {
        "format": FORMAT,
        "cell": cell.to_json(),
        "family": family_of(cell.id),
        "status": "failed",
        "error": error,
        "measures": None,
        "timing": None,
        "versions": versions(),
        "machine": machine(),
    }


def put_aside(folder: Path) -> None:
    """Renames the result of a failed cell, so that it can be tried again; what it says is kept."""
    number = 1
    while (folder / f"failed-{number}.json").exists():
        number += 1
    (folder / "result.json").rename(folder / f"failed-{number}.json")
    sync(folder)


@contextlib.contextmanager
def hold(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds a folder: no other process may. The system lets go of it when this process dies.

    Args:
        folder: is made if there is none.
        wait: for another process to let go of it.
    Raises: CellBusyError if another process holds it, and `wait` is false.
    """
    make_folder(folder)
    with open_lock(folder) as lock:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CellBusyError(f"{folder}: another process is at work there") from error
        yield


def family_of(env_id: str) -> str:
    """Return the family of a task; "text" for one that is not registered."""
    for name in task_names():
        entry = task_entry(name)
        if entry.id == env_id:
            return entry.family
    return "text"


def machine() -> str:
    """Cores and processor in a line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{cores()} cores, {name}"
