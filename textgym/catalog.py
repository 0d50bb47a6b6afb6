"""The catalogue of tasks: a builder under every name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textgym.checks import did_you_mean, not_one_of

if TYPE_CHECKING:
    from textgym.task import Task

Builder = Callable[..., "Task"]
_ENVIRONMENT_ARGUMENTS = ("split", "segments", "render_mode", "num_envs", "autoreset_mode", "score_together")


@dataclass(frozen=True)
class TaskEntry:
    """One line of the catalogue.

    Args:
        name: as in `textgym/Name-vN`.
        builder: from the task's options to a Task, or "module:function" that is imported when first needed.
        version: N; rises when reward, observation or termination changes.
        family: "alignment", "verifiable", "style", "diagnostic" or "text".
        summary: one line for people.
    """

    name: str
    builder: Builder | str
    version: int = 0
    family: str = "text"
    summary: str = ""

    @property
    def id(self) -> str:
        """The Gymnasium id."""
        return f"textgym/{self.name}-v{self.version}"


_entries: dict[str, TaskEntry] = {}


def register_task(
    name: str, builder: Builder | str, version: int = 0, family: str = "text", summary: str = ""
) -> TaskEntry:
    """Enter a task into the catalogue. The arguments are those of `TaskEntry`.

    Raises: ValueError if the name is taken by another builder or is not made of letters and digits.
    """
    if not name.isidentifier():
        raise ValueError(
            f"name={name!r}: allowed are letters, digits and underscores, not starting with a digit"
        )
    entry = TaskEntry(name, builder, version, family, summary)
    if name in _entries and _entries[name] != entry:
        raise ValueError(f"name={name!r}: there is a task of this name already ({_entries[name].id})")
    _entries[name] = entry
    return entry


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    _load_builtin()
    return sorted(_entries)


def task_entry(name: str) -> TaskEntry:
    """The catalogue's line for a name. Raises: ValueError for an unknown one."""
    _load_builtin()
    if name not in _entries:
        raise ValueError(not_one_of("task", name, _entries))
    return _entries[name]


def task_builder(name: str) -> Builder:
    """The function that makes a task; its docstring describes it. Raises: ValueError for an unknown name."""
    builder = task_entry(name).builder
    if isinstance(builder, str):
        module, _, function = builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
    assert callable(builder)
    return builder


def make_task(name: str, **options: Any) -> Task:
    """Build a task.

    Args:
        name: one of `task_names()`.
        options: what the task's builder takes.
    Raises: ValueError for an unknown name; TypeError for an unknown option.
    """
    builder = task_builder(name)
    parameters = inspect.signature(builder).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                allowed = ", ".join(parameters)
                near = did_you_mean(option, [*parameters, *_ENVIRONMENT_ARGUMENTS])
                if option in _ENVIRONMENT_ARGUMENTS:
                    near = f" {option!r} belongs to an environment, some to the vector one alone."
                # Python's own phrase: TorchRL's GymEnv looks for it to learn which arguments to leave out.
                raise TypeError(
                    f"task {name!r} got an unexpected keyword argument {option!r}. Allowed are: {allowed}.{near}"
                )
    task: Task = builder(**options)
    return task


def _load_builtin() -> None:
    importlib.import_module("textgym.tasks")
