"""Looking at an agent without moving it: some are other agents after they were asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from textgym import TokenVectorEnv
from textgym_agents.protocol import Agent
from textgym_agents.registry import load_agent


def is_moved_by_questions(agent: Agent, task: Any) -> bool:
    """Whether acting changes what an agent does later: it keeps what a search finds, or draws its tokens itself."""
    if getattr(agent, "plans", False):
        return True
    env = TokenVectorEnv(task, 1, split="eval", autoreset_mode=AutoresetMode.DISABLED)
    return agent.log_probs(env.reset(seed=0)[0]) is None


@contextmanager
def at_rest(agent: Agent, name: str, env: Any) -> Iterator[Agent]:
    """The agent as it can be evaluated: a saved and loaded copy where questions would move it.

    So learning does not depend on how often it is looked at, and an evaluation not on those before it.

    Args:
        name: a registered name, or "module:Class". env: an environment of the task.
    """
    if not is_moved_by_questions(agent, env.unwrapped.task):
        yield agent
        return
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        yield load_agent(Path(folder) / "agent", env, name)
