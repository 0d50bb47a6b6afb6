"""The base of the agents of Stable-Baselines3: an unmodified model behind the Agent protocol."""

from __future__ import annotations

import random
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import PyTorchObs

from textgym.checks import Floats, Ints
from textgym.lm.causal import choose_device
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym.wrappers.actions import Numbered, Table
from textgym.wrappers.base import RowsEnv
from textgym_agents.protocol import Agent, Callback, Metrics, Observation
from textgym_agents.saving import Saved, count, read_saved, write_saved
from textgym_agents.sb3.config import SB3Config
from textgym_agents.sb3.features import TokenFeatures
from textgym_agents.sb3.interface import Interface
from textgym_agents.sb3.storage import (
    model_state,
    model_tensors,
    parameters,
    replay_of,
    restore,
    restore_model,
)
from textgym_agents.sb3.vec_env import SB3VecEnv
from textgym_agents.tabular.policies import draw

Arguments = dict[str, Any]
"""Keyword arguments of a model or a policy of Stable-Baselines3."""
_COUNTERS = ("iteration", "episodes", "budget")
_MOST_ROWS = 2**16


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Start the global generators of Python, numpy and torch from `seed`, and put them back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)  # noqa: NPY002


class SB3Agent(Agent):
    """A model of Stable-Baselines3 or sb3-contrib as an agent. Subclasses name the model, and say how it acts.

    Every iteration starts all rows afresh from a seed of its own, so that a training that was saved and loaded goes on
    as if it had not been interrupted.

    Args:
        task: what `env.unwrapped.task` holds.
        config: the settings; None takes the defaults of `config_type`.
        rows: sub-environments that the model is built for; `learn` rebuilds it for another number.
    """

    config: SB3Config
    iteration: int
    model: BaseAlgorithm
    config_type: ClassVar[type[SB3Config]]
    resumes = True
    model_type: ClassVar[type[BaseAlgorithm]]
    """The library's class."""
    policies: ClassVar[tuple[str, str]] = ("MlpPolicy", "MultiInputPolicy")
    """The library's names of its policies for vectors and for token sequences."""
    reads_zip: ClassVar[bool] = True
    """Whether it can act by a .zip file of the library. Where actions are points, no file tells which tokens they are.
    """
    scores: ClassVar[str] = "objective/scores"
    """The metric's name of the returns of the sampled episodes."""

    def __init__(self, task: Task, config: SB3Config | None = None, rows: int | None = None) -> None:
        self.task, self.config = task, config or self.config_type()
        self.device = choose_device(self.config.device)
        self.interface = Interface(task, self.config, getattr(self.config, "dimensions", None))
        self.iteration = self.episodes = self.budget = 0
        self._acting = np.random.default_rng([self.config.seed, 2])
        stand_in = TokenVectorEnv(task, rows or self.config.batch, autoreset_mode=AutoresetMode.DISABLED)
        self.model = self._build(self.interface.wrap(stand_in)[0])

    @classmethod
    def around(cls, task: Task, model: BaseAlgorithm, table: Table) -> Self:
        """Return an agent that acts by a model that is there already.

        Args:
            task: what `env.unwrapped.task` holds. model: of `model_type`. table: the tokens that its actions are.
        """
        agent = cls.__new__(cls)
        agent.task, agent.model = task, model
        agent.config = cls.config_type(reference_reward=False)
        agent.device = model.device
        agent.interface = Interface(task, agent.config, None)
        agent.interface.choice = Numbered(table)
        agent._acting = np.random.default_rng([agent.config.seed, 2])
        return agent

    def _build(self, env: SB3VecEnv) -> BaseAlgorithm:
        arguments: Arguments = {
            "learning_rate": self.config.learning_rate,
            # ReferenceReward pays what J counts, discounted already: J does not discount its KL.
            "gamma": 1.0 if self.config.reference_reward else self.task.gamma,
            "policy_kwargs": self._policy_arguments(),
            "seed": self.config.seed,
            "device": self.device,
        }
        vectors, sequences = self.policies
        with own_generators(self.config.seed):
            policy = vectors if self.config.lm_features else sequences
            model = self.model_type(policy, env, **arguments, **self._arguments(env))
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    @abstractmethod
    def _arguments(self, env: SB3VecEnv) -> Arguments:
        """Return the arguments of the model that not all models take."""

    def _policy_arguments(self) -> Arguments:
        if self.config.lm_features:
            return {}
        features = {"kind": self.config.features, "width": self.config.width}
        return {"features_extractor_class": TokenFeatures, "features_extractor_kwargs": features}

    # Learning

    def learn(self, env: RowsEnv, episodes: int, callback: Callback | None = None) -> None:
        """Learn from at least `episodes` more episodes; those of the last iteration are all used.

        Args:
            env: vector environment in DISABLED or SAME_STEP mode on the agent's task.
            episodes: the budget.
            callback: sees every iteration's metrics; returning True stops.
        Raises: ValueError if `env` is another, or `episodes` < 1.
        """
        if episodes < 1:
            raise ValueError(f"episodes={episodes!r}: allowed is an integer >= 1")
        wrapped, tally = self.interface.wrap(env)
        self._fit(wrapped)
        goal = self.episodes + episodes
        self.budget = self.budget or goal
        while self.episodes < goal:
            tally.begin()
            self._iterate(wrapped)
            self.episodes += tally.episodes
            metrics = {"episode": float(self.episodes), "steps": float(self.model.num_timesteps)}
            metrics |= tally.metrics(self.scores) | self._logged()
            if callback is not None and callback(metrics):
                return

    def _iterate(self, env: SB3VecEnv) -> None:
        """Play one rollout of all rows from fresh prompts, and make the updates that belong to it."""
        seed = int(np.random.SeedSequence([self.config.seed, self.iteration, 1]).generate_state(1)[0])
        with own_generators(seed):
            self.model.action_space.seed(seed)
            env.seed(seed)
            self.model.set_env(env)  # forgets the last observation: learning begins with a reset
            self.model.learn(self._rollout_steps() * env.num_envs, log_interval=sys.maxsize, reset_num_timesteps=False)
        self.iteration += 1

    def _rollout_steps(self) -> int:
        """Return the steps of every row in an iteration: at least one whole episode."""
        return int(self.task.max_new_tokens)

    def _fit(self, env: SB3VecEnv) -> None:
        """Rebuild the model where the environment has another number of rows."""
        if env.num_envs == self.model.n_envs:
            return
        before = self.model
        if replay_of(before) is not None and before.num_timesteps:
            raise ValueError(
                f"env: has {env.num_envs} sub-environments, allowed are {before.n_envs}: those of the replay buffer"
            )
        self.model = self._build(env)
        restore(self.model, parameters(before))
        self.model.num_timesteps, self.model._n_updates = before.num_timesteps, before._n_updates

    def _logged(self) -> Metrics:
        values = dict(self.model.logger.name_to_value)
        self.model.logger.dump()
        return {
            f"sb3/{name}": float(value) for name, value in values.items() if isinstance(value, int | float | np.number)
        }

    # Acting

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`."""
        logs = self.log_probs(observation)
        assert logs is not None
        if deterministic:
            return np.asarray(logs.argmax(1))
        return draw(logs, self._acting)

    @abstractmethod
    def log_probs(self, observation: Observation) -> Floats | None:
        """See `Agent.log_probs`."""

    def _inputs(self, observation: Observation) -> PyTorchObs:
        self.model.policy.set_training_mode(False)
        return self.interface.inputs(observation, self.device)

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON, no pickle; a reader never sees half of it."""
        state = {name: getattr(self, name) for name in _COUNTERS} | model_state(self.model)
        write_saved(path, self.name, self.config, self.task, state=state, tensors=model_tensors(self.model))

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`. Learning goes on as if it had not been interrupted."""
        task = env.unwrapped.task
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task)

    @classmethod
    def _restored(cls, saved: Saved, task: Task) -> Self:
        rows = count(saved.state, "rows", 1, _MOST_ROWS)
        agent = cls(task, cls.config_type(**saved.config), rows=rows)
        restore_model(agent.model, saved.tensors(), saved.state)
        for name in _COUNTERS:
            setattr(agent, name, count(saved.state, name))
        return agent
