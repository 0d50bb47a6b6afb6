"""Registers every task of the catalogue as a Gymnasium environment."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from textgym import catalog
from textgym.catalog import Builder, TaskEntry


def register_id(entry: TaskEntry) -> None:
    """Register `textgym/Name-vN`, once."""
    if entry.id in registry:
        return
    register(
        id=entry.id,
        entry_point="textgym.env:TokenEnv",
        vector_entry_point="textgym.vector:TokenVectorEnv",
        order_enforce=False,  # TokenEnv raises ResetNeeded itself
        kwargs={"task": entry.name},
    )


def register_all() -> None:
    """Register every task of the catalogue."""
    for name in catalog.task_names():
        register_id(catalog.task_entry(name))


def register_task(
    name: str, builder: Builder | str, version: int = 0, family: str = "text", summary: str = ""
) -> TaskEntry:
    """Enter a task of your own into the catalogue and register its id; for the arguments see `TaskEntry`."""
    entry = catalog.register_task(name, builder, version, family, summary)
    register_id(entry)
    return entry
