"""The console: tables, errors, threads and live lines."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

import gymnasium as gym
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from textgym.interrupts import with_remedy
from textgym.render import escaped


def use_all_cores() -> int:
    """Sets torch's threads to the number of cores, unless OMP_NUM_THREADS says otherwise. Returns: the number."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    return int(torch.get_num_threads())


class _Output(Console):
    """A console that leaves a reader who has gone to the command line."""

    def on_broken_pipe(self) -> None:
        """See `Console.on_broken_pipe`, which exits with 1."""
        raise


def output() -> Console:
    """A console on the standard output, as it is at this moment."""
    return _Output(file=sys.stdout, highlight=False, soft_wrap=False)


def untrusted(text: str, style: str = "") -> Text:
    """A text from a model, a file or a user: control characters are escaped, markup is not interpreted."""
    return Text(escaped(text), style=style)


def note(text: str) -> None:
    """One line to the standard error that is no error."""
    print(f"textgym: {escaped(text)}", file=sys.stderr, flush=True)


# What to install for a module that is missing: the project's extras.
_EXTRAS = {
    "torch": "lm",
    "transformers": "lm",
    "safetensors": "lm",
    "re2": "rewards",
    "jsonschema": "rewards",
    "llguidance": "rewards",
    "rouge_score": "rewards",
    "sacrebleu": "rewards",
    "vaderSentiment": "rewards",
    "stable_baselines3": "sb3",
    "sb3_contrib": "sb3",
    "minari": "data",
    "h5py": "data",
    "ray": "dist",
    "matplotlib": "report",
    "tensorboard": "report",
    "PIL": "report",
    "jinja2": "report",
    "markupsafe": "report",
    "plotly": "report",
    "scipy": "report",
}


class UsageError(Exception):
    """A command line that cannot be run; the message is for the user."""


_EXPLAINED = (
    str,
    Warning,
    UsageError,
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    ModuleNotFoundError,
    ArithmeticError,
    gym.error.Error,
)


def one_line(error: Exception | Warning | str) -> str:
    """What went wrong, without line breaks and without anything that could steer a terminal."""
    return escaped(" ".join(_explain(error).split()))


def _explain(error: Exception | Warning | str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _explain_missing(error.name)
    if isinstance(error, Exception) and (helps := with_remedy(error)) != str(error):
        return helps
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # Gymnasium appends the whole call to what a constructor says.
    text = str(error).partition(" was raised from the environment creator for ")[0]
    if isinstance(error, _EXPLAINED) and text:
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _explain_missing(module: str) -> str:
    extra = _EXTRAS.get(module.split(".")[0])
    if extra is None:
        return f"module {module!r} cannot be found"
    return f'this needs {module.split(".")[0]}, which is not installed: pip install "textgym[{extra}]"'


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
