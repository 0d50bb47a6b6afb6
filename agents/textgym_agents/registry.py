"""Agents by name, by `module:Class` or by `hf:MODEL`, and the environments that they learn in."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from textgym import Task, TokenVectorEnv
from textgym.checks import JsonObject, did_you_mean, not_one_of, shown
from textgym.files import read_json, recover_folder
from textgym.registry import AGENTS, TASKS, Entry, Factory, import_user_module, load_target
from textgym_agents.protocol import METHODS, Agent, complete

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from textgym_agents.config import TrainSettings

HF = "hf:"
"""What the name of a causal LM or PEFT adapter as an agent begins with; its folder or hub id follows."""
TextEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""An environment of TextGym, single or vector, which may be wrapped."""


def register_agent(name: str, target: type[Agent] | str, summary: str = "") -> Entry:
    """Give an agent a name. Its constructor may take `task`, `env` and `config`, which are found by name.

    Args:
        name: a text without spaces, ":" and "/".
        target: its class, or "module:Class", imported when it is first needed.
        summary: one line for people.
    Returns: what the registry keeps of it.
    Raises: ValueError for a bad name, or one that is taken by another class.
    """
    return AGENTS.add(Entry(name, target, summary))


def agent_names() -> list[str]:
    """Return the names of all agents, sorted."""
    return sorted(AGENTS)


def agent_class(agent: str | type) -> type[Agent]:
    """Return the class of a name, of `module:Class`, or of `hf:FOLDER_OR_ID`; a class itself is checked alone.

    Raises: ValueError for an unknown name or a class that lacks a method of `Agent`; ImportError if the module cannot
        be imported.
    """
    if isinstance(agent, type):
        found: object = agent
    elif agent.startswith(HF):
        from textgym_agents.algorithms.fixed import pretrained

        found = pretrained(agent)
    elif ":" in agent:
        found = load_target(agent, "agent")
    elif agent in AGENTS:
        found = AGENTS.load(agent)
    else:
        raise ValueError(f"{not_one_of('agent', agent, AGENTS)} A class of your own is module:Class, a model hf:FOLDER")
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or missing:
        what = f"has no {', '.join(missing)}" if isinstance(found, type) else "is no class"
        raise ValueError(f"agent {agent!r}: it {what}; allowed are classes with {', '.join(METHODS)}")
    return complete(found)


def config_class(agent: type) -> type[DataclassInstance] | None:
    """Return the dataclass that an agent's constructor takes as `config`, or None if it takes none.

    That is its `config_type`, or else what the parameter is annotated with.

    Raises: ValueError for a `config_type` that is no dataclass, or that the constructor does not take.
    """
    hint: object = complete(agent).config_type
    takes = "config" in inspect.signature(agent).parameters
    if hint is not None and not (takes and isinstance(hint, type) and is_dataclass(hint)):
        raise ValueError(
            f"agent {agent.__name__}: config_type={shown(hint)}; allowed is a dataclass that its constructor takes as "
            "config: __init__(self, task, config)"
        )
    if not takes:
        return None
    if hint is None:
        hint = typing.get_type_hints(agent.__init__).get("config")  # type: ignore[misc]
    candidates = [part for part in (typing.get_args(hint) or (hint,)) if part is not NoneType]
    found = candidates[0] if len(candidates) == 1 else None
    return found if is_dataclass(found) and isinstance(found, type) else None


def make_config(agent: type, settings: Mapping[str, object]) -> DataclassInstance | None:
    """Return the agent's config with these settings; None for an agent without one.

    Raises: TypeError for a setting that it does not have, with the nearest one.
    """
    kind = config_class(agent)
    allowed = [] if kind is None else [field.name for field in fields(kind)]
    for name in settings:
        if name not in allowed:
            listed = ", ".join(allowed) or "(none)"
            raise TypeError(
                f"{name!r} is not a setting of {agent.__name__}. Allowed are: {listed}.{did_you_mean(name, allowed)}"
            )
    return None if kind is None else cast(Factory, kind)(**settings)


