"""DQN, QRDQN, DDPG, TD3 and SAC of Stable-Baselines3 and sb3-contrib as agents."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import QRDQN
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import PyTorchObs

from textgym.checks import Floats, Ints
from textgym_agents.protocol import Observation
from textgym_agents.sb3.agent import Arguments, SB3Agent, own_generators
from textgym_agents.sb3.config import (
    SB3ContinuousConfig,
    SB3DQNConfig,
    SB3NoisyConfig,
    SB3OffPolicyConfig,
    SB3QRDQNConfig,
)
from textgym_agents.sb3.vec_env import SB3VecEnv

Space = spaces.Space[Any]

_EPISODES = 4096  # full-length ones that are kept
_PER_TOKEN = 64  # transitions for every action
_LEAST, _MOST = 10_000, 1_000_000
_NUMBERS = 3 * 4  # reward, done and time-out, float32 each
_SHARE = 0.5  # of the free memory that one buffer may take


def replay_size(asked: int | None, observation: Space, action: Space, vocabulary: int, horizon: int) -> int:
    """Return the number of transitions of a replay buffer.

    Args:
        asked: by the user; None chooses 4,096 episodes of full length or 64 transitions a token of the vocabulary,
            whichever is more, within 10,000..1,000,000.
        observation, action: spaces of one environment.
        vocabulary: tokens. horizon: steps of the longest episode.
    Raises: ValueError with the figures if the buffer takes more than half of the free memory.
    """
    size = asked or min(max(_EPISODES * horizon, _PER_TOKEN * vocabulary, _LEAST), _MOST)
    each = transition_bytes(observation, action)
    free = free_bytes()
    if free is not None and size * each > _SHARE * free:
        raise ValueError(
            f"replay={size}: {size:,} transitions of {each:,} bytes take {size * each / 1e9:.2f} GB, but only "
            f"{free / 1e9:.2f} GB are free; allowed is at most {int(_SHARE * free / each):,} (half of that)"
        )
    return size


def transition_bytes(observation: Space, action: Space) -> int:
    """Return the bytes of one transition: two observations, an action, three numbers."""
    return 2 * _bytes(observation) + _bytes(action) + _NUMBERS


def _bytes(space: Space) -> int:
    if isinstance(space, spaces.Dict):
        return sum(_bytes(part) for part in space.values())
    return int(np.prod(space.shape or (), dtype=np.int64)) * np.dtype(space.dtype).itemsize


def free_bytes() -> int | None:
    """Return the bytes of memory that programs can still take; None without psutil, except on Linux."""
    try:
        psutil = import_module("psutil")
    except ModuleNotFoundError:
        return available_bytes(Path("/proc/meminfo"))
    return int(psutil.virtual_memory().available)


def available_bytes(meminfo: Path) -> int | None:
    """Return what Linux's table of memory says under MemAvailable, in bytes; None where there is no such line.

    The pages that `os.sysconf` counts as free are fewer: they leave out the file cache, which is given up on demand.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


class _OffPolicy(SB3Agent):
    """An agent with a replay buffer. It acts without exploring: one token for sure, unless it says otherwise."""

    config: SB3OffPolicyConfig
    scores = "rollout/scores"  # those of the exploring policy, which is not the one that acts
    greedy = True

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        config, task = self.config, self.task
        size = replay_size(
            config.replay, env.observation_space, env.action_space, task.vocabulary.size, task.max_new_tokens
        )
        return {
            "buffer_size": size,
            "learning_starts": config.learning_starts,
            "batch_size": config.minibatch,
            "train_freq": (1, "step"),
            "gradient_steps": config.gradient_steps,
        }

    def log_probs(self, observation: Observation) -> Floats | None:
        """See `Agent.log_probs`; (B, V) float64, 0 at the token that is taken and -inf elsewhere."""
        return self.interface.certain(self._best(observation))

    @abstractmethod
    def _best(self, observation: Observation) -> Ints:
        """Return the tokens (B,) that the agent takes without exploring."""


