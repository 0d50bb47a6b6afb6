"""A run as a folder: config.json, metrics.jsonl, tensorboard/, checkpoint/, samples.jsonl, curve.png, result.json."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from textgym.files import (
    json_line,
    make_folder,
    open_lock,
    read_json,
    read_lines,
    reading,
    recover_folder,
    sync,
    write_json,
    write_text,
)
from textgym_agents.saved import count, number

Row = Mapping[str, Any]
_LOGS = ("metrics.jsonl", "samples.jsonl")


class RunFolder:
    """The files of one run. `create` starts a run, `reopen` goes on with an interrupted one.

    A run is finished when its result.json exists; then nothing in the folder is written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint"
        recover_folder(self.checkpoint)
        self.curve = path / "curve.png"
        self._events: Any = None

    @classmethod
    def create(cls, path: str | Path, config: Row) -> RunFolder:
        """A new folder with its config.json. Raises: ValueError if there are files at `path` already."""
        cls.check_free(path)
        folder = cls(Path(path))
        make_folder(folder.path)
        write_json(folder.path / "config.json", config)
        return folder

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Raises: ValueError unless a run can start at `path`: nothing is there, or an empty folder."""
        state = RunFolder(Path(path)).state()
        if state == "finished":
            raise ValueError(
                f"{path}: holds a finished run, which is never overwritten; choose another folder"
            )
        if state == "interrupted":
            raise ValueError(f"{path}: holds an interrupted run; resume it, or choose another folder")
        if Path(path).exists() and (not Path(path).is_dir() or any(Path(path).iterdir())):
            raise ValueError(f"{path}: is no run and not empty; choose another folder")

    @classmethod
    def reopen(cls, path: str | Path) -> RunFolder:
        """The folder of an interrupted run. Raises: ValueError if there is none, or it is finished."""
        folder = cls(Path(path))
        state = folder.state()
        if state != "interrupted":
            what = "holds a finished run" if state == "finished" else "holds no run"
            raise ValueError(f"{path}: {what}, so there is nothing to resume")
        return folder

    def state(self) -> str:
        """One of "finished", "interrupted" and "none": no run is there."""
        if (self.path / "result.json").exists():
            return "finished"
        return "interrupted" if (self.path / "config.json").exists() else "none"

    def config(self) -> dict[str, Any]:
        """What the run was started with."""
        return read_json(self.path / "config.json")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one per iteration; iteration 0 is the state before learning."""
        path = self.path / "metrics.jsonl"
        rows = read_lines(path)
        with reading(path, "the log"):
            for row in rows:
                count(row, "iteration")
                for name, value in row.items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        number(row, name)
        return rows

    def log(self, row: Row) -> None:
        """Appends one iteration to metrics.jsonl and to the TensorBoard events."""
        self._append("metrics.jsonl", [row])
        if self._events is not None:
            step = _step(row)
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(name, value, step)
            self._events.flush()

    def mark(self, iteration: int) -> None:
        """Writes down that the checkpoint is that of an iteration."""
        write_json(self.path / "progress.json", {"iteration": iteration})

    def marked(self) -> int:
        """The iteration of the checkpoint; 0 without one."""
        if not (self.checkpoint.is_dir() and (self.path / "progress.json").exists()):
            return 0
        path = self.path / "progress.json"
        with reading(path, "the mark of the checkpoint"):
            return count(read_json(path), "iteration")

    def sample(self, rows: Iterable[Row]) -> None:
        """Appends completions to samples.jsonl."""
        self._append("samples.jsonl", rows)

    def finish(self, result: Row) -> None:
        """Writes result.json: the run is complete."""
        self.sync_logs()
        write_json(self.path / "result.json", result)

    @contextlib.contextmanager
    def writing(self, rewind_to: int | None = None, events: bool = True) -> Iterator[bool]:
        """Holds the folder while it is written: no other process may. Yields whether TensorBoard events are kept.

        Args:
            rewind_to: the iteration that the run goes on from; what was logged after it is dropped.
            events: whether TensorBoard events are written, where it is installed.
        Raises: ValueError if another process is at work in the folder.
        """
        lock = open_lock(self.path)
        try:
            _hold(lock, self.path)
            if rewind_to is not None:
                self._rewind(rewind_to)
            self._events = self._open_events() if events else None
            yield self._events is not None
        finally:
            if self._events is not None:
                self._events.close()
                self._events = None
            lock.close()

    def _rewind(self, iteration: int) -> None:
        for name in _LOGS:
            if not (self.path / name).exists():
                continue
            with reading(self.path / name, "the log"):
                kept = [row for row in read_lines(self.path / name) if count(row, "iteration") <= iteration]
            write_text(self.path / name, "".join(json_line(row) for row in kept))

    def sync_logs(self) -> None:
        """Waits until the disk holds what was logged: a checkpoint that outlived its log could not be gone on with."""
        for name in _LOGS:
            if (self.path / name).exists():
                sync(self.path / name)

    def _open_events(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        logged = self.metrics()
        # TensorBoard drops what an interrupted run had logged beyond the point that it goes on from.
        purge = _step(logged[-1]) + 1 if logged else None
        return SummaryWriter(str(self.path / "tensorboard"), purge_step=purge)

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(json_line(row) for row in rows))
            file.flush()


def free_folder(parent: str | Path, name: str) -> Path:
    """`parent/name-1`, or the first number that is not taken."""
    number = 1
    while (Path(parent) / f"{name}-{number}").exists():
        number += 1
    return Path(parent) / f"{name}-{number}"


def _step(row: Row) -> int:
    """Where a row stands in the curves: its episode, or its iteration where there are no episodes."""
    return int(row.get("episode", row.get("iteration", 0)))


def _hold(lock: IO[str], path: Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{path}: another process is at work on this run") from error
