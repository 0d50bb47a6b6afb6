"""A run as a folder: config.json, metrics.jsonl, tensorboard/, checkpoint/, samples.jsonl, curve.png, result.json."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from textgym.checks import JsonObject
from textgym.files import (
    check_file,
    json_line,
    make_folder,
    open_lock,
    read_json,
    read_lines,
    reading,
    recover_folder,
    sync,
    try_to_hold,
    write_json,
    write_text,
)
from textgym_agents.saving import FORMAT, check_format, count, number, task_changes
from textgym_agents.training.trackers import Trackers

Row = Mapping[str, Any]
State = Literal["finished", "running", "interrupted", "none"]
"""running: a process is at work on it. none: no run is there."""
_LOCK = ".lock"
_PATIENCE = 0.2  # seconds; whoever asks whether a run is at work holds it for much less
_LOGS = ("metrics.jsonl", "samples.jsonl", "curriculum.jsonl")
_RUNNING = "another process is at work on this run"
_NOT_FREE = {
    "running": _RUNNING,
    "finished": "holds a finished run, which is never overwritten; choose another folder",
    "interrupted": "holds an interrupted run; resume it, or choose another folder",
}
_NOT_TO_RESUME = {
    "running": _RUNNING,
    "finished": "holds a finished run, so there is nothing to resume",
    "none": "holds no run, so there is nothing to resume",
}


class RunFolder:
    """The files of one run. `create` starts a run, `reopen` resumes an interrupted one.

    A run is finished when its result.json exists; then nothing in the folder is written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoint"
        if not _is_held(path / _LOCK):  # who is at work on it may be replacing it at this moment
            recover_folder(self.checkpoint)
        self.curve = path / "curve.png"
        self.sampling = path / "sampling"
        self._trackers: Trackers | None = None
        self._samples: list[JsonObject] = []  # that no tracker was given yet

    @classmethod
    def create(cls, path: str | Path, config: Row) -> RunFolder:
        """Make a new folder whose config.json holds the format too.

        Raises: ValueError if there are files at `path` already.
        """
        cls.check_free(path)
        folder = cls(Path(path))
        make_folder(folder.path)
        # Of several that start at once, one finds the folder free.
        with folder._held():
            cls.check_free(path, held=True)
            write_json(folder.path / "config.json", {"format": FORMAT, **config})
        return folder

    @staticmethod
    def check_free(path: str | Path, held: bool = False) -> None:
        """Raise ValueError unless a run can start at `path`: nothing is there, or an empty folder.

        Args:
            held: whether this process holds the folder.
        """
        there = Path(path)
        state = RunFolder(there).state(held)
        if state != "none":
            raise ValueError(f"{path}: {_NOT_FREE[state]}")
        # A start that was killed leaves its lock, and a part of its config.
        left = (_LOCK, ".config.json.")
        if there.exists() and not (there.is_dir() and all(each.name.startswith(left) for each in there.iterdir())):
            raise ValueError(f"{path}: is no run and not empty; choose another folder")

    @classmethod
    def reopen(cls, path: str | Path) -> RunFolder:
        """Return the folder of an interrupted run.

        Raises: ValueError if there is none, it is finished, or it is of another format.
        """
        folder = cls(Path(path))
        state = folder.state()
        if state != "interrupted":
            raise ValueError(f"{path}: {_NOT_TO_RESUME[state]}")
        folder.config()
        return folder

    def state(self, held: bool = False) -> State:
        """Return what is in the folder.

        Args:
            held: whether this process holds the folder, and nobody is to be asked.
        """
        if (self.path / "result.json").exists():
            return "finished"
        if not (self.path / "config.json").exists():
            return "none"
        return "running" if not held and _is_held(self.path / _LOCK) else "interrupted"

    def config(self) -> JsonObject:
        """Return the format and the settings of the run. Raises: ValueError for another format."""
        config = read_json(self.path / "config.json")
        check_format(self.path, config, "run")
        return config

    def check_task(self, splits: JsonObject) -> None:
        """Raise ValueError if the run was started on another task.

        Args:
            splits: see `task_signs`.
        """
        had = self.config().get("task", splits)
        for split, now in splits.items():
            if changes := task_changes(had.get(split) if isinstance(had, dict) else None, now):
                raise ValueError(
                    f"{self.path}: this run was started on another task, which differs in {', '.join(changes)} "
                    f"(split {split}): restore that task, or start anew in another folder"
                )

    def metrics(self) -> list[JsonObject]:
        """Return the rows of metrics.jsonl, one per iteration; iteration 0 is the state before learning."""
        path = self.path / "metrics.jsonl"
        rows = read_lines(path)
        with reading(path, "the log"):
            for row in rows:
                count(row, "iteration")
                for name, value in row.items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        number(row, name)
        return rows

    def seconds(self) -> float:
        """Return the seconds of work up to the last row of the log, 0 without one.

        Raises: ValueError for a row that lacks them.
        """
        rows = self.metrics()
        with reading(self.path / "metrics.jsonl", "the log"):
            return number(rows[-1], "seconds") if rows else 0.0

    def log(self, row: Row) -> None:
        """Append one iteration to metrics.jsonl and to the trackers, with the samples taken since the last one."""
        self._append("metrics.jsonl", [row])
        if self._trackers is not None:
            self._trackers.log(row, _step(row), self._samples)
        self._samples = []

    def mark(self, iteration: int) -> None:
        """Write down the iteration of the checkpoint, and keep it where config.json says so (`keep_last`).

        Raises: ValueError if there is none, as after a `save` that wrote nothing, or one file.
        """
        if not self.checkpoint.is_dir():
            raise ValueError(f"{self.checkpoint}: the agent's save wrote no folder there; allowed is one that does")
        write_json(self.path / "progress.json", {"iteration": iteration})
        last = self.config().get("keep_last", 0)
        if last:
            self._keep(iteration, last)

    def _keep(self, iteration: int, last: int) -> None:
        """Link the checkpoint into checkpoints/ITERATION, where only the `last` and the best stay.

        The best by `eval/objective`, of those that were evaluated, is named in checkpoints/best.json.
        """
        folder, part = self.path / "checkpoints", self.path / "checkpoints" / ".part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self.checkpoint, part, copy_function=_link)
        shutil.rmtree(folder / str(iteration), ignore_errors=True)
        part.rename(folder / str(iteration))
        kept = sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())
        rows = [row for row in self.metrics() if row.get("eval/objective") is not None]
        scores: dict[int, float] = {row["iteration"]: row["eval/objective"] for row in rows}
        best = max((each for each in kept if each in scores), key=lambda each: scores[each], default=None)
        if best is not None:
            write_json(folder / "best.json", {"iteration": best, "eval/objective": scores[best]})
        for each in kept[:-last]:
            if each != best:
                shutil.rmtree(folder / str(each))

    def marked(self) -> int:
        """Return the iteration of the checkpoint; 0 without one."""
        path = self.path / "progress.json"
        if not (self.checkpoint.is_dir() and path.exists()):
            return 0
        with reading(path, "the mark of the checkpoint"):
            return count(read_json(path), "iteration")

    def sample(self, rows: Iterable[Row]) -> None:
        """Append completions to samples.jsonl; the trackers get them with the next row of the log."""
        self._samples = [dict(row) for row in rows]
        self._append("samples.jsonl", self._samples)

    def log_prompts(self, row: Row) -> None:
        """Append the prompts of an iteration to curriculum.jsonl."""
        self._append("curriculum.jsonl", [row])

    def prompts(self) -> list[JsonObject]:
        """Return the rows of curriculum.jsonl."""
        return read_lines(self.path / "curriculum.jsonl")

    def finish(self, result: Row) -> None:
        """Write result.json: the run is complete."""
        self.sync_logs()
        write_json(self.path / "result.json", result)

    @contextlib.contextmanager
    def writing(self, rewind_to: int | None = None, events: bool = True) -> Iterator[bool]:
        """Hold the folder while it is written: no other process may. Yields: whether TensorBoard events are kept.

        Args:
            rewind_to: the iteration that the run resumes from; what was logged after it is dropped.
            events: whether the trackers are told that config.json names (`track`), by default TensorBoard.
        Raises: ValueError if another process is at work in the folder.
        """
        with self._held():
            try:
                if rewind_to is not None:
                    self._rewind(rewind_to)
                    self._mark_again(rewind_to)
                self._trackers = self._open_trackers() if events else None
                yield self._trackers is not None and "tensorboard" in self._trackers.names
            finally:
                if self._trackers is not None:
                    self._trackers.close()
                    self._trackers = None

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the folder. Raises: ValueError if another process does."""
        with open_lock(self.path) as lock:
            until = time.monotonic() + _PATIENCE
            while not try_to_hold(lock):
                if time.monotonic() > until:
                    raise ValueError(f"{self.path}: {_RUNNING}")
                time.sleep(_PATIENCE / 20)
            yield

    def _rewind(self, iteration: int) -> None:
        for name in _LOGS:
            kept: list[Row] = []
            if (self.path / name).exists():
                with reading(self.path / name, "the log"):
                    kept = [row for row in read_lines(self.path / name) if count(row, "iteration") <= iteration]
                write_text(self.path / name, "".join(json_line(row) for row in kept))
            if name == _LOGS[0]:  # what the others hold of an iteration without a row will be written again
                iteration = count(kept[-1], "iteration") if kept else -1

    def _mark_again(self, iteration: int) -> None:
        """Write the mark that a kill between a checkpoint and its mark has left out."""
        kept = self.path / "checkpoints" / str(iteration)
        wanted = self.config().get("keep_last", 0) and not kept.exists()
        if self.checkpoint.is_dir() and iteration and (wanted or self.marked() != iteration):
            self.mark(iteration)

    def sync_logs(self) -> None:
        """Wait until the disk holds what was logged: a checkpoint that outlives its log cannot be resumed from."""
        for name in _LOGS:
            if (self.path / name).exists():
                sync(self.path / name)

    def _open_trackers(self) -> Trackers:
        logged = self.metrics()
        # TensorBoard drops what an interrupted run had logged beyond the point that it resumes from.
        purge = _step(logged[-1]) + 1 if logged else None
        return Trackers(self.path, self.config(), purge)

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write("".join(json_line(row) for row in rows))
            file.flush()


class Unwritten(RunFolder):
    """A run's folder for a process that does not lead, and writes nothing."""

    def log(self, row: Row) -> None:
        """See `RunFolder.log`."""

    def sync_logs(self) -> None:
        """See `RunFolder.sync_logs`."""


