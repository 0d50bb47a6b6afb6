"""The console: texts, tables, errors, threads, and what is said while a command is at work."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TextIO, cast

import gymnasium as gym
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from textgym.checks import users_line
from textgym.interrupts import with_remedy
from textgym.render import escaped
from textgym.sources import PACKAGES


def use_all_cores() -> int:
    """Set torch's threads to the number of cores, unless OMP_NUM_THREADS says otherwise, and return the number."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Where others want the cores, too, threads that wait in a loop take three times the work; this is read once.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    return int(torch.get_num_threads())


class _Output(Console):
    """A console that leaves a broken pipe to the command line."""

    def on_broken_pipe(self) -> None:
        """See `Console.on_broken_pipe`, which exits with 1."""
        raise


def output() -> Console:
    """Return a console on the present standard output."""
    return _Output(file=sys.stdout, highlight=False, soft_wrap=False)


def untrusted(text: str, style: str = "") -> Text:
    """Return a text of a model, a file or a user with its control characters escaped; markup is not interpreted."""
    return Text(escaped(text), style=style)


number: Final = partial(Column, justify="right")
"""A column of numbers. Args: heading."""
folded: Final = partial(Column, overflow="fold")
"""A column of texts that are wrapped and never cut. Args: heading."""


def table(*columns: Column | str, title: str | None = None, collapse_padding: bool = False) -> Table:
    """Return an empty table in the style of all commands."""
    return Table(
        *columns, title=title, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=collapse_padding
    )


def duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def note(text: str) -> None:
    """Print a line that is no error to the standard error, at once: another process may write there, too."""
    sys.stderr.write(f"textgym: {escaped(text)}\n")
    sys.stderr.flush()


class Status(logging.Handler):
    """Says on the standard error what a command is at, wherever it has written nothing for a second or two.

    That is the last message of level INFO from a command, and behind it the last one since then from what it uses, as
    loggers of this project got them; after an empty one, as while a person is asked, nothing is said. On a terminal it
    is one line, which the next output replaces. Elsewhere it is a line each time, ever more seldom while the message
    stays the same. It is off where the variable TEXTGYM_STATUS is "off", and in all but the first process of torchrun.

    Args:
        command: its name.
    """

    def __init__(self, command: str) -> None:
        super().__init__(logging.INFO)
        self._out, self._error = sys.stdout, sys.stderr
        self._live = self._error.isatty()
        self._patience = 1.2  # seconds
        self._stage = self._text = f"{command} is starting"
        self._shown = False
        self._started = self._since = self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._on = os.environ.get("TEXTGYM_STATUS") != "off" and os.environ.get("RANK", "0") == "0"

    def __enter__(self) -> Self:
        if self._on:
            # The streams tell when something else is written: a status line may not stand in its way.
            sys.stdout, sys.stderr = (cast(TextIO, _Heard(each, self)) for each in (self._out, self._error))
            self._levels = {name: logging.getLogger(name).level for name in PACKAGES}
            for name in PACKAGES:
                logging.getLogger(name).addHandler(self)
                logging.getLogger(name).setLevel(logging.INFO)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._on:
            return
        self._ended.set()
        self._thread.join()
        self.heard()
        for name, level in self._levels.items():
            logging.getLogger(name).removeHandler(self)
            logging.getLogger(name).setLevel(level)
        sys.stdout, sys.stderr = self._out, self._error

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        text = record.getMessage()
        if record.name.startswith("textgym.") and text:
            text = f"{self._stage}: {text}"
        else:
            self._stage = text
        if text != self._text:
            self._text, self._since = text, time.monotonic()

    def heard(self) -> None:
        """Make room for other output, and wait again."""
        if self._shown:
            self._shown = False
            self._write("\r\x1b[2K")
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(0.25):
            now = time.monotonic()
            gap = self._patience if self._live else max(self._patience, (self._last - self._since) / 4)
            if self._text and now - self._last >= gap:
                self._say(now)

    def _say(self, now: float) -> None:
        line = f"textgym: {escaped(self._text)} ({now - self._started:.0f} s)"
        if self._live:
            self._shown = True
            self._write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self._write(f"{line}\n")
            self._last = now

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            self._error.write(text)
            self._error.flush()


class _Heard:
    """A standard stream that tells a `Status` when something is written to it."""

    def __init__(self, stream: TextIO, status: Status) -> None:
        self._stream, self._status = stream, status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        self._status.heard()
        return self._stream.write(text)


# The project's extras, and the modules that each installs.
EXTRAS = {
    "lm": ("torch", "transformers", "accelerate"),
    "rewards": (
        "re2",
        "jsonschema",
        "llguidance",
        "math_verify",
        "rouge_score",
        "sacrebleu",
        "simpleeval",
        "vaderSentiment",
    ),
    "sb3": ("stable_baselines3", "sb3_contrib", "psutil"),
    "data": ("minari", "h5py"),
    "lora": ("peft",),
    "dist": ("ray",),
    "tune": ("optuna",),
    "judge": ("openai",),
    "openenv": ("openenv", "fastmcp", "uvicorn", "fastapi", "starlette", "pydantic"),
    "torchrl": ("torchrl",),
    "interop": ("trl",),
    "libraries": ("agilerl", "skrl", "tianshou"),
    "track": ("trackio", "wandb"),
    "datasets": ("datasets", "pyarrow"),
    "course": ("jupytext", "nbformat"),
    "report": ("matplotlib", "tensorboard", "PIL", "jinja2", "markupsafe", "plotly", "scipy"),
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
    """Return what went wrong, without line breaks and without anything that could steer a terminal."""
    text = _explain(error)
    place = "" if isinstance(error, str | Warning | UsageError) else users_line(error)
    if place and place not in text:
        said, hint, _ = text.partition(_HINT)
        text = said + place + hint
    return escaped(" ".join(text.split()))


def script(main: Callable[[], None]) -> None:
    """Run a script's `main`, with one line and exit code 1 instead of a traceback for what is not allowed.

    Raises: SystemExit.
    """
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {one_line(error)}") from None


_HINT: Final = " (--debug shows where)"


def _explain(error: Exception | Warning | str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _explain_missing(error.name)
    if isinstance(error, Exception) and (helps := with_remedy(error)) != str(error):
        return helps
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    # Gymnasium appends the whole call to what a constructor says.
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).partition(
        " was raised from the environment creator for "
    )[0]
    if isinstance(error, _EXPLAINED) and text:
        return text
    return f"{type(error).__name__}: {text}{_HINT}"


def _explain_missing(module: str) -> str:
    package = module.split(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f'this needs {package}, which is not installed: pip install "textgym[{extra}]"'
    return f"module {module!r} cannot be found"
