"""Open the policy that a flag names, together with its environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from textgym import TokenVectorEnv
from textgym.checks import JsonObject
from textgym.commands.console import UsageError, use_all_cores
from textgym.commands.flags import env_options, import_user_module
from textgym_agents.protocol import Agent
from textgym_agents.registry import agent_names, load_agent, make_agent, make_env
from textgym_agents.training.folder import RunFolder


def open_policy(
    env_id: str,
    policy: str,
    options: Sequence[str] = (),
    agent_class: str | None = None,
    flag: str = "--agent",
    trust_pickle: bool = False,
) -> tuple[TokenVectorEnv, Agent]:
    """Return an environment and an agent on it.

    Args:
        policy: a checkpoint or run folder, a .zip of Stable-Baselines3, a registered agent, or module:Class.
        options: NAME=VALUE words; without any, those of the run, where `policy` is one.
        agent_class: module:Class of the agent in the folder, where it is no registered one, or the agent of a .zip.
        flag: what the policy was given as, for errors.
        trust_pickle: whether a .zip may be read, which runs the code in it.
    Raises: UsageError if `policy` is none of these.
    """
    for target in (policy if ":" in policy else "", agent_class or ""):
        if ":" in target:
            import_user_module(target.partition(":")[0])
    folder = Path(policy)
    values = env_options(options) or run_options(folder) or {}
    if policy != "random":  # which needs no torch
        use_all_cores()
    if folder.is_dir() or folder.is_file():
        env = make_env(env_id, 1, **values)
        return env, load_agent(folder, env, agent_class, trust_pickle)
    if policy not in agent_names() and ":" not in policy:
        names = ", ".join(agent_names())
        raise UsageError(f"{flag} {policy!r}: neither a folder nor one of {names} nor module:Class")
    env = make_env(env_id, 1, **values)
    return env, make_agent(policy, env)


def run_options(folder: Path) -> JsonObject | None:
    """Return the options of the environment that a run with a checkpoint was trained in; None if there is no such run.

    Raises: ValueError that names the file if it holds no options.
    """
    if not ((folder / "config.json").exists() and (folder / "checkpoint").is_dir()):
        return None
    values = RunFolder(folder).config().get("env", {})
    if not isinstance(values, dict):
        raise ValueError(f"{folder / 'config.json'}: env={values!r}, allowed is a JSON object of options")
    return values


def guided(env: TokenVectorEnv, agent: Agent, k: int) -> Agent:
    """Return the agent tilted by its own critic among its k likeliest tokens; the agent itself where k is 0.

    Raises: UsageError for k < 0; ValueError for an agent without a critic.
    """
    if k < 0:
        raise UsageError(f"--guide {k}: allowed is an integer >= 0")
    if not k:
        return agent
    from textgym_agents.algorithms.value_guided import ValueGuided, ValueGuidedConfig

    return ValueGuided(env.unwrapped.task, ValueGuidedConfig(k=k), guide=agent)
