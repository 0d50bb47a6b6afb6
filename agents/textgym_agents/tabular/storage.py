"""A tabular agent as a folder: its table as safetensors, the rest as JSON, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from textgym.files import replace_folder, write_json
from textgym_agents.saved import count, head_of, read_saved

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
    state = head_of(agent) | {"actions": len(agent.actions), "scorer": agent.task.scorer.state_dict()}
    write_json(folder / "agent.json", state | {name: getattr(agent, name) for name in _COUNTERS})


def read_table_agent(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_table_agent` wrote.

    Raises: ValueError if there is no agent of this kind at `path`, or it has other actions than the task.
    """
    return read_saved(path, kind.name, lambda state: _read(kind, path, task, state), task, level=2)


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
        setattr(agent, name, count(state, name))
    if state["task"] == task.name:
        task.scorer.load_state_dict(state["scorer"])
    return agent
