"""A searching agent as a folder: its tree as safetensors, the rest as JSON, written atomically."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from textgym.files import replace_folder, write_json
from textgym.rewards import TextGymWarning
from textgym_agents.saved import count, head_of, read_saved

_COUNTERS = ("iteration", "episodes")
_SEARCH_COUNTERS = ("searches", "scored")


def write_tree_agent(agent: Any, path: Path) -> None:
    """Writes tree, settings and counters of a searching agent to `path`, replacing what was there."""
    replace_folder(path, lambda folder: _write(agent, folder))


def _write(agent: Any, folder: Path) -> None:
    save_file(agent.planner.forest.tensors(), folder / "tree.safetensors")
    state = head_of(agent) | {"scorer": agent.task.scorer.state_dict()}
    counters = {name: getattr(agent, name) for name in _COUNTERS}
    counters |= {name: getattr(agent.planner, name) for name in _SEARCH_COUNTERS}
    write_json(folder / "agent.json", state | counters)


def read_tree_agent(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_tree_agent` wrote. A guide that was given as an object is not in the folder.

    Raises: ValueError if there is no agent of this kind at `path`, or its tree does not fit the task.
    """
    return read_saved(path, kind.name, lambda state: _read(kind, path, task, state))


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]))
    for names, holder in ((_COUNTERS, agent), (_SEARCH_COUNTERS, agent.planner)):
        for name in names:
            setattr(holder, name, count(state, name))
    if state["task"] != task.name:
        warnings.warn(
            f"path={str(path)!r}: this tree is of task {state['task']!r:.80}; on {task.name!r} search starts anew",
            TextGymWarning,
            stacklevel=6,
        )
        return agent
    task.scorer.load_state_dict(state["scorer"])
    tensors = load_file(path / "tree.safetensors")
    if tensors["actions"].shape != (len(tensors["lengths"]), agent.planner.forest.candidates):
        raise ValueError(
            f"path={str(path)!r}: its nodes have {tensors['actions'].shape[-1]} candidates, "
            f"the task and the settings have {agent.planner.forest.candidates}"
        )
    parts = np.split(tensors["tokens"], np.cumsum(tensors["lengths"])[:-1]) if len(tensors["lengths"]) else []
    found = [agent.planner.finder.find(tuple(part.tolist())) for part in parts]
    states = [
        replace(own, potential=potential)
        for (_, own), potential in zip(found, tensors["potentials"].tolist(), strict=True)
    ]
    agent.planner.forest.restore(states, [split for split, _ in found], tensors)
    return agent
