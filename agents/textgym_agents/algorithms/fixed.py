"""Agents that do not learn: a task's reference policy and a uniformly random one."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Reference, UniformReference
from textgym.registry import Factory
from textgym.task import Task, make_reference
from textgym.vector import TokenVectorEnv
from textgym_agents.config import check_types, require
from textgym_agents.protocol import Agent, Callback, DrawingAgent, Observation, as_agent
from textgym_agents.saving import Saved, read_saved, write_saved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class FixedConfig:
    """Settings of an agent that does not learn."""

    seed: int = 0
    """Seeds the sampling of actions."""

    def __post_init__(self) -> None:
        check_types(self)
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")


class NonLearner(Agent):
    """An agent that learns nothing, and of which the config is all there is to save."""

    task: Task
    config: DataclassInstance
    config_type: ClassVar[type[Any]]
    learns = False
    resumes = True

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Do nothing: there is nothing to learn."""

    def save(self, path: str | Path) -> None:
        """See `Agent.save`."""
        write_saved(path, self.name, self.config, self.task)

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`."""
        task = env.unwrapped.task
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task, elsewhere=None)

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        make: Factory = cls
        made: Self = make(task, cls.config_type(**saved.config))
        return made


class _FixedAgent(NonLearner, DrawingAgent):
    """An agent that acts by a reference policy.

    Args:
        task: whose policy.
    """

    config: FixedConfig
    config_type = FixedConfig

    def __init__(self, task: Task, config: FixedConfig | None = None) -> None:
        self.task = task
        self.config = config or FixedConfig()
        self._policy = self._make_policy(task)

    @abstractmethod
    def _make_policy(self, task: Task) -> Reference:
        """Return the policy."""

    def log_probs(self, observation: Observation) -> NDArray[np.floating]:
        """See `Agent.log_probs`."""
        return self._policy.log_probs(observation)


class ReferenceAgent(_FixedAgent):
    """The task's reference policy: optimality 0."""

    name = "reference"

    def _make_policy(self, task: Task) -> Reference:
        return make_reference(task)


class RandomAgent(_FixedAgent):
    """An agent that takes every allowed token with the same probability."""

    name = "random"

    def _make_policy(self, task: Task) -> Reference:
        return UniformReference(task.vocabulary.allowed)


def reference_of(agent: object, task: Task) -> Reference:
    """Return what an agent's KL is measured from: a reference of its own where it has one, else the task's."""
    own = as_agent(agent).own_reference()
    return make_reference(task) if own is None else own
