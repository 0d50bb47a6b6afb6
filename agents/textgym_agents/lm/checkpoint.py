"""An LM agent as a folder: a Hugging Face model, safetensors and JSON, written atomically."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from textgym.files import replace_folder, write_json
from textgym.lm.backbone import is_peft
from textgym.lm.causal import load_adapter, load_causal_lm
from textgym_agents.saving import count, flag, head_of, number, read_saved

_COUNTERS = ("iteration", "episodes", "budget")


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
    state = head_of(agent) | {
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
    return read_saved(path, kind.name, lambda state: _read(kind, path, task, state), task)


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]), model=_load_model(path, "reference"))
    agent.policy.model.load_state_dict(copy.deepcopy(_load_model(path, "model").state_dict()))
    frozen = set(state.get("frozen", ()))
    for name, parameter in agent.policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    agent.policy.value_head.load_state_dict(load_file(path / "value_head.safetensors"))
    _restore_optimizer(agent.optimizer, load_file(path / "optimizer.safetensors"))
    agent.controller.beta = number(state, "beta")
    for name in _COUNTERS:
        setattr(agent, name, count(state, name))
    for name in ("value_offset", "learning_rate"):
        setattr(agent, name, number(state, name))
    agent.value_scale = None if state["value_scale"] is None else number(state, "value_scale")
    agent.has_own_reference = flag(state, "own_reference")
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
    check_moments([each for group in optimizer.param_groups for each in group["params"]], state)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def check_moments(parameters: Sequence[torch.Tensor], state: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises ValueError unless an optimiser's saved state has the same entries, of fitting shapes, for its parameters.

    torch takes whatever there is and fails at the next step.
    """
    names: set[str] = set().union(*state.values())
    for index, entries in state.items():
        shapes = [(), tuple(parameters[index].shape)]
        for name in names:
            if name not in entries or tuple(getattr(entries[name], "shape", ())) not in shapes:
                raise ValueError(
                    f"the optimiser's {index}.{name} is missing or has another shape than its parameter"
                )
