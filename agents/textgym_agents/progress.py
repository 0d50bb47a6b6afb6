"""Progress of learning: metrics as a line of text, and a progress bar for scripts and notebooks."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Final

import numpy as np

from textgym_agents.protocol import Callback, Metrics

LINE: Final = {
    "objective/scores": "reward",
    "objective/kl": "kl",
    "objective/entropy": "entropy",
    "completion_length": "length",
    "eval/reward": "held-out reward",
    "eval/kl": "held-out kl",
    "eval/optimality": "optimality",
}
"""Labels of the metrics in a line."""


def figure(name: str, value: float) -> str:
    """Format a metric. A KL or an optimality of less than 1e-6 in size is rounding and shown as 0, without a sign."""
    return f"{round(value, 6) + 0.0:.4g}" if "kl" in name or "optimality" in name else f"{value:.4g}"


def metrics_line(row: Metrics, labels: Mapping[str, str] = LINE) -> str:
    """Format those metrics that have a label as text: "reward 0.81  kl 1.9"."""
    cells = ((label, name, row.get(name)) for name, label in labels.items())
    return "  ".join(f"{label} {figure(name, value)}" for label, name, value in cells if value is not None)


class ProgressBar:
    """A progress bar as a callback for `Agent.learn`: `agent.learn(env, 4096, ProgressBar(4096))`.

    In a terminal and in Jupyter it is one line with a bar, the time left and the latest metrics, updated in place; if
    the output is a file, it prints a line for each tenth of the budget.

    Args:
        episodes: the budget of `learn`. then: called with the same metrics; its result is returned.
    Raises: ValueError for a budget below 1.
    """

    def __init__(self, episodes: int, then: Callback | None = None) -> None:
        if episodes < 1:
            raise ValueError(f"episodes={episodes!r}: allowed is an integer >= 1, the budget that learn is given")
        self._episodes, self._then = episodes, then
        self._marks: list[float] = []  # episodes of the first two iterations: an agent may have learned before
        self._started, self._next, self._width = time.monotonic(), 0.0, 0

    def __call__(self, row: Metrics) -> bool | None:
        """Show an iteration. Args: row: its metrics; without "episode" the line has neither bar nor time left."""
        stop = None if self._then is None else self._then(row)
        done = self._done(row)
        finished = bool(stop) or done >= self._episodes
        over, now = "ipykernel" in sys.modules or sys.stdout.isatty(), time.monotonic()
        if finished or not (now if over else done) < self._next:
            self._next = now + 0.1 if over else done + self._episodes / 10
            self._write(f"{self._bar(done, now)}  {metrics_line(row)}", over, finished)
        return stop

    def _done(self, row: Metrics) -> float:
        at = row.get("episode", float("nan"))
        self._marks = [*self._marks, at][:2]
        if len(self._marks) == 1:
            return at if at <= self._episodes else float("nan")
        return min(at + self._marks[1] - 2 * self._marks[0], self._episodes)

    def _bar(self, done: float, now: float) -> str:
        seconds = now - self._started
        if np.isnan(done):
            return f"{seconds:.0f} s"
        part = done / self._episodes
        left = f"{seconds * (1 - part) / part:.0f} s left" if part else ""
        bar = ("#" * int(20 * part)).ljust(20, ".")
        return f"[{bar}] {done:.0f}/{self._episodes} episodes  {seconds:.0f} s, {left}"

    def _write(self, text: str, over: bool, finished: bool) -> None:
        if over:
            text = text[: shutil.get_terminal_size((140, 24)).columns - 1]
            print("\r" + text.ljust(self._width), end="\n" if finished else "", flush=True)
            self._width = len(text)
        else:
            print(text, flush=True)
