"""Models of Stable-Baselines3 as tensors and JSON values; nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from textgym.checks import JsonObject
from textgym_agents.lm.checkpoint import check_moments
from textgym_agents.saving import LoadedArrays, count, flag

Tree = dict[str, Any]
"""Nested dicts of tensors, integers and settings, such as state dicts."""
_REPLAY = "replay/"
_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
_INTEGER = "#int"


def model_tensors(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Return parameters, optimisers and the filled part of the replay buffer of a model by name."""
    tensors = flat(parameters(model))
    replay = replay_of(model)
    if replay is None:
        return tensors
    size = replay.buffer_size if replay.full else replay.pos
    return tensors | {
        f"{_REPLAY}{name}": torch.from_numpy(np.ascontiguousarray(array[:size]))
        for name, array in _buffers(replay).items()
    }


def model_state(model: BaseAlgorithm) -> JsonObject:
    """Return the counters of a model, and how far its replay buffer is filled (None without one), as JSON values."""
    replay = replay_of(model)
    return {
        "rows": model.n_envs,
        "counters": {name: int(getattr(model, name)) for name in _COUNTERS if hasattr(model, name)},
        "replay": None if replay is None else {"position": replay.pos, "full": replay.full},
    }


def restore_model(model: BaseAlgorithm, tensors: Mapping[str, Tensor], state: JsonObject) -> None:
    """Put back what `model_tensors` and `model_state` returned into a model that was built alike.

    Raises: ValueError, KeyError or RuntimeError for what does not fit.
    """
    restore(model, nested({name: t for name, t in tensors.items() if not name.startswith(_REPLAY)}))
    for name in _COUNTERS:
        if hasattr(model, name):
            setattr(model, name, count(state["counters"], name))
    replay = replay_of(model)
    if replay is not None:
        for name, array in _buffers(replay).items():
            saved = tensors[f"{_REPLAY}{name}"].numpy()
            array[: len(saved)] = saved
        replay.pos = count(state["replay"], "position", most=replay.buffer_size - 1)
        replay.full = flag(state["replay"], "full")


def parameters(model: BaseAlgorithm) -> Tree:
    """Return networks, optimisers and loose variables of a model: name -> state dict or tensor."""
    loose = {name: getattr(model, name).detach() for name in model._get_torch_save_params()[1]}
    return {**model.get_parameters(), **loose}


def restore(model: BaseAlgorithm, saved: Tree) -> None:
    """Put what `parameters` returned into a model that was built alike."""
    saved = dict(saved)
    for name in model._get_torch_save_params()[1]:
        getattr(model, name).data.copy_(saved.pop(name))
    current = model.get_parameters()
    for name, value in current.items():
        if "param_groups" in value:  # an optimiser: its settings are those of the config
            numbered = saved.get(name, {}).get("state", {})
            state = {int(number): entries for number, entries in numbered.items()}
            groups = attrgetter(name)(model).param_groups
            check_moments([each for group in groups for each in group["params"]], state)
            saved[name] = {**value, "state": state}
    model.set_parameters(saved, exact_match=True)


def flat(tree: Tree, prefix: str = "") -> dict[str, Tensor]:
    """Return nested dicts of tensors and integers as one dict, keys joined by '/'; settings are left out."""
    result: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            result[f"{prefix}{name}"] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, int) and not isinstance(value, bool):
            result[f"{prefix}{name}{_INTEGER}"] = torch.tensor(value)
        elif isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}/")
    return result


def nested(tensors: dict[str, Tensor]) -> Tree:
    """Return what `flat` flattened."""
    tree: Tree = {}
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


def replay_of(model: BaseAlgorithm) -> ReplayBuffer | None:
    """Return the replay buffer of a model; None where it has none."""
    return model.replay_buffer if isinstance(model, OffPolicyAlgorithm) else None


def _buffers(replay: ReplayBuffer) -> LoadedArrays:
    """Return every array of a replay buffer by a name of its own."""
    found: LoadedArrays = {}
    for name in ("observations", "next_observations"):
        value = getattr(replay, name)
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}/{key}": array for key, array in parts.items()}
    names = ("actions", "rewards", "dones", "timeouts")
    return found | {name: getattr(replay, name) for name in names}
