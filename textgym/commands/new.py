"""Create a package of your own: a task, a reward, an agent, a suite and a command, with tests and a notebook."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from keyword import iskeyword
from os.path import lexists
from pathlib import Path
from typing import Annotated, Final

import tyro

from textgym.checks import shown
from textgym.commands.console import UsageError, output
from textgym.commands.flags import parse
from textgym.files import replace_folder
from textgym.registry import AGENTS, COMMANDS, REWARDS, SUITES, TASKS

_TEMPLATE: Final = Path(__file__).with_name("project")
_LONGEST: Final = 40  # characters of a name
_SUFFIX: Final = ".in"  # of its files, so that no tool takes them for code of this package


@dataclass(frozen=True)
class NewFlags:
    """Create a package of your own in a new folder; its names work there at once, and everywhere once installed.

    Example: textgym new my-task
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the folder and the package, as in my-task: lower-case letters, digits and dashes."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    name = parse(NewFlags, arguments, "new").name
    _check(name)
    folder, task = Path(name), _task(name)
    replace_folder(folder, lambda new: _write(new, name))
    console = output()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        console.print(f"  {path}", markup=False, highlight=False)
    console.print(
        f"\nTo use it from its folder, uninstalled:\n  cd {name}\n  textgym train {task}-v0 --agent {name}-agent\n"
        f"  textgym bench --suite {name}\n  textgym report runs/bench-{name}\n"
        f"To use it anywhere, install it: pip install -e {name}. See also {folder / 'README.md'}.",
        markup=False,
        highlight=False,
    )


def project(name: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file of a package of this name."""
    words = {"my_task": _package(name), "my-task": name, "MyTask": _task(name)}
    for path in sorted(_TEMPLATE.rglob(f"*{_SUFFIX}")):
        place, text = path.relative_to(_TEMPLATE).as_posix().removesuffix(_SUFFIX), path.read_text(encoding="utf-8")
        for word, own in words.items():
            place, text = place.replace(word, own), text.replace(word, own)
        yield place, text


def _write(folder: Path, name: str) -> None:
    for place, text in project(name):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _check(name: str) -> None:
    """Raise UsageError, with a name that could be meant, unless a package may have this name."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > _LONGEST:
        near = re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower())
        near = near.lstrip("-0123456789").rstrip("-")[:_LONGEST]
        meant = f". Did you mean {near!r}?" if near else ""
        raise UsageError(
            f"NAME {shown(name)}: allowed: up to {_LONGEST} lower-case letters, digits and dashes, as in my-task{meant}"
        )
    if lexists(name):
        raise UsageError(f"NAME {name!r}: is there already and is not overwritten; give another name, or remove it")
    package = _package(name)
    used = name != "my-task" and any(re.search(rf"\b{package}\b", text) for _, text in project("my-task"))
    taken = iskeyword(package) or package in sys.stdlib_module_names or find_spec(package) is not None
    names = ((TASKS, _task(name)), (REWARDS, name), (AGENTS, f"{name}-agent"), (SUITES, name), (COMMANDS, name))
    if used or taken or any(own in registry for registry, own in names):
        raise UsageError(
            f"NAME {name!r}: is taken by a module, a word of its code, or a name of textgym; as in my-{name}"
        )


def _package(name: str) -> str:
    return name.replace("-", "_")


def _task(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))
