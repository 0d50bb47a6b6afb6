"""Register every task as a Gymnasium environment."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from textgym.registry import TASKS, Factory, TaskEntry


def register_id(entry: TaskEntry) -> None:
    """Register `textgym/NAME-vN`, once."""
    if entry.id in registry:
        return
    register(
        id=entry.id,
        entry_point="textgym.env:TokenEnv",
        vector_entry_point="textgym.vector:TokenVectorEnv",
        order_enforce=False,  # TokenEnv raises ResetNeeded itself
        kwargs={"task": entry.key},
    )


def register_all() -> None:
    """Register the tasks that come with the package, and those of installed plug-ins."""
    for name in TASKS:
        register_id(TASKS.entry(name))


def register_task(
    name: str, builder: Factory | str, version: int = 0, family: str = "text", summary: str = ""
) -> TaskEntry:
    """Give a task of your own a name and an id.

    Args:
        name: as in `textgym/NAME-vN`.
        builder: a function from the task's options to a `Task`, or "module:function", imported when first needed.
        version: N; raise it when reward, observation or termination changes. The old one may stay beside the new one.
        family, summary: for people.
    Raises: ValueError if name and version are taken by another builder, or the name is not made of letters and digits.
    """
    entry = TASKS.add(TaskEntry(name, builder, summary, version=version, family=family))
    register_id(entry)
    return entry