def batch_of(config: object, episodes: int, processes: int = 1) -> int:
    """Return the episodes of an iteration of an agent with this budget; 64 where its config has no batch.

    A batch that is None is the largest of 64, 128 and 256 that leaves sixteen iterations, 64 where none does, and a
    group for each process at least.
    """
    batch = getattr(config, "batch", 64)
    if batch is not None:
        return int(batch)
    rows = min(max(64, 1 << (max(episodes, 16) // 16).bit_length() - 1), 256)
    return max(rows, int(getattr(config, "group", 1)) * processes)


def with_batch(settings: TrainSettings, processes: int) -> TrainSettings:
    """Return a run's settings with the batch that its budget gives, where the agent's config leaves it open."""
    config = make_config(agent_class(settings.agent), settings.config)
    if getattr(config, "batch", 0) is not None:
        return settings
    return replace(settings, config={**settings.config, "batch": batch_of(config, settings.episodes, processes)})


def make_agent(agent: str | type[Agent], env: TextEnv, config: object = None, **settings: object) -> Agent:
    """Make an untrained agent.

    Args:
        agent: a registered name, `module:Class`, `hf:FOLDER_OR_ID` or a class.
        env: an environment of the task, single or vector.
        config: the agent's config; None makes one of `settings`.
        settings: fields of the agent's config.
    Raises: ValueError or TypeError, naming what is wrong and what is allowed.
    """
    found = agent_class(agent)
    if config is None:
        config = make_config(found, settings)
    elif settings:
        raise TypeError(f"{next(iter(settings))!r}: give a whole config or settings, not both")
    taken = inspect.signature(found).parameters
    parts = {"env": env, "task": _task_for(agent, found, env), "config": config}
    made: Agent = found(**{name: part for name, part in parts.items() if name in taken})
    return made


def load_agent(path: str | Path, env: TokenVectorEnv, agent: str | None = None, trust_pickle: bool = False) -> Agent:
    """Read a saved agent, ready to act or to go on learning.

    Args:
        path: the folder that `save` wrote, or a run's folder that has it as `checkpoint`; or the .zip file of a model
            that Stable-Baselines3 itself saved, which can act only.
        env: an environment of the task.
        agent: its name or `module:Class`; None takes the registered name that the folder holds. A .zip has to have it.
        trust_pickle: reading a .zip runs the code in it; without this it is refused.
    Raises: ValueError if there is no such agent.
    """
    folder = Path(path)
    if folder.is_file():
        from textgym_agents.sb3.agent import load_zip

        return load_zip(path, env, None if agent is None else agent_class(agent), trust_pickle)
    if not (folder / "agent.json").exists():
        recover_folder(folder / "checkpoint")
        if not (folder / "checkpoint").is_dir() and (folder / "metrics.jsonl").exists():
            raise ValueError(f"path={str(path)!r}: it is a run without a checkpoint; allowed is one that has saved")
        folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if agent is None:
        if not (folder / "agent.json").exists():
            raise ValueError(f"path={str(path)!r}: no saved agent there")
        # A file never chooses what is imported: only registered names are followed, and models, which are data.
        agent = str(read_json(folder / "agent.json").get("agent"))
        if agent not in AGENTS and not agent.startswith(HF):
            raise ValueError(f"path={str(path)!r}: {not_one_of('agent', agent, AGENTS)} Name its class")
    found = agent_class(agent)
    _task_for(agent, found, env)
    loaded = found.load(folder, env)
    if not isinstance(loaded, Agent):
        raise ValueError(
            f"agent {agent!r}: its load returned {shown(loaded)}; allowed is an agent, as cls(task) makes it"
        )
    return loaded


def load_guide(path: str | Path, task: Task) -> Agent:
    """Read the saved agent that guides another one on a task, see `load_agent`."""
    return load_agent(path, TokenVectorEnv(task, 1, autoreset_mode=AutoresetMode.DISABLED))


def find_guide(path: str | Path, task: Task) -> Agent | None:
    """Return what `load_guide` does, None where there is neither a saved agent nor a run with one."""
    saved = any((Path(path) / name).exists() for name in ("agent.json", "checkpoint"))
    return load_guide(path, task) if saved else None


def _task_for(agent: object, kind: type, env: TextEnv) -> Task | None:
    """Return the task of `env`.

    Raises: ValueError if the agent's constructor takes one and there is none.
    """
    task = getattr(getattr(env, "unwrapped", env), "task", None)
    if "task" in inspect.signature(kind).parameters and not isinstance(task, Task):
        raise ValueError(
            f"env={env!r}: it has no task of TextGym, which agent {agent!r} needs; allowed are TextGym's environments, "
            "such as make_env('textgym/Bandit-v0', 16)"
        )
    return task


def make_env(env_id: str, num_envs: int, **options: Any) -> TokenVectorEnv:
    """Make the vector environment that agents learn in: it waits for `reset` when all episodes have ended.

    Args:
        env_id: as for `gymnasium.make_vec`; the module of `module:ID` may lie in the current folder.
        num_envs: sub-environments.
        options: of the environment and its task.
    """
    if ":" in env_id:
        import_user_module(env_id.partition(":")[0])
    made = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **options)
    return cast(TokenVectorEnv, made)


def with_model(env_id: str, options: JsonObject, model: str | None) -> JsonObject:
    """Return the options of an environment for a training that starts from a model.

    Where they name neither tokenizer nor reference, and the model has a tokenizer other than the built-in one, it is
    the reference: a task of one's own then takes tokenizer, vocabulary, stop tokens and chat template from it.

    Args:
        env_id: its full id. options: those that were given. model: a folder or hub id; None for none.
    """
    from textgym.codecs.sources import model_tokenizer

    name = env_id.removeprefix("textgym/")
    if not model or options.keys() & {"tokenizer", "reference"} or name not in TASKS:
        return options
    own = "tokenizer" in inspect.signature(TASKS.load(name)).parameters and model_tokenizer(model) is not None
    return options | {"reference": model} if own else options
