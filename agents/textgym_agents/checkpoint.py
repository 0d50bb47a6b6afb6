"""An LM agent as a folder: a Hugging Face model, safetensors and JSON, written atomically."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from textgym.lm.backbone import is_peft
from textgym.lm.causal import load_adapter, load_causal_lm
from textgym.rewards import TextGymWarning
from textgym_agents.storage import read_json, recover_folder, replace_folder, write_json

_FORMAT = 1


def write_checkpoint(agent: Any, path: Path) -> None:
    """Writes policy, reference, optimiser and counters of an LM agent to `path`, replacing what was there."""
    replace_folder(path, lambda folder: _write(agent, folder))


def _write(agent: Any, folder: Path) -> None:
    agent.policy.model.save_pretrained(folder / "model")
    agent.task.vocabulary.save(folder / "model")
    agent.reference.model.save_pretrained(folder / "reference")
    if is_peft(agent.policy.model):  # what was saved are adapters
        _without_adapter(agent.reference.model).save_pretrained(folder / "base")
    save_file(
        {k: v.contiguous() for k, v in agent.policy.value_head.state_dict().items()},
        folder / "value_head.safetensors",
    )
    tensors = {
        f"{index}.{key}": value.contiguous()
        for index, state in agent.optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }
    save_file(tensors, folder / "optimizer.safetensors")
    memory = agent.memory()
    if memory:
        save_file(memory, folder / "memory.safetensors")
    state = {
        "format": _FORMAT,
        "agent": agent.name,
        "task": agent.task.name,
        "config": asdict(agent.config),
        "iteration": agent.iteration,
        "episodes": agent.episodes,
        "budget": agent.budget,
        "beta": agent.controller.beta,
        "value_scale": agent.value_scale,
        "value_offset": agent.value_offset,
        "learning_rate": agent.learning_rate,
        "own_reference": agent.has_own_reference,
        "frozen": [name for name, p in agent.policy.named_parameters() if not p.requires_grad],
        "scorer": agent.task.scorer.state_dict(),
    }
    write_json(folder / "agent.json", state)


def _without_adapter(model: Any) -> Any:
    model = copy.deepcopy(model)
    return model.unload() if hasattr(model.base_model, "unload") else model.get_base_model()


def read_checkpoint(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_checkpoint` wrote.

    Raises: ValueError if there is no agent of this kind at `path`, or its model does not fit the task.
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
    except (KeyError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        message = f"path={str(path)!r}: the saved agent is damaged ({type(error).__name__}: {error})"
        raise ValueError(message.splitlines()[0]) from error


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]), model=_load_model(path, "reference"))
    agent.policy.model.load_state_dict(copy.deepcopy(_load_model(path, "model").state_dict()))
    frozen = set(state.get("frozen", ()))
    for name, parameter in agent.policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    agent.policy.value_head.load_state_dict(load_file(path / "value_head.safetensors"))
    _restore_optimizer(agent.optimizer, load_file(path / "optimizer.safetensors"))
    agent.controller.beta = state["beta"]
    for name in ("iteration", "episodes", "budget", "value_scale", "value_offset", "learning_rate"):
        setattr(agent, name, state[name])
    agent.has_own_reference = state["own_reference"]
    if (path / "memory.safetensors").exists():
        agent.restore_memory(load_file(path / "memory.safetensors"))
    if state["task"] == task.name:
        task.scorer.load_state_dict(state["scorer"])
    return agent


def _load_model(path: Path, name: str) -> Any:
    base = path / "base"
    return load_adapter(path / name, base) if base.is_dir() else load_causal_lm(path / name)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