@contextlib.contextmanager
def run_folder(out: Path | None, name: str, parent: str | Path = "runs") -> Iterator[Path]:
    """Yield the folder of a new run: `out`, or else `parent/name-1` or the next number that nobody has taken.

    A folder is taken by making it, so that of several commands that start at once each has its own. Where nothing was
    written to it in the end, it is given back.

    Args:
        out: the folder that was asked for; it is not looked at here.
    """
    if out is not None:
        yield out
        return
    made = not Path(parent).exists()
    for place in itertools.count(1):
        folder = Path(parent) / f"{name}-{place}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it holds a run
            folder.rmdir()
            if made:
                folder.parent.rmdir()


def _step(row: Row) -> int:
    """Return the place of a row in the curves: its episode, or its iteration where there are no episodes."""
    return int(row.get("episode", row.get("iteration", 0)))


def _link(source: str, target: str) -> None:
    """Make a second name of a file, which is replaced and never changed; a copy where there are no second names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_held(lock: Path) -> bool:
    """Return whether a process holds a lock file. Asking takes it for a moment, which `_held` has patience for.

    Raises: ValueError for what is no file.
    """
    if os.path.lexists(lock):
        check_file(lock)
    try:
        with lock.open() as file:
            return not try_to_hold(file)
    except OSError:  # there is none, or it is not ours to read
        return False


def run_of(folder: Path) -> Path:
    """Return the folder of the run that a checkpoint is of, RUN/checkpoint or RUN/checkpoints/N; else the folder."""
    if (folder / "config.json").is_file() and (folder / "checkpoint").is_dir():  # a run of this name
        return folder
    if folder.name == "checkpoint":
        return folder.parent
    return folder.parent.parent if folder.name.isdecimal() and folder.parent.name == "checkpoints" else folder
