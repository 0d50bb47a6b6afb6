"""Agents of Stable-Baselines3 as safetensors and JSON; nothing is pickled."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from textgym.files import replace_folder, write_json
from textgym_agents.lm.checkpoint import check_moments
from textgym_agents.saving import count, flag, head_of, read_saved

_MOST_ROWS = 2**16
_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
_INTEGER = "#int"


def write_agent(agent: Any, path: Path) -> None:
    """Writes an agent to `path`, replacing what was there."""
    replace_folder(path, lambda folder: _write(agent, folder))


def _write(agent: Any, folder: Path) -> None:
    model = agent.model
    save_file(flat(parameters(model)), folder / "parameters.safetensors")
    replay = getattr(model, "replay_buffer", None)
    state = head_of(agent) | {
        "iteration": agent.iteration,
        "episodes": agent.episodes,
        "budget": agent.budget,
        "rows": model.n_envs,
        "counters": {name: int(getattr(model, name)) for name in _COUNTERS if hasattr(model, name)},
        "replay": None if replay is None else {"position": replay.pos, "full": replay.full},
        "scorer": agent.task.scorer.state_dict(),
    }
    if replay is not None:
        save_arrays(_replay_arrays(replay), folder / "replay.safetensors")
    write_json(folder / "agent.json", state)


def read_agent(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_agent` wrote.

    Raises: ValueError if there is no agent of this kind at `path`, or it does not fit the task.
    """
    return read_saved(path, kind.name, lambda state: _read(kind, path, task, state), task, level=2)


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]), rows=count(state, "rows", 1, _MOST_ROWS))
    restore(agent.model, nested(load_file(path / "parameters.safetensors")))
    for name in _COUNTERS:
        if hasattr(agent.model, name):
            setattr(agent.model, name, count(state["counters"], name))
    if state["replay"] is not None:
        replay = agent.model.replay_buffer
        _fill(replay, load_arrays(path / "replay.safetensors"))
        replay.pos = count(state["replay"], "position", most=replay.buffer_size - 1)
        replay.full = flag(state["replay"], "full")
    for name in ("iteration", "episodes", "budget"):
        setattr(agent, name, count(state, name))
    if state["task"] == task.name:
        task.scorer.load_state_dict(state["scorer"])
    return agent


# Parameters


def parameters(model: Any) -> dict[str, Any]:
    """Networks, optimisers and loose variables of a model: name -> state dict or tensor."""
    loose = {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]}
    return {**model.get_parameters(), **loose}


def restore(model: Any, saved: dict[str, Any]) -> None:
    """Puts what `parameters` gave into a model that was built alike."""
    saved = dict(saved)
    for name in model._get_torch_save_params()[1]:
        getattr(model, name).data.copy_(saved.pop(name))
    current = model.get_parameters()
    for name, value in current.items():
        if "param_groups" in value:  # an optimiser: its settings are those of the config
            state = _by_number(saved.get(name, {}).get("state", {}))
            groups = attrgetter(name)(model).param_groups
            check_moments([each for group in groups for each in group["params"]], state)
            saved[name] = {**value, "state": state}
    model.set_parameters(saved, exact_match=True)


def _by_number(state: dict[str, Any]) -> dict[int, Any]:
    return {int(number): entries for number, entries in state.items()}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Nested dicts of tensors and integers as one dict of tensors, keys joined by '/'; settings are left out."""
    result: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            result[f"{prefix}{name}"] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, int) and not isinstance(value, bool):
            result[f"{prefix}{name}{_INTEGER}"] = torch.tensor(value)
        elif isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}/")
    return result


def nested(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The reverse of `flat`."""
    tree: dict[str, Any] = {}
    for key, value in tensors.items():
        *path, name = key.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if name.endswith(_INTEGER):
            node[name.removesuffix(_INTEGER)] = int(value)
        else:
            node[name] = value
    return tree


# Replay


def _replay_arrays(replay: Any) -> dict[str, Any]:
    """The filled part of a replay buffer."""
    size = replay.buffer_size if replay.full else replay.pos
    return {name: np.ascontiguousarray(array[:size]) for name, array in _buffers(replay).items()}


def _fill(replay: Any, arrays: dict[str, Any]) -> None:
    for name, array in _buffers(replay).items():
        array[: len(arrays[name])] = arrays[name]


def _buffers(replay: Any) -> dict[str, Any]:
    """Every array of a replay buffer by a name of its own."""
    found: dict[str, Any] = {}
    for name in ("observations", "next_observations"):
        value = getattr(replay, name)
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}/{key}": array for key, array in parts.items()}
    names = ("actions", "rewards", "dones", "timeouts")
    return found | {name: getattr(replay, name) for name in names}
