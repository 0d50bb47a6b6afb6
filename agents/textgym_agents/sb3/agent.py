"""Unmodified Stable-Baselines3 models as agents: the base of agents that learn here, and of agents from .zip files."""

from __future__ import annotations

import random
import sys
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import PyTorchObs

from textgym.checks import Bools, Floats, Ints, check_count
from textgym.episodes import observation_space
from textgym.lm.causal import choose_device
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym.wrappers.actions import AllowedTokens, Numbered, Table
from textgym.wrappers.base import Masks, RowsEnv
from textgym_agents.protocol import Agent, Callback, DrawingAgent, Metrics, Observation
from textgym_agents.saving import Saved, count, read_saved, write_saved
from textgym_agents.sb3.config import SB3Config
from textgym_agents.sb3.interface import Interface, TokenFeatures
from textgym_agents.sb3.storage import model_state, model_tensors, parameters, replay_of, restore, restore_model
from textgym_agents.sb3.vec_env import SB3VecEnv

Arguments = dict[str, Any]
"""Keyword arguments of a Stable-Baselines3 model or policy."""
_COUNTERS = ("iteration", "episodes", "budget")
_MOST_ROWS = 2**16


@contextmanager
def own_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch with `seed`, and restore them afterwards."""
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


class SB3Agent(DrawingAgent):
    """A model of Stable-Baselines3 or sb3-contrib as an agent. Subclasses name the model and define how it acts.

    Every iteration resets all rows with a seed of its own, so that a saved and loaded training continues as if it had
    not been interrupted.

    Args:
        task: `env.unwrapped.task`.
        config: the settings; None takes the defaults of `config_type`.
        rows: number of sub-environments of the model; `learn` rebuilds it for another number.
    """

    config: SB3Config
    iteration: int
    model: BaseAlgorithm
    config_type: ClassVar[type[SB3Config]]
    resumes = True
    model_type: ClassVar[type[BaseAlgorithm]]
    """The library's model class."""
    policies: ClassVar[tuple[str, str]] = ("MlpPolicy", "MultiInputPolicy")
    """The library's names of its policies for vectors and for token sequences."""
    reads_zip: ClassVar[bool] = True
    """Whether it can act by a .zip file of the library. Where actions are points, no file tells which tokens they are.
    """
    file: Path | None = None
    """The .zip file that the model was loaded from. Such an agent can only act, since its settings are the
    library's."""
    scores: ClassVar[str] = "objective/scores"
    """Name of the metric with the returns of the sampled episodes."""

    def __init__(self, task: Task, config: SB3Config | None = None, rows: int | None = None) -> None:
        self.task, self.config = task, config or self.config_type()
        self.device = choose_device(self.config.device)
        self.interface = Interface(task, self.config, getattr(self.config, "dimensions", None))
        self.iteration = self.episodes = self.budget = 0
        stand_in = TokenVectorEnv(task, rows or self.config.batch, autoreset_mode=AutoresetMode.DISABLED)
        self.model = self._build(self.interface.wrap(stand_in)[0])

    @classmethod
    def around(cls, task: Task, model: BaseAlgorithm, table: Table, file: Path) -> Self:
        """Return an agent that acts by the model of a file. Args: table: the tokens that its actions are."""
        agent = cls.__new__(cls)
        agent.task, agent.model, agent.file = task, model, file
        agent.config = cls.config_type(reference_reward=False)
        agent.device = model.device
        agent.interface = Interface(task, agent.config, None)
        agent.interface.choice = Numbered(table)
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
        """Learn from at least `episodes` more episodes; all episodes of the last iteration are used.

        Args:
            env: vector environment in DISABLED or SAME_STEP mode on the agent's task.
            episodes: the budget.
            callback: called with every iteration's metrics; returning True stops learning.
        Raises: ValueError for another kind of `env`, `episodes` < 1, or a model from a .zip.
        """
        if self.file is not None:
            raise ValueError(f"{self.file}: a model of a .zip can act, not learn; Stable-Baselines3 can train it")
        episodes = check_count("episodes", episodes)
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

    @abstractmethod
    def log_probs(self, observation: Observation) -> Floats | None:
        """See `Agent.log_probs`."""

    def _inputs(self, observation: Observation) -> PyTorchObs:
        self.model.policy.set_training_mode(False)
        return self.interface.inputs(observation, self.device)

    def caveat(self, task: Task, split: str) -> str:
        """See `Agent.caveat`: a model from a .zip may have learned to write tokens that the task does not allow."""
        if not isinstance(self.interface.choice.table, _EveryToken) or task.vocabulary.allowed.all():
            return ""
        forbidden = int(np.count_nonzero(~task.vocabulary.allowed))
        return (
            f"{self.file}: its actions are all tokens by id, {forbidden} of which the task does not allow; it is "
            "measured without them (textgym.wrappers.AllowedActions leaves them out of learning)"
        )

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON, no pickle. Raises: ValueError for a model from a .zip."""
        if self.file is not None:
            raise ValueError(f"{self.file}: a model of a .zip is saved by Stable-Baselines3 alone")
        state = {name: getattr(self, name) for name in _COUNTERS} | model_state(self.model)
        write_saved(path, self.name, self.config, self.task, state=state, tensors=model_tensors(self.model))

    @classmethod
    def load(cls, path: str | Path, env: TokenVectorEnv) -> Self:
        """See `Agent.load`. Learning continues as if it had not been interrupted. `load_zip` loads a .zip."""
        if Path(path).is_file():
            raise ValueError(f"path={str(path)!r}: {_DANGER}")
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


_DANGER = (
    "Stable-Baselines3's own format holds pickles, and reading it runs whatever code is in the file. "
    "If you trust where it comes from, say trust_pickle=True (--trust-pickle)"
)


def load_zip(path: str | Path, env: TokenVectorEnv, kind: type[Agent] | None, trust_pickle: bool = False) -> SB3Agent:
    """Load a .zip of Stable-Baselines3 or sb3-contrib. With `trust_pickle`, this runs any code that it contains.

    The model must have the environment's observations; its actions must be all tokens by id, or those in
    `vocabulary.allowed`, numbered as in `AllowedActions`.

    Args:
        path: the file. env: an environment of the task. kind: the agent's class, such as that of sb3-ppo.
        trust_pickle: whether the file may be loaded at all.
    Raises: ValueError if it may not, is not such a file, or does not fit the class or the task.
    """
    file, where = Path(path), f"path={str(path)!r}"
    if not trust_pickle:
        raise ValueError(f"{where}: {_DANGER}")
    if kind is None:
        raise ValueError(f"{where}: a file does not say what it holds; name the agent, as sb3-ppo (--agent-class)")
    if not issubclass(kind, SB3Agent) or not kind.reads_zip:
        raise ValueError(
            f"{where}: {kind.name!r} reads no .zip; allowed are sb3-a2c, sb3-dqn, sb3-maskable-ppo, "
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
    return kind.around(task, model, _table(model, task, where), file)


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