class _Valued(_OffPolicy):
    """Takes the action of the greatest value; explores with a probability that falls over the budget."""

    config: SB3DQNConfig
    model: DQN | QRDQN

    def _build(self, env: SB3VecEnv) -> BaseAlgorithm:
        model = super()._build(env)
        assert isinstance(model, DQN | QRDQN)
        model.exploration_schedule = lambda _: self._epsilon()
        return model

    def _iterate(self, env: SB3VecEnv) -> None:
        self.model.exploration_rate = self._epsilon()
        super()._iterate(env)

    def _epsilon(self) -> float:
        span = self.config.exploration_share * max(self.budget, 1)
        fallen = min(self.episodes / span, 1.0) if span > 0 else 1.0
        return 1.0 + fallen * (self.config.exploration_final - 1.0)

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        return super()._arguments(env) | {
            "target_update_interval": self.config.target_update,
            "max_grad_norm": self.config.max_grad_norm,
        }

    @torch.no_grad()
    def _best(self, observation: Observation) -> Ints:
        values = self._values(self._inputs(observation)).cpu().numpy()
        legal = self.interface.legal(observation)
        return self.interface.tokens(observation, np.where(legal, values, -np.inf).argmax(1))

    @abstractmethod
    def _values(self, inputs: PyTorchObs) -> torch.Tensor:
        """Return Q(s, a) of the numbered actions, (B, A)."""


class SB3DQN(_Valued):
    """DQN, Stable-Baselines3's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task or the free memory.
    Source: Mnih et al. (2015), doi:10.1038/nature14236.
    """

    name = "sb3-dqn"
    config_type = SB3DQNConfig
    model_type = DQN
    model: DQN

    def _values(self, inputs: PyTorchObs) -> torch.Tensor:
        values: torch.Tensor = self.model.q_net(inputs)
        return values


class SB3QRDQN(_Valued):
    """DQN over quantiles of the return, sb3-contrib's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task or the free memory.
    Source: Dabney et al. (2017), arXiv:1710.10044.
    """

    name = "sb3-qrdqn"
    config: SB3QRDQNConfig
    config_type = SB3QRDQNConfig
    model_type = QRDQN
    model: QRDQN

    def _policy_arguments(self) -> Arguments:
        return super()._policy_arguments() | {"n_quantiles": self.config.quantiles}

    def _values(self, inputs: PyTorchObs) -> torch.Tensor:
        values: torch.Tensor = self.model.quantile_net(inputs).mean(1)
        return values


class _Pointing(_OffPolicy):
    """Its action is a point, which stands for the legal token whose embedding is nearest.

    Source: Dulac-Arnold et al. (2015), arXiv:1512.07679, with k = 1: Wolpertinger without re-ranking by Q.
    """

    config: SB3ContinuousConfig
    reads_zip = False

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        return super()._arguments(env) | {"tau": self.config.tau}

    @torch.no_grad()
    def _points(self, observation: Observation, deterministic: bool) -> NDArray[np.float32]:
        inputs = self._inputs(observation)
        points = self.model.policy._predict(inputs, deterministic=deterministic)
        return np.asarray(np.clip(points.cpu().numpy(), -1.0, 1.0))

    def _best(self, observation: Observation) -> Ints:
        return self.interface.tokens(observation, self._points(observation, deterministic=True))


class _Noisy(_Pointing):
    """Explores by adding noise to its points."""

    config: SB3NoisyConfig
    config_type = SB3NoisyConfig

    def _arguments(self, env: SB3VecEnv) -> Arguments:
        shape, noise = self.config.dimensions, self.config.noise
        action_noise = NormalActionNoise(np.zeros(shape), np.full(shape, noise)) if noise else None
        return super()._arguments(env) | {"action_noise": action_noise}


class SB3DDPG(_Noisy):
    """DDPG on points, Stable-Baselines3's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task or the free memory.
    Source: Lillicrap et al. (2015), arXiv:1509.02971; points: Dulac-Arnold et al. (2015), arXiv:1512.07679.
    """

    name = "sb3-ddpg"
    model_type = DDPG


class SB3TD3(_Noisy):
    """TD3 on points, Stable-Baselines3's class, unmodified.

    Raises: ValueError for a device that is not there, or settings that do not fit the task or the free memory.
    Source: Fujimoto et al. (2018), arXiv:1802.09477; points: Dulac-Arnold et al. (2015), arXiv:1512.07679.
    """

    name = "sb3-td3"
    model_type = TD3


class SB3SAC(_Pointing):
    """SAC on points, Stable-Baselines3's class, unmodified.

    Its policy over points is a density; that over tokens, its integral over each token's cell, has no closed form.

    Raises: ValueError for a device that is not there, or settings that do not fit the task or the free memory.
    Source: Haarnoja et al. (2018), arXiv:1801.01290; points: Dulac-Arnold et al. (2015), arXiv:1512.07679.
    """

    name = "sb3-sac"
    config_type = SB3ContinuousConfig
    model_type = SAC
    greedy = False

    def log_probs(self, observation: Observation) -> None:
        """Return None: there is no closed form."""

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`."""
        with own_generators(int(self._acting.integers(2**31))):
            points = self._points(observation, deterministic)
        return self.interface.tokens(observation, points)
