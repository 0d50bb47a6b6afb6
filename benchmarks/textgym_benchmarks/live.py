"""The run of a suite on the terminal: a live table of tasks and agents, or plain lines where there is no terminal."""

from __future__ import annotations

import time

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textgym.commands._console import note, output, untrusted
from textgym_benchmarks.progress import Progress

_MARKS = {
    "done": ("+", "green"),
    "failed": ("x", "bold red"),
    "running": (">", "cyan"),
    "busy": ("o", "yellow"),
    "waiting": (".", "dim"),
}


class LiveTable:
    """A `Watcher` for people."""

    def __init__(self) -> None:
        self._console = output()
        self._progress: Progress | None = None
        self._live: Live | None = None
        self._started = time.monotonic()

    def begin(self, progress: Progress) -> None:
        """See `Watcher.begin`."""
        self._progress = progress
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                refresh_per_second=2,
                vertical_overflow="crop",
            )
            self._live.__enter__()
        else:
            self._say(headline(progress))

    def changed(self, key: str) -> None:
        """See `Watcher.changed`."""
        progress = self._progress
        if self._live is not None or progress is None or progress.status[key] in ("running", "waiting"):
            return
        score = progress.optimality.get(key)
        words = [progress.status[key], key]
        words += [f"optimality {score:.3f}"] if score is not None else []
        words += [progress.errors[key]] if key in progress.errors else []
        self._say(f"{'  '.join(words)}  ({headline(progress)})")

    def note(self, text: str) -> None:
        """See `Watcher.note`."""
        if self._live is None:
            note(text)
        else:
            self._live.console.print(untrusted(text))

    def end(self) -> None:
        """See `Watcher.end`."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(untrusted(f"{time.monotonic() - self._started:6.1f} s  {text}"), soft_wrap=True)

    def _picture(self) -> RenderableType:
        assert self._progress is not None
        seconds = time.monotonic() - self._started
        foot = Text(f"{headline(self._progress)}; {duration(seconds)} so far")
        # Lines beyond the terminal's height are cropped: what matters most comes first.
        return Group(foot, _legend(), grid(self._progress))


def grid(progress: Progress) -> Table:
    """A row per task, a column per agent, a mark per seed."""
    tasks = list(dict.fromkeys((cell.id, cell.reward_name) for cell in progress.cells.values()))
    agents = list(dict.fromkeys(cell.name for cell in progress.cells.values()))
    marks: dict[tuple[str, str, str], Text] = {}
    for key, cell in progress.cells.items():
        mark = marks.setdefault((cell.id, cell.reward_name, cell.name), Text())
        mark.append(*_MARKS[progress.status[key]])
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("task", no_wrap=True)
    for agent in agents:
        table.add_column(untrusted(agent), overflow="fold")
    for task, reward in tasks:
        name = task.removeprefix("textgym/") + ("" if reward == "default" else f" {reward}")
        table.add_row(untrusted(name), *(marks.get((task, reward, agent), Text()) for agent in agents))
    return table


def headline(progress: Progress) -> str:
    """Counts, and the time that is left."""
    counts = [f"{progress.count('done')} of {len(progress.cells)} done"]
    for status in ("running", "failed", "busy"):
        found = progress.count(status)
        if found:
            counts.append(f"{found} {'at work elsewhere' if status == 'busy' else status}")
    left = progress.time_left()
    if left is not None and progress.count("waiting") + progress.count("running"):
        counts.append(f"about {duration(left)} left")
    return ", ".join(counts)


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _legend() -> Text:
    text = Text()
    for name, (mark, style) in _MARKS.items():
        text.append(mark, style)
        text.append(f" {'at work elsewhere' if name == 'busy' else name}  ")
    return text
