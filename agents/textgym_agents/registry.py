"""Agents by name or by `module:Class`, and the environments that they learn in."""

from __future__ import annotations

import importlib
import inspect
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

import textgym  # noqa: F401  (registers the ids)
from textgym import Task
from textgym.checks import did_you_mean, not_one_of
from textgym.files import read_json, recover_folder
from textgym_agents.protocol import METHODS, Agent, complete


@dataclass(frozen=True)
class AgentEntry:
    """One agent of the registry.

    Args:
        name: how it is asked for.
        target: its class, or "module:Class", imported when it is first needed.
        summary: one line for people.
    """

    name: str
    target: type | str
    summary: str = ""


_entries: dict[str, AgentEntry] = {}


def register_agent(name: str, target: type | str, summary: str = "") -> AgentEntry:
    """Enters an agent. Its constructor's parameters are found by name: `task`, `env` and `config`, any of them.

    Args:
        name, target, summary: see `AgentEntry`.
    Raises: ValueError if the name is taken by another class, or reads like `module:Class` or a path.
    """
    if not name or ":" in name or "/" in name:
        raise ValueError(f"name={name!r}: allowed is a text without ':' and '/'")
    entry = AgentEntry(name, target, summary)
    if name in _entries and _entries[name] != entry:
        raise ValueError(f"name={name!r}: there is an agent of this name already ({_entries[name].target})")
    _entries[name] = entry
    return entry


def agent_names() -> list[str]:
    """The names of all registered agents, sorted."""
    return sorted(_entries)


def agent_class(agent: str) -> type[Agent]:
    """The class of a registered name, or of `module:Class`.

    Raises: ValueError for an unknown name or a class that lacks a method of `Agent`; ImportError if the module cannot
        be imported.
    """
    target: type | str = agent
    if ":" not in agent:
        if agent not in _entries:
            raise ValueError(f"{not_one_of('agent', agent, _entries)} A class of your own is module:Class")
        target = _entries[agent].target
    found = _import(target) if isinstance(target, str) else target
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if not isinstance(found, type) or missing:
        what = f"has no {', '.join(missing)}" if isinstance(found, type) else "is no class"
        raise ValueError(f"agent {agent!r}: it {what}; allowed are classes with {', '.join(METHODS)}")
    return complete(found)


def config_class(agent: type) -> Any:
    """The dataclass that an agent's constructor takes as `config`, or None if it takes none."""
    if "config" not in inspect.signature(agent).parameters:
        return None
    hint = typing.get_type_hints(agent.__init__).get("config")  # type: ignore[misc]
    candidates = [part for part in (typing.get_args(hint) or (hint,)) if part is not NoneType]
    found = candidates[0] if len(candidates) == 1 else None
    return found if is_dataclass(found) and isinstance(found, type) else None


def make_config(agent: type, settings: dict[str, Any]) -> Any:
    """The agent's config with these settings; None for an agent without one.

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
    return None if kind is None else kind(**settings)


def make_agent(agent: str, env: Any, config: Any = None, **settings: Any) -> Agent:
    """Makes an untrained agent.

    Args:
        agent: a registered name or `module:Class`.
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


def load_agent(path: str | Path, env: Any, agent: str | None = None, trust_pickle: bool = False) -> Agent:
    """Reads a saved agent, ready to act or to go on learning.

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
        return _load_file(folder, env, agent, trust_pickle)
    if not (folder / "agent.json").exists():
        recover_folder(folder / "checkpoint")
        folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    if agent is None:
        if not (folder / "agent.json").exists():
            raise ValueError(f"path={str(path)!r}: no saved agent there")
        # A file never chooses what is imported: only registered names are followed.
        agent = str(read_json(folder / "agent.json").get("agent"))
        if agent not in _entries:
            raise ValueError(f"path={str(path)!r}: {not_one_of('agent', agent, _entries)} Name its class")
    found = agent_class(agent)
    _task_for(agent, found, env)
    return found.load(folder, env)


def _task_for(agent: str, kind: type, env: Any) -> Any:
    """What `env` holds as its task. Raises: ValueError if the agent's constructor takes one and there is none."""
    task = getattr(getattr(env, "unwrapped", env), "task", None)
    if "task" in inspect.signature(kind).parameters and not isinstance(task, Task):
        raise ValueError(
            f"env={env!r}: it has no task of TextGym, which agent {agent!r} needs; allowed are TextGym's environments, "
            "such as make_env('textgym/Bandit-v0', 16)"
        )
    return task


def _load_file(path: Path, env: Any, agent: str | None, trust_pickle: bool) -> Agent:
    from textgym_agents.sb3.pickled import load_zip

    if trust_pickle and agent is None:
        raise ValueError(
            f"path={str(path)!r}: a file does not say what it holds; name the agent, as sb3-ppo (--agent-class)"
        )
    return load_zip(path, env, None if agent is None else agent_class(agent), trust_pickle)


