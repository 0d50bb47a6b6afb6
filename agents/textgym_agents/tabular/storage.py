"""A tabular agent as a folder: its table as safetensors, the rest as JSON, written atomically."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from textgym.rewards import TextGymWarning
from textgym_agents.storage import read_json, recover_folder, replace_folder, write_json

_FORMAT = 1
_COUNTERS = ("iteration", "episodes", "budget")


def write_table_agent(agent: Any, path: Path) -> None:
    """Writes table, settings and counters of a tabular agent to `path`, replacing what was there."""
    replace_folder(path, lambda folder: _write(agent, folder))


def _write(agent: Any, folder: Path) -> None:
    table, count = agent.table, len(agent.table)
    tokens = [np.frombuffer(key, dtype=np.int32) for key in table.keys]
    tensors = {
        "tokens": np.concatenate([*tokens, np.zeros(0, dtype=np.int32)]),
        "lengths": np.array([len(ids) for ids in tokens], dtype=np.int32),
        "values": table.values[:count].copy(),
        "counts": table.counts[:count].copy(),
    }
    save_file(tensors, folder / "table.safetensors")
    state = {
        "format": _FORMAT,
        "agent": agent.name,
        "task": agent.task.name,
        "config": asdict(agent.config),
        "actions": len(agent.actions),
        "scorer": agent.task.scorer.state_dict(),
    }
    write_json(folder / "agent.json", state | {name: getattr(agent, name) for name in _COUNTERS})


def read_table_agent(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_table_agent` wrote.

    Raises: ValueError if there is no agent of this kind at `path`, or it has other actions than the task.
    """
    recover_folder(path)
    if not (path / "agent.json").exists():
        raise ValueError(f"path={str(path)!r}: no saved agent there")
    state = read_json(path / "agent.json")
    if state.get("agent") != kind.name or state.get("format") != _FORMAT:
        raise ValueError(
            f"path={str(path)!r}: holds agent {state.get('agent')!r} in format {state.get('format')!r}; "
            f"allowed is {kind.name!r} in format {_FORMAT}"
        )
    if state.get("task") != task.name:
        warnings.warn(
            f"path={str(path)!r}: this agent was trained on task {state.get('task')!r}, it is used on {task.name!r}",
            TextGymWarning,
            stacklevel=2,
        )
    try:
        return _read(kind, path, task, state)
    except (KeyError, TypeError, OSError, SafetensorError) as error:
        message = f"path={str(path)!r}: the saved agent is damaged ({type(error).__name__}: {error})"
        raise ValueError(message.splitlines()[0]) from error


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]))
    if state["actions"] != len(agent.actions):
        raise ValueError(
            f"path={str(path)!r}: its table has {state['actions']} actions, the task has {len(agent.actions)}"
        )
    tensors = load_file(path / "table.safetensors")
    parts = np.split(tensors["tokens"], np.cumsum(tensors["lengths"])[:-1]) if len(tensors["lengths"]) else []
    agent.table.restore([part.tobytes() for part in parts], tensors["values"], tensors["counts"])
    for name in _COUNTERS:
        setattr(agent, name, int(state[name]))
    if state["task"] == task.name:
        task.scorer.load_state_dict(state["scorer"])
    return agent
