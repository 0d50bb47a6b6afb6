"""Refuse to run code that only the folder of a run names: the folder may come from somebody else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from textgym.checks import JsonObject
from textgym.registry import REWARDS, import_user_module

_TARGET = re.compile(r"[\w.]+:\w+")  # the one form of text that the registry imports
_DATA = {f"{split}{what}" for split in ("", "eval_", "tune_") for what in ("prompts", "columns")}  # never imported


def check_trusted(folder: Path, env: JsonObject) -> None:
    """Check that the options of an environment, read from a run's config.json, call no code of a stranger.

    A "module:attribute" among them, at any depth, is allowed if it is the target of a registered reward, TextGym's or
    a plug-in's, or if it is defined in a module or package that lies in the current folder. The current folder may not
    be (in) the run's, and the package may not hold the run.

    Args:
        folder: of the run. env: its options, JSON values.
    Raises: ValueError, before a module is imported that does not lie in the current folder, with the words to type
        for options that are trusted.
    """
    registered = {REWARDS.entry(name).target for name in REWARDS}
    for target in _texts({name: value for name, value in env.items() if name not in _DATA}):
        if _TARGET.fullmatch(target) and target not in registered and not _is_users(target, folder):
            words = [f"{name}={json.dumps(value)}" for name, value in env.items()]
            raise ValueError(
                f"{folder / 'config.json'}: env names the code {target!r}; allowed are registered rewards and what is "
                "defined in a module of the current folder, outside the run. If you trust it, name the options "
                f"yourself: --env {shlex.join(words)}"
            )


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value:
            yield from _texts(inner)
        if isinstance(value, dict):
            yield from _texts(list(value.values()))


def _is_users(target: str, folder: Path) -> bool:
    """Return whether a target is defined in the user's own folder, the current one. Imports it only if it is there."""
    path, _, attribute = target.partition(":")
    top = path.partition(".")[0]
    here, run = Path.cwd().resolve(), folder.resolve()
    package = (here / top).resolve()
    if here.is_relative_to(run) or run.is_relative_to(package):
        return False
    if not ((here / f"{top}.py").is_file() or (package / "__init__.py").is_file()):
        return False
    module = import_user_module(path)
    file = getattr(module, "__file__", None)
    # What a module has merely imported, as in `from subprocess import Popen`, is not the user's.
    owner = getattr(getattr(module, attribute, None), "__module__", path)
    return file is not None and Path(file).resolve().is_relative_to(here) and owner.partition(".")[0] == top
