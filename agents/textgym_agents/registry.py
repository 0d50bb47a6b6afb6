"""Find agents by name, by `module:Class` or by `hf:MODEL`, and make the environments that they learn in."""

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
"""Prefix of the folder or hub id of a causal LM or PEFT adapter that is used as an agent."""
TextEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
"""A TextGym environment, single or vector, possibly wrapped."""


def register_agent(name: str, target: type[Agent] | str, summary: str = "") -> Entry:
    """Register an agent under a name. Its constructor may take `task`, `env` and `config`, matched by name.

    Args:
        name: a text without spaces, ":" and "/".
        target: its class, or "module:Class", imported when it is first needed.
        summary: one line for people.
    Returns: the entry in the registry.
    Raises: ValueError for a bad name, or one that is taken by another class.
    """
    return AGENTS.add(Entry(name, target, summary))


def agent_names() -> list[str]:
    """Return the sorted names of all agents."""
    return sorted(AGENTS)


def agent_class(agent: str | type) -> type[Agent]:
    """Return the class for a name, `module:Class`, or `hf:FOLDER_OR_ID`; a class is only checked and returned.

    Raises: ValueError for an unknown name or a class that lacks a method of `Agent`; ImportError if the module cannot
        be imported.
    """
    if isinstance(agent, type):
        found: object = agent
    elif not isinstance(agent, str):
        raise ValueError(f"agent={shown(agent)}: allowed are a name, module:Class, hf:FOLDER_OR_ID and a class")
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

    It is the class's `config_type`, or else the annotation of the parameter.

    Raises: ValueError for a `config_type` that is not a dataclass, or that the constructor does not take.
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
    """Return the agent's config with these settings; None for an agent without a config.

    Raises: TypeError for an unknown setting, with the nearest name.
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
    """Return the episodes per iteration of an agent with this budget; 64 if its config has no batch.

    A batch of None is the largest of 64, 128 and 256 that gives sixteen iterations, or 64 if none does, and at least
    one group for each process.
    """
    batch = getattr(config, "batch", 64)
    if batch is not None:
        return int(batch)
    return max(_rows(episodes), int(getattr(config, "group", 1)) * processes)


def _rows(episodes: int) -> int:
    return min(max(64, 1 << (max(episodes, 16) // 16).bit_length() - 1), 256)


def with_batch(settings: TrainSettings, processes: int) -> TrainSettings:
    """Return a run's settings with the batch for its budget filled in, if the agent's config leaves it open."""
    config = make_config(agent_class(settings.agent), settings.config)
    if getattr(config, "batch", 0) is not None:
        return settings
    return replace(settings, config={**settings.config, "batch": batch_of(config, settings.episodes, processes)})


def batch_reason(settings: TrainSettings, processes: int) -> str:
    """Return a sentence on why a run has the batch of `with_batch`; "" if the agent's config does not leave it open."""
    config = make_config(agent_class(settings.agent), settings.config)
    if getattr(config, "batch", 0) is not None:
        return ""
    batch = batch_of(config, settings.episodes, processes)
    if batch > _rows(settings.episodes):
        why = f"a group of {batch // processes} episodes in each process"
    elif 16 * batch > settings.episodes:
        why = f"the smallest of 64, 128 and 256 episodes, as none leaves 16 iterations in {settings.episodes}"
    else:
        why = f"the largest of 64, 128 and 256 episodes that leaves 16 iterations in {settings.episodes}"
    return f"batch {batch}: {why}"


def make_agent(agent: str | type[Agent], env: TextEnv, config: object = None, **settings: object) -> Agent:
    """Make an untrained agent.

    Args:
        agent: a registered name, `module:Class`, `hf:FOLDER_OR_ID` or a class.
        env: an environment of the task, single or vector.
        config: the agent's config; None: it is made from `settings`.
        settings: fields of the agent's config.
    Raises: ValueError or TypeError, naming what is wrong and what is allowed.
    """
    found = agent_class(agent)
    if config is None:
        config = make_config(found, settings)
    elif settings:
        raise TypeError(f"{next(iter(settings))!r}: give a whole config or settings, not both")
    else:
        _check_config(found, config)
    taken = inspect.signature(found).parameters
    parts = {"env": env, "task": _task_for(agent, found, env), "config": config}
    made: Agent = found(**{name: part for name, part in parts.items() if name in taken})
    return made


def _check_config(agent: type, config: object) -> None:
    """Raise TypeError unless a config is of the class that an agent takes."""
    kind = config_class(agent)
    if kind is None and "config" in inspect.signature(agent).parameters:
        return  # it does not say which
    if kind is None or not isinstance(config, kind):
        allowed = "None" if kind is None else f"a {kind.__name__}, or its fields as settings"
        raise TypeError(f"config={shown(config)}: of {agent.__name__} allowed is {allowed}")


def load_agent(path: str | Path, env: TokenVectorEnv, agent: str | None = None, trust_pickle: bool = False) -> Agent:
    """Return a saved agent, ready to act or to continue learning.

    Args:
        path: the folder that `save` wrote, or a run folder that contains it as `checkpoint`; or a .zip file of a
            Stable-Baselines3 model, which can only act.
        env: an environment of the task.
        agent: its name or `module:Class`; None: the registered name in the folder. Required for a .zip.
        trust_pickle: must be True to load a .zip, because that runs the code in it.
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
    """Load the saved agent that guides another one on a task, see `load_agent`."""
    return load_agent(path, TokenVectorEnv(task, 1, autoreset_mode=AutoresetMode.DISABLED))


def find_guide(path: str | Path, task: Task) -> Agent | None:
    """Return the result of `load_guide`, or None if there is neither a saved agent nor a run with one."""
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
    """Make the vector environment that agents learn in; it waits for `reset` when all episodes have ended.

    Args:
        env_id: an id as for `gymnasium.make_vec`; the module of `module:ID` may be in the current folder.
        num_envs: number of sub-environments.
        options: options of the environment and its task.
    """
    if ":" in env_id:
        import_user_module(env_id.partition(":")[0])
    made = gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **options)
    return cast(TokenVectorEnv, made)


def with_model(env_id: str, options: JsonObject, model: str | None) -> JsonObject:
    """Return the environment options for a training that starts from a model.

    If they name neither tokenizer nor reference, and the model's tokenizer differs from the built-in one, the model
    becomes the reference: a task of your own then takes its tokenizer, vocabulary, stop tokens and chat template.

    Args:
        env_id: the full id. options: the given options. model: a folder or hub id; None for none.
    """
    from textgym.codecs.sources import model_tokenizer

    name = env_id.removeprefix("textgym/")
    if not model or options.keys() & {"tokenizer", "reference"} or name not in TASKS:
        return options
    own = "tokenizer" in inspect.signature(TASKS.load(name)).parameters and model_tokenizer(model) is not None
    return options | {"reference": model} if own else options
