"""A model that Stable-Baselines3 itself saved (`model.save("model.zip")`) as an agent. Reading one runs its code."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm

from textgym.checks import Bools, Floats, Ints
from textgym.episodes import observation_space
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym.wrappers.actions import AllowedTokens, Table
from textgym.wrappers.base import Masks
from textgym_agents.protocol import Agent, Callback, Observation
from textgym_agents.sb3.agent import SB3Agent


class ZipAgent(Agent):
    """Acts as a model read from a .zip does. It cannot go on learning, nor be saved: its settings are not ours.

    Args:
        inner: the agent around the model. path: of the file, for messages.
    """

    def __init__(self, inner: SB3Agent, path: Path) -> None:
        self.name, self.task, self.model = inner.name, inner.task, inner.model
        self._inner, self._path = inner, path

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`."""
        return self._inner.act(observation, deterministic)

    def log_probs(self, observation: Observation) -> Floats | None:
        """See `Agent.log_probs`."""
        return self._inner.log_probs(observation)

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Raise ValueError."""
        raise ValueError(f"{self._path}: a model of a .zip can act, not learn; Stable-Baselines3 can train it")

    def save(self, path: str | Path) -> None:
        """Raise ValueError."""
        raise ValueError(f"{self._path}: a model of a .zip is saved by Stable-Baselines3 alone")

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> ZipAgent:
        """Raise ValueError: nothing was trusted."""
        raise ValueError(f"path={str(path)!r}: {_DANGER}")


_DANGER = (
    "Stable-Baselines3's own format holds pickles, and reading it runs whatever code is in the file. "
    "If you trust where it comes from, say trust_pickle=True (--trust-pickle)"
)


def load_zip(path: str | Path, env: TokenVectorEnv, kind: type[Agent] | None, trust_pickle: bool = False) -> ZipAgent:
    """Read a .zip of Stable-Baselines3 or sb3-contrib. With `trust_pickle`, this runs whatever code it holds.

    The model must observe what the environment gives, and its actions are all tokens by id, or those that
    `vocabulary.allowed` leaves, as `AllowedActions` numbers them.

    Args:
        path: the file. env: an environment of the task. kind: the agent's class, such as that of sb3-ppo.
        trust_pickle: whether the file may be read at all.
    Raises: ValueError if it may not, is no such file, or does not fit the class or the task.
    """
    file, where = Path(path), f"path={str(path)!r}"
    if not trust_pickle:
        raise ValueError(f"{where}: {_DANGER}")
    if kind is None or not issubclass(kind, SB3Agent) or not kind.reads_zip:
        raise ValueError(
            f"{where}: {getattr(kind, 'name', kind)!r} reads no .zip; allowed are sb3-a2c, sb3-dqn, sb3-maskable-ppo, "
            "sb3-ppo, sb3-qrdqn, sb3-recurrent-ppo, sb3-trpo"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{where}: no .zip file, which is what Stable-Baselines3 saves")
    try:
        model = kind.model_type.load(file, device="cpu")
    except Exception as error:  # the file decides what goes wrong
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"{where}: cannot be read as a model of {kind.model_type.__name__} ({reason}); is it of another?"
        raise ValueError(message) from error
    task = env.unwrapped.task
    return ZipAgent(kind.around(task, model, _table(model, task, where)), file)


class _EveryToken:
    """All tokens by id, as the environment itself numbers its actions; see `textgym.wrappers.actions.Table`."""

    def __init__(self, allowed: Bools) -> None:
        self._allowed, self.size = allowed, len(allowed)

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Ints, Bools]:
        shape = (len(observation["input_ids"]), self.size)
        legal = self._allowed if masks is None else self._allowed & masks
        return np.broadcast_to(np.arange(self.size), shape), np.broadcast_to(legal, shape)


def _table(model: BaseAlgorithm, task: Task, where: str) -> Table:
    """Return the tokens that the model's actions are. Raises: ValueError if it was trained in another task."""
    allowed, expected = task.vocabulary.allowed, observation_space(task)
    if model.observation_space != expected:
        raise ValueError(f"{where}: the model observes {model.observation_space}, task {task.name!r} gives {expected}")
    tables: dict[int, Table] = {len(allowed): _EveryToken(allowed)}
    tables.setdefault(int(np.count_nonzero(allowed)), AllowedTokens(allowed))
    space = model.action_space
    if not isinstance(space, spaces.Discrete) or space.start or int(space.n) not in tables:
        counts = " or ".join(f"Discrete({count})" for count in sorted(tables))
        raise ValueError(f"{where}: the model's actions are {space}, those of task {task.name!r} are {counts}")
    return tables[int(space.n)]
