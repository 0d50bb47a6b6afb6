"""The console: texts, tables, errors and threads."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Final

import gymnasium as gym
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from textgym.checks import users_line
from textgym.interrupts import with_remedy
from textgym.render import escaped


def use_all_cores() -> int:
    """Set torch's threads to the number of cores, unless OMP_NUM_THREADS says otherwise, and return the number."""
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


def note(text: str) -> None:
    """Print a line that is no error to the standard error."""
    print(f"textgym: {escaped(text)}", file=sys.stderr, flush=True)


# The project's extras, and the modules that each installs.
_EXTRAS = {
    "lm": ("torch", "transformers", "safetensors"),
    "rewards": ("re2", "jsonschema", "llguidance", "rouge_score", "sacrebleu", "vaderSentiment"),
    "sb3": ("stable_baselines3", "sb3_contrib"),
    "data": ("minari", "h5py"),
    "lora": ("peft",),
    "dist": ("ray",),
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
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return f'this needs {package}, which is not installed: pip install "textgym[{extra}]"'
    return f"module {module!r} cannot be found"
