"""Optional packages: imported when a reward that needs one is made."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any


def import_extra(module: str, reward: str) -> Any:
    """Import a module of the extra `rewards`.

    Args:
        module: its dotted name.
        reward: the name of the reward that needs it, for the message.

    Raises: ModuleNotFoundError that says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).split(".")[0]
        raise ModuleNotFoundError(
            f'reward {reward!r} needs {package}, which is not installed: pip install "textgym[rewards]"',
            name=package,
        ) from error


class Rebuilt:
    """For a frozen dataclass: pickled as its parameters and made anew from them.

    So a child process loads the optional package before a reward's time runs, and not within it.
    """

    def __reduce__(self) -> tuple[type[Any], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
