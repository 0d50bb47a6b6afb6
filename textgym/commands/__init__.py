"""The commands of `textgym`, one module each: its first docstring line is the summary, its `main` takes the flags."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from textgym.checks import docstring

MODULES: Final = {
    **dict.fromkeys(("list", "play", "solve"), "textgym.commands"),
    **dict.fromkeys(("check", "demo", "eval", "overoptimise", "preferences"), "textgym_agents.commands"),
    **dict.fromkeys(("record", "reward-model", "rlhf", "sft", "train"), "textgym_agents.commands"),
    **dict.fromkeys(("bench", "inspect", "report"), "textgym_benchmarks.commands"),
}


def command_names() -> tuple[str, ...]:
    """Return the name of every command, in alphabetical order."""
    return tuple(sorted(MODULES))


def load_command(name: str) -> Callable[[list[str]], None]:
    """The function that runs a command with its flags."""
    main: Callable[[list[str]], None] = _module(name).main
    return main


def summary(name: str) -> str:
    """One line that says what a command does."""
    return docstring(_module(name)).splitlines()[0]


def _module(name: str) -> Any:
    return import_module(f"{MODULES[name]}.{name.replace('-', '_')}")
