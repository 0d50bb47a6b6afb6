"""What all agents of Stable-Baselines3 have in common: an unmodified model behind the Agent protocol."""

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
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger

from textgym.lm.causal import choose_device
from textgym.vector import TokenVectorEnv
from textgym.wrappers.actions import Numbered, Table
from textgym_agents.protocol import Agent, Callback, Metrics, Observation
from textgym_agents.saving import Saved, count, read_saved, write_saved
from textgym_agents.sb3.config import SB3Config
from textgym_agents.sb3.features import TokenFeatures
from textgym_agents.sb3.interface import Interface
from textgym_agents.sb3.storage import model_state, model_tensors, parameters, restore, restore_model

_COUNTERS = ("iteration", "episodes", "budget")
_MOST_ROWS = 2**16


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Within, the global generators of Python, numpy and torch start from `seed`; afterwards they are as before."""
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
    """A model of Stable-Baselines3 or sb3-contrib as an agent. Subclasses say which one, and how it chooses.

    Every iteration starts all rows afresh from a seed of its own, so that a training that was saved and loaded goes on
    as if it had not been interrupted.

    Args:
        task: what `env.unwrapped.task` holds.
        config: the settings.
        rows: sub-environments that the model is built for; `learn` rebuilds it for another number.
    """

    config: Any
    iteration: int
    config_type: ClassVar[type[SB3Config]]
    model_type: ClassVar[Any] = None
    """The library's class, whose own .zip files can be read; None where actions are points: a file does not tell which
    tokens those are."""
    scores: ClassVar[str] = "objective/scores"
    """The metric's name of the returns of the sampled episodes."""

    def __init__(self, task: Any, config: Any, rows: int | None = None) -> None:
        self.task, self.config = task, config
        self.device = choose_device(config.device)
        self.interface = Interface(task, config, getattr(config, "dimensions", None))
        self.iteration = self.episodes = self.budget = 0
        self._acting = np.random.default_rng([config.seed, 2])
        stand_in = TokenVectorEnv(task, rows or config.batch, autoreset_mode=AutoresetMode.DISABLED)
        self.model = self._build(self.interface.wrap(stand_in)[0])

    @classmethod
    def around(cls, task: Any, model: Any, table: Table) -> Self:
        """An agent that acts by a model which others built.

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

    @abstractmethod
    def _make(self, env: Any, policy: str, common: dict[str, Any]) -> Any:
        """The model itself.

        Args:
            env: a `VecEnv`. policy: "MlpPolicy" or "MultiInputPolicy". common: arguments that all models take.
        """

    def _build(self, env: Any) -> Any:
        policy_kwargs: dict[str, Any] = {}
        if not self.config.lm_features:
            policy_kwargs["features_extractor_class"] = TokenFeatures
            policy_kwargs["features_extractor_kwargs"] = {
                "kind": self.config.features,
                "width": self.config.width,
            }
        common = {
            "learning_rate": self.config.learning_rate,
            # ReferenceReward pays what J counts, discounted already: J does not discount its KL.
            "gamma": 1.0 if self.config.reference_reward else self.task.gamma,
            "policy_kwargs": policy_kwargs,
            "seed": self.config.seed,
            "device": self.device,
        }
        with own_generators(self.config.seed):
            model = self._make(env, "MlpPolicy" if self.config.lm_features else "MultiInputPolicy", common)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    # Learning

    def learn(self, env: Any, episodes: int, callback: Callback | None = None) -> None:
        """Learns from at least `episodes` more episodes; those of the last iteration are all used.

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

    def _iterate(self, env: Any) -> None:
        """One rollout of all rows from fresh prompts, and the updates that belong to it."""
        seed = int(np.random.SeedSequence([self.config.seed, self.iteration, 1]).generate_state(1)[0])
        with own_generators(seed):
            self.model.action_space.seed(seed)
            env.seed(seed)
            self.model.set_env(env)  # forgets the last observation: learning begins with a reset
            self.model.learn(
                self._rollout_steps() * env.num_envs, log_interval=sys.maxsize, reset_num_timesteps=False
            )
        self.iteration += 1

    def _rollout_steps(self) -> int:
        """Steps of every row in an iteration: at least one whole episode."""
        return int(self.task.max_new_tokens)

    def _fit(self, env: Any) -> None:
        """Rebuilds the model where the environment has another number of rows."""
        if env.num_envs == self.model.n_envs:
            return
        before = self.model
        if getattr(before, "replay_buffer", None) is not None and before.num_timesteps:
            raise ValueError(
                f"env: has {env.num_envs} sub-environments, allowed are {before.n_envs}: those of the replay buffer"
            )
        self.model = self._build(env)
        restore(self.model, parameters(before))
        self.model.num_timesteps, self.model._n_updates = before.num_timesteps, before._n_updates

    def _logged(self) -> Metrics:
        values: dict[str, Any] = dict(self.model.logger.name_to_value)
        self.model.logger.dump()
        return {
            f"sb3/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float | np.number)
        }

    # Acting

    def act(self, observation: Observation, deterministic: bool = False) -> NDArray[np.int64]:
        """See `Agent.act`."""
        logs = self.log_probs(observation)
        assert logs is not None
        if deterministic:
            return np.asarray(logs.argmax(1))
        # The Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a sample.
        return np.asarray((logs + self._acting.gumbel(size=logs.shape)).argmax(1))

    @abstractmethod
    def log_probs(self, observation: Observation) -> NDArray[np.floating[Any]] | None:
        """See `Agent.log_probs`."""

    def _inputs(self, observation: Observation) -> Any:
        self.model.policy.set_training_mode(False)
        return self.interface.inputs(observation, self.device)

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON, no pickle; a reader never sees half of it."""
        state = {name: getattr(self, name) for name in _COUNTERS} | model_state(self.model)
        write_saved(path, self.name, self.config, self.task, state=state, tensors=model_tensors(self.model))

    @classmethod
    def load(cls, path: str | Path, env: Any) -> Self:
        """See `Agent.load`. Learning goes on as if it had not been interrupted."""
        task = env.unwrapped.task
        return read_saved(path, cls.name, lambda saved: cls._restored(saved, task), task)

    @classmethod
    def _restored(cls, saved: Saved, task: Any) -> Self:
        rows = count(saved.state, "rows", 1, _MOST_ROWS)
        agent = cls(task, cls.config_type(**saved.config), rows=rows)
        restore_model(agent.model, saved.tensors(), saved.state)
        for name in _COUNTERS:
            setattr(agent, name, count(saved.state, name))
        return agent


def normalised(logits: torch.Tensor) -> NDArray[np.float64]:
    """Log-probabilities (B, A) float64 of logits."""
    result: NDArray[np.float64] = torch.log_softmax(logits.detach().double(), -1).cpu().numpy()
    return result
