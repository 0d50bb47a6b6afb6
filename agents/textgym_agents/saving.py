"""What every saved agent has in common: its agent.json, and how it is read where anything in it may be damaged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from textgym.files import check_files, read_json, reading, recover_folder
from textgym.rewards import TextGymWarning
from textgym.rewards.calling import is_finite
from textgym_agents.config import MOST

FORMAT = 1
Built = TypeVar("Built")


def head_of(agent: Any) -> dict[str, Any]:
    """Return what agent.json says of every agent."""
    return {"format": FORMAT, "agent": agent.name, "task": agent.task.name, "config": asdict(agent.config)}


def read_saved(
    path: Path, name: str, build: Callable[[dict[str, Any]], Built], task: Any = None, level: int = 2
) -> Built:
    """Read a saved agent.

    Args:
        path: its folder. name: the agent's.
        build: from what agent.json holds to the agent; whatever it raises is told in one line.
        task: warns where the agent was trained on another one; None: it does not matter.
        level: stack level of that warning, seen from the caller.
    Raises: ValueError if there is no agent of this name at `path`, or what there is cannot be read.
    """
    recover_folder(path)
    if not os.path.lexists(path / "agent.json"):
        raise ValueError(f"path={str(path)!r}: no saved agent there")
    check_files(path)
    state = read_json(path / "agent.json")
    if state.get("agent") != name or state.get("format") != FORMAT:
        raise ValueError(
            f"path={str(path)!r}: holds agent {state.get('agent')!r:.80} in format {state.get('format')!r:.80}; "
            f"allowed is {name!r} in format {FORMAT}"
        )
    if task is not None and state.get("task") != task.name:
        warnings.warn(
            f"path={str(path)!r}: this agent was trained on task {state.get('task')!r:.80}, "
            f"it is used on {task.name!r}",
            TextGymWarning,
            stacklevel=level + 1,
        )
    with reading(path, "the saved agent"):
        return build(state)


def count(state: Mapping[str, Any], name: str, least: int = 0, most: int = MOST) -> int:
    """Return a counter of a saved state. Raises: KeyError without it; ValueError unless it is in least..most."""
    value = state[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}={value!r:.80}: allowed is an integer in {least}..{most}")
    return value


def number(state: Mapping[str, Any], name: str) -> float:
    """Return a finite number of a saved state. Raises: KeyError without it; ValueError for anything else."""
    value = state[name]
    if not is_finite(value):
        raise ValueError(f"{name}={value!r:.80}: allowed is a finite number")
    return float(value)


def flag(state: Mapping[str, Any], name: str) -> bool:
    """Return a truth value of a saved state. Raises: KeyError without it; ValueError for anything else."""
    if not isinstance(state[name], bool):
        raise ValueError(f"{name}={state[name]!r:.80}: allowed is true or false")
    return bool(state[name])
