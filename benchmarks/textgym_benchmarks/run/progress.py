"""The progress of a benchmark, counted and shown."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from textgym.checks import JsonObject
from textgym.commands.console import folded, note, output, table, untrusted
from textgym_benchmarks.suite import Cell
from textgym_benchmarks.suites import cost
from textgym_benchmarks.summaries.grid import at, finite

Status = Literal["waiting", "running", "done", "failed", "busy"]
"""busy: another process is at work on the cell."""
_SYMBOLS = {
    "done": ("+", "green"),
    "failed": ("x", "bold red"),
    "running": (">", "cyan"),
    "busy": ("o", "yellow"),
    "waiting": (".", "dim"),
}


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


class LiveTable(BenchWatcher):
    """Shows the run to people: a table that is kept up to date, or plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = output()
        self._progress = Progress((), 1)
        self._live: Live | None = None
        self._started = time.monotonic()

    def begin(self, progress: Progress) -> None:
        """See `BenchWatcher.begin`."""
        self._progress = progress
        self._started = time.monotonic()
        if not self._console.is_terminal:
            self._say(headline(progress))
            return
        self._live = Live(
            get_renderable=self._picture, console=self._console, refresh_per_second=2, vertical_overflow="crop"
        )
        self._live.start()

    def changed(self, key: str) -> None:
        """See `BenchWatcher.changed`."""
        progress = self._progress
        if self._live is not None or progress.status[key] in ("running", "waiting"):
            return
        score, error = progress.optimality.get(key), progress.errors.get(key)
        outcome = "" if score is None else f"  optimality {score:.3f}"
        outcome += "" if error is None else f"  {error}"
        self._say(f"{progress.status[key]}  {key}{outcome}  ({headline(progress)})")

    def note(self, text: str) -> None:
        """See `BenchWatcher.note`."""
        if self._live is None:
            note(text)
        else:
            self._console.print(untrusted(text))

    def end(self) -> None:
        """See `BenchWatcher.end`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(untrusted(f"{time.monotonic() - self._started:6.1f} s  {text}"), soft_wrap=True)

    def _picture(self) -> Group:
        seconds = time.monotonic() - self._started
        status = Text(f"{headline(self._progress)}; {duration(seconds)} so far")
        legend = Text()
        for name, (symbol, style) in _SYMBOLS.items():
            legend.append(symbol, style).append(f" {'at work elsewhere' if name == 'busy' else name}  ")
        # Lines beyond the terminal's height are cropped: what matters most comes first.
        return Group(status, legend, grid(self._progress))


def grid(progress: Progress) -> Table:
    """Return a table with a row per task, a column per agent, and a mark per seed."""
    tasks = dict.fromkeys(cell.task for cell in progress.cells.values())
    agents = dict.fromkeys(cell.name for cell in progress.cells.values())
    symbols = {(task, agent): Text() for task in tasks for agent in agents}
    for key, cell in progress.cells.items():
        symbols[cell.task, cell.name].append(*_SYMBOLS[progress.status[key]])
    marks = table(Column("task", no_wrap=True), *(folded(untrusted(agent)) for agent in agents))
    for task in tasks:
        marks.add_row(untrusted(task), *(symbols[task, agent] for agent in agents))
    return marks


def headline(progress: Progress) -> str:
    """Return counts, and the time that is left."""
    counts = [f"{progress.count('done')} of {len(progress.cells)} done"]
    words: Mapping[Status, str] = {"running": "running", "failed": "failed", "busy": "at work elsewhere"}
    counts += [f"{number} {word}" for status, word in words.items() if (number := progress.count(status))]
    left = progress.time_left()
    if left is not None and progress.count("waiting") + progress.count("running"):
        counts.append(f"about {duration(left)} left")
    return ", ".join(counts)


def duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
