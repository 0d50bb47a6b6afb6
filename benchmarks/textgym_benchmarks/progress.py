"""How far a suite is: which cells wait, run, are done or failed, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suites.costs import cost

Status = Literal["waiting", "running", "done", "failed", "busy"]
"""busy: another process is at work on the cell."""


class Progress:
    """The state of a run.

    Args:
        cells: of the suite.
        workers: cells that run at a time.
    """

    def __init__(self, cells: Sequence[Cell], workers: int) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.workers = workers
        self.status: dict[str, Status] = dict.fromkeys(self.cells, "waiting")
        self.optimality: dict[str, float | None] = {}
        self.errors: dict[str, str] = {}
        self.finished_now: list[str] = []
        """Cells that this run has finished."""
        self._begun: dict[str, float] = {}
        self._seconds = self._planned = 0.0

    def known(self, key: str, result: Mapping[str, Any]) -> None:
        """A cell had its result before this run."""
        failed = result.get("status") == "failed"
        self.status[key] = "failed" if failed else "done"
        if failed:
            error = result.get("error") or {}
            self.errors[key] = f"{error.get('type')}: {error.get('message')}"
        else:
            self.optimality[key] = _optimality(result)

    def start(self, key: str, now: float | None = None) -> None:
        """A cell is running."""
        self.status[key] = "running"
        self._begun[key] = time.monotonic() if now is None else now

    def lose(self, key: str) -> None:
        """A running cell waits again."""
        self.status[key] = "waiting"
        self._begun.pop(key, None)

    def finish(self, key: str, result: Mapping[str, Any], now: float | None = None) -> None:
        """A cell has ended. One that was never said to run says nothing about how long cells take."""
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
        """Cells of a status."""
        return sum(one == status for one in self.status.values())

    def time_left(self, now: float | None = None) -> float | None:
        """Seconds until all cells have ended, by those that this run has finished; None before the first."""
        if not self._planned:
            return None
        now = time.monotonic() if now is None else now
        pace = self._seconds / self._planned
        waiting = [pace * cost(self.cells[key]) for key, status in self.status.items() if status == "waiting"]
        running = [
            max(pace * cost(self.cells[key]) - (now - begun), 0.0) for key, begun in self._begun.items()
        ]
        return max((sum(waiting) + sum(running)) / self.workers, *running, *waiting, 0.0)


class Watcher(Protocol):
    """Whoever follows the run of a suite."""

    def begin(self, progress: Progress) -> None:
        """The run begins; `progress` is kept up to date."""

    def changed(self, key: str) -> None:
        """A cell has another status."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def end(self) -> None:
        """The run is over, whatever came of it."""


class Silent:
    """A `Watcher` that says nothing."""

    def begin(self, progress: Progress) -> None:
        """See `Watcher.begin`."""

    def changed(self, key: str) -> None:
        """See `Watcher.changed`."""

    def note(self, text: str) -> None:
        """See `Watcher.note`."""

    def end(self) -> None:
        """See `Watcher.end`."""


def _optimality(result: Mapping[str, Any]) -> float | None:
    found = ((result.get("measures") or {}).get("after") or {}).get("optimality") or {}
    mean = found.get("mean")
    return None if mean is None else float(mean)
