"""What every agent on a causal LM has: policy, frozen reference, optimiser, schedule, acting and storage."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.lm.causal import check_adapter, check_positions, choose_device
from textgym.lm.llama import recomputes
from textgym.lm.reference import Reference
from textgym.play import check_env
from textgym.task import has_language_model
from textgym_agents.config import LMConfig
from textgym_agents.lm.checkpoint import SavedLM
from textgym_agents.lm.policy import LMPolicy, draw
from textgym_agents.lm.steps import apply_gradient
from textgym_agents.lm.tiny import start_model
from textgym_agents.protocol import Callback, Metrics, Observation

_SMALLEST = 1e-8  # An adaptive beta that reached 0 could never rise again.


@dataclass
class KLController:
    """beta, and how it follows the observed KL.

    Args:
        beta: > 0 with a target, >= 0 without; reward units per nat.
        target: wanted KL in nats per sequence; None keeps beta fixed.
        horizon: episodes over which a full error of 0.2 moves beta by 20%.
    Raises: ValueError if a number is out of range.
    Source: Ziegler et al. (2019), arXiv:1909.08593, section 2.2.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if self.target is not None and not (self.target > 0 and self.beta > 0):
            raise ValueError(
                f"kl_target={self.target!r}, beta={self.beta!r}: both must be > 0 to be adaptive"
            )
        if self.beta < 0 or self.horizon <= 0:
            raise ValueError(f"beta={self.beta!r}, horizon={self.horizon!r}: beta must be >= 0, horizon > 0")

    def update(self, kl: float, episodes: int) -> None:
        """Raises beta when `kl` (nats per sequence, batch mean) is above the target, lowers it when below."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.beta = max(self.beta * max(1.0 + error * episodes / self.horizon, 0.1), _SMALLEST)


LEARNING_RATE = 5e-4
TINY_LEARNING_RATE = 3e-3


class _View:
    """`Reference` over a frozen policy."""

    def __init__(self, policy: LMPolicy) -> None:
        self._policy = policy

    def log_probs(self, observation: Observation) -> NDArray[np.float32]:
        """See `Reference.log_probs`."""
        result: NDArray[np.float32] = self._policy.advance(observation)[0].cpu().numpy()
        return result


class LMAgent(SavedLM):
    """An LM policy with a value head and its frozen start; acts, scores and is saved. Algorithms say how it learns.

    Args:
        task: what `env.unwrapped.task` holds: supplies vocabulary, reference, beta and gamma.
        config: the settings.
        model: a causal LM to start from and to keep as reference; its frozen parameters stay as they are, and of a PEFT
            model the adapter is trained. None loads `config.model` or the task's reference;
            a tiny model stands in for a reference that is no LM.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[LMConfig]]
    controller: KLController
    critic: bool = False
    """Whether the value head learns V."""

    def __init__(self, task: Any, config: Any, model: Any = None) -> None:
        self.task = task
        start = model if model is not None else start_model(task, config.model, config.seed)
        if recomputes(start):
            config = replace(config, gradient_checkpointing=True)
        self.config = config
        check_adapter(start)
        tokens = task.max_prompt_tokens + task.max_new_tokens
        check_positions(start, tokens)
        tiny = model is None and config.model is None and not has_language_model(task)
        self.learning_rate = config.learning_rate or (TINY_LEARNING_RATE if tiny else LEARNING_RATE)
        device = choose_device(config.device)
        settings: dict[str, Any] = {
            "allowed": task.vocabulary.allowed,
            "temperature": config.temperature,
            "device": device,
            "bf16": config.precision == "bfloat16",
            "recompute": config.gradient_checkpointing,
            "tokens": tokens,
        }
        self.policy = LMPolicy(copy.deepcopy(start), **settings)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=self.learning_rate, eps=config.adam_epsilon, foreach=True
        )
        beta = task.beta if config.beta is None else config.beta
        self.controller = KLController(beta, config.kl_target, config.kl_horizon)
        self.has_own_reference = model is not None or config.model is not None or config.temperature != 1.0
        self.iteration = 0
        self.episodes = 0
        self.budget = 0
        self.value_scale: float | None = None
        self.value_offset = 0.0
        self._acting = np.random.default_rng([config.seed, 2])

    # Learning

    def learn(self, env: Any, episodes: int, callback: Callback | None = None) -> None:
        """Learns from at least `episodes` more episodes, one in each sub-environment per iteration.

        Args:
            env: vector environment in DISABLED mode on the agent's task.
            episodes: the budget; the learning-rate schedule spans the first budget given.
            callback: sees every iteration's metrics; returning True stops.
        Raises: ValueError if `env` resets by itself or `episodes` < 1.
        """
        check_env(env)
        if episodes < 1:
            raise ValueError(f"episodes={episodes!r}: allowed is an integer >= 1")
        goal = self.episodes + episodes
        self.budget = self.budget or goal
        while self.episodes < goal:
            rate = self._set_learning_rate()
            metrics = self._iterate(env)
            self.iteration += 1
            self.episodes += env.num_envs
            metrics |= {"lr": rate, "iteration": float(self.iteration), "episode": float(self.episodes)}
            if callback is not None and callback(metrics):
                return

    @abstractmethod
    def _iterate(self, env: Any) -> Metrics:
        """Learns from one episode in each sub-environment. Returns: what it found, by name; `learn` counts."""

    def _set_learning_rate(self) -> float:
        config = self.config
        progress = min(self.episodes / self.budget, 1.0)
        factor = 1.0
        if progress < config.warmup:
            factor = (progress + 1.0 / self.budget) / config.warmup
        elif config.schedule == "linear":
            factor = 1.0 - 0.9 * progress
        elif config.schedule == "cosine":
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        return self.learning_rate * factor

    def _finish_step(self) -> float:
        """Applies the gradient, scaled down to `max_grad_norm`; returns its norm before.

        Raises: FloatingPointError if it is not finite.
        """
        return apply_gradient(self.optimizer, self.config.max_grad_norm, f"iteration {self.iteration}")

    def _seed(self, purpose: int) -> int:
        sequence = np.random.SeedSequence([self.config.seed, self.iteration, purpose])
        return int(sequence.generate_state(1)[0])

    # Acting

    def act(self, observation: Observation, deterministic: bool = False) -> NDArray[np.int64]:
        """See `Agent.act`."""
        log_probs, _ = self.policy.advance(observation)
        return draw(self.policy, log_probs, self._acting, deterministic)

    def log_probs(self, observation: Observation) -> NDArray[np.float32]:
        """See `Agent.log_probs`."""
        result: NDArray[np.float32] = self.policy.advance(observation)[0].cpu().numpy()
        return result

    def values(self, observation: Observation) -> NDArray[np.float64]:
        """V(s) of a batch of observations (B,), reward units at time 0; `textgym_agents.lm.critic` says what it counts.

        Raises: ValueError for an agent without a critic.
        """
        if not self.critic:
            raise ValueError(f"values: agent {self.name!r} has no critic; allowed are such as lm-ppo and a2c")
        values = self.policy.advance(observation)[1].cpu().double().numpy()
        return np.asarray(self.value_offset + values * (self.value_scale or 1.0))

    def own_reference(self) -> Reference | None:
        """pi_ref where it is another than the task's (a model or temperature of the agent's own), else None."""
        return _View(self.reference) if self.has_own_reference else None
