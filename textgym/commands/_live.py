"""Follows a training on the terminal: a live table and a progress bar, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from textgym.commands._console import note, output

_TABLE = {
    "objective/scores": "reward of the batch",
    "objective/kl": "KL to the reference, nats",
    "objective/rlhf_reward": "reward - beta KL",
    "objective/entropy": "entropy, nats per answer",
    "completion_length": "tokens per answer",
    "val/num_eos_tokens": "answers that ended by themselves",
    "policy/approxkl_avg": "KL of the update, nats per token",
    "policy/clipfrac_avg": "share of clipped ratios",
    "loss/value_avg": "value loss",
    "lr": "learning rate",
    "eval/reward": "reward, held-out prompts",
    "eval/kl": "KL, held-out prompts",
    "eval/optimality": "optimality, held-out prompts",
}
_LINE = {
    "objective/scores": "reward",
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "completion_length": "length",
    "eval/reward": "held-out reward",
    "eval/kl": "held-out kl",
    "eval/optimality": "optimality",
}


class Display:
    """A `Watcher` for people.

    Args:
        episodes: the budget.
    """

    def __init__(self, episodes: int) -> None:
        self._console = output()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} episodes"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=episodes)
        self._episodes = episodes
        self._row: dict[str, float] = {}
        self._live: Live | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""
        self._progress.update(self._task, description=text)
        if self._live is None:
            self._say(text)

    def note(self, text: str) -> None:
        """See `Watcher.note`."""
        if self._live is None:
            note(text)
        else:
            self._live.console.print(text, markup=False)

    def iteration(self, row: dict[str, Any]) -> None:
        """See `Watcher.iteration`."""
        self._row |= {name: value for name, value in row.items() if value is not None}
        self._progress.update(self._task, completed=min(row["episode"], self._episodes))
        if self._live is None:
            cells = [f"{label} {row[name]:.4g}" for name, label in _LINE.items() if row.get(name) is not None]
            self._say(f"episode {row['episode']:.0f}  {'  '.join(cells)}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 3))
        table.add_column()
        table.add_column(justify="right")
        for name, label in _TABLE.items():
            if name in self._row:
                table.add_row(label, f"{self._row[name]:.4g}")
        return Group(table, self._progress)