def make_env(env_id: str, num_envs: int, **options: Any) -> Any:
    """The vector environment that agents of this package learn in: it waits for `reset` when all episodes ended.

    Args:
        env_id: as for `gymnasium.make_vec`.
        num_envs: sub-environments.
        options: of the environment and its task.
    """
    return gym.make_vec(env_id, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **options)


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"agent {target!r}: allowed is module:Class")
    found = importlib.import_module(module)
    if not hasattr(found, name):
        raise ValueError(
            f"agent {target!r}: module {module!r} has no {name!r}.{did_you_mean(name, dir(found))}"
        )
    return getattr(found, name)


register_agent("lm-ppo", "textgym_agents.algorithms.ppo:LMPPO", "PPO on a causal LM with a KL penalty")
register_agent("a2c", "textgym_agents.algorithms.a2c:A2C", "advantage actor-critic on a causal LM")
register_agent(
    "best-of-n",
    "textgym_agents.algorithms.best_of_n:BestOfN",
    "the best of n completions of the reference; learns nothing",
)
register_agent(
    "behaviour-cloning",
    "textgym_agents.algorithms.behaviour_cloning:BehaviourCloning",
    "a causal LM that imitates demonstrations",
)
register_agent("dpo", "textgym_agents.algorithms.dpo:DPO", "direct preference optimisation of a causal LM")
register_agent(
    "grpo", "textgym_agents.algorithms.grpo:GRPO", "group relative policy optimisation on a causal LM"
)
register_agent("reinforce", "textgym_agents.algorithms.reinforce:Reinforce", "REINFORCE on a causal LM")
register_agent(
    "rejection",
    "textgym_agents.algorithms.rejection:Rejection",
    "rejection-sampling fine-tuning of a causal LM",
)
register_agent("rloo", "textgym_agents.algorithms.rloo:RLOO", "REINFORCE leave-one-out on a causal LM")
register_agent(
    "soft-q",
    "textgym_agents.algorithms.soft_q:SoftQ",
    "soft Q-learning with a causal LM's logits, from replay",
)
register_agent("q-learning", "textgym_agents.tabular.learners:QLearning", "Q-learning on a table of states")
register_agent("sarsa", "textgym_agents.tabular.learners:Sarsa", "SARSA on a table of states")
register_agent(
    "monte-carlo",
    "textgym_agents.tabular.learners:MonteCarlo",
    "Monte-Carlo control on a table of states",
)
register_agent("sb3-a2c", "textgym_agents.sb3.on_policy:SB3A2C", "Stable-Baselines3's A2C on token features")
register_agent(
    "sb3-ddpg", "textgym_agents.sb3.off_policy:SB3DDPG", "Stable-Baselines3's DDPG; points, nearest token"
)
register_agent("sb3-dqn", "textgym_agents.sb3.off_policy:SB3DQN", "Stable-Baselines3's DQN on token features")
register_agent(
    "sb3-maskable-ppo", "textgym_agents.sb3.on_policy:SB3MaskablePPO", "sb3-contrib's PPO with action masks"
)
register_agent("sb3-ppo", "textgym_agents.sb3.on_policy:SB3PPO", "Stable-Baselines3's PPO on token features")
register_agent(
    "sb3-qrdqn", "textgym_agents.sb3.off_policy:SB3QRDQN", "sb3-contrib's DQN over quantiles of the return"
)
register_agent(
    "sb3-recurrent-ppo", "textgym_agents.sb3.on_policy:SB3RecurrentPPO", "sb3-contrib's PPO with an LSTM"
)
register_agent(
    "sb3-sac", "textgym_agents.sb3.off_policy:SB3SAC", "Stable-Baselines3's SAC; points, nearest token"
)
register_agent(
    "sb3-td3", "textgym_agents.sb3.off_policy:SB3TD3", "Stable-Baselines3's TD3; points, nearest token"
)
register_agent("sb3-trpo", "textgym_agents.sb3.on_policy:SB3TRPO", "sb3-contrib's TRPO on token features")
register_agent(
    "alphazero", "textgym_agents.mcts.alphazero:AlphaZero", "tree search distilled into a causal LM"
)
register_agent(
    "value-guided",
    "textgym_agents.algorithms.value_guided:ValueGuided",
    "an agent's policy tilted by its critic, token by token",
)
register_agent("mcts", "textgym_agents.mcts.agent:MCTS", "Monte-Carlo tree search over the true model")
register_agent(
    "reference",
    "textgym_agents.algorithms.fixed:ReferenceAgent",
    "the task's reference policy; learns nothing",
)
register_agent(
    "random", "textgym_agents.algorithms.fixed:RandomAgent", "every allowed token alike; learns nothing"
)
