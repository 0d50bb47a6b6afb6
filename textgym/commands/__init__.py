"""The commands of `textgym`, one module each: its first docstring line is the summary, its `main` takes the flags.

A module `reward_model.py` here is the command `reward-model`. Modules that start with an underscore are shared code.
Of the core, only these modules import `textgym_agents` and `textgym_benchmarks`, and only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from textgym.messages import docstring


@cache
def command_names() -> tuple[str, ...]:
    """Every command, in alphabetical order."""
    modules = sorted(module.name for module in iter_modules(__path__))
    return tuple(name.replace("_", "-") for name in modules if not name.startswith("_"))


def load_command(name: str) -> Callable[[list[str]], None]:
    """The function that runs a command with its flags."""
    main: Callable[[list[str]], None] = _module(name).main
    return main


def summary(name: str) -> str:
    """One line that says what a command does."""
    return docstring(_module(name)).splitlines()[0]


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name.replace('-', '_')}")
