"""The base class of all agents on a causal LM: policy, frozen reference, optimiser, schedule, acting and storage."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from textgym.checks import Floats, check_count
from textgym.lm.backbone import recomputes
from textgym.lm.reference import Reference
from textgym.play import check_env
from textgym.task import Task, has_language_model
from textgym.vector import TokenVectorEnv
from textgym_agents.config import LMConfig
from textgym_agents.lm.checkpoint import SavedLM
from textgym_agents.lm.devices import Devices, join
from textgym_agents.lm.metrics import KLController
from textgym_agents.lm.rates import rate_at
from textgym_agents.lm.sharding import Passes, whole
from textgym_agents.lm.start import TABLE, peak_rate, start_policies
from textgym_agents.protocol import Callback, DrawingAgent, Metrics, Observation


class LMAgent(SavedLM, DrawingAgent):
    """An LM policy with a value head and its frozen reference. Subclasses define how it learns.

    Args:
        task: supplies vocabulary, reference, beta and gamma. config: the settings.
        model: a causal LM to start from and to keep as reference; frozen parameters stay frozen, and of a PEFT model
            only the adapter is trained. None: `config.model`, else the task's reference, or a tiny LM in its place.
    Raises: ValueError for a model that cannot be loaded or does not fit the task, or a device that does not exist.
    """

    config: LMConfig
    config_type: ClassVar[type[LMConfig]]
    critic = False
    resumes = True
    rounds = 1  # batches that the last iteration has played
    first_rate = toward = correlation = rounding = reach = 0.0  # see `textgym_agents.lm.rates.settle`

    def __init__(self, task: Task, config: LMConfig, model: nn.Module | None = None) -> None:
        self.task, self.devices = task, join()
        self.devices.check_task(task)
        self.policy, self.reference, apart = start_policies(task, config, model)
        if self.devices.world > 1 and config.parallel == "fsdp":
            Passes(self.devices, (self.policy, self.reference))
        self.config = replace(config, gradient_checkpointing=recomputes(self.policy.model))
        tiny = model is None and config.model is None and not has_language_model(task)
        self.learning_rate = rate = config.learning_rate or peak_rate(self.policy.model, tiny)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), rate, eps=config.adam_epsilon, foreach=True)
        beta = task.beta if config.beta is None else config.beta
        self.controller = KLController(beta, config.kl_target, config.kl_horizon)
        self.has_own_reference = apart or (model or config.model) not in (None, TABLE) or config.temperature != 1.0
        self.iteration: int = 0
        self.episodes, self.budget, self.value_scale, self.value_offset = 0, 0, None, 0.0

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """Learn from at least `episodes` more episodes, one in each sub-environment (of every device) per iteration.

        Args:
            env: vector environment in DISABLED mode on the agent's task; may be wrapped.
            episodes: the budget; the learning-rate schedule spans the first budget given.
            callback: called with every iteration's metrics; returning True stops learning.
        Raises: ValueError if `env` resets by itself, groups do not fit into it, or `episodes` < 1.
        """
        check_env(env)
        if env.num_envs % self.group:
            raise ValueError(f"env: {env.num_envs} sub-environments; allowed are multiples of group={self.group}")
        episodes = check_count("episodes", episodes)
        until = self.episodes + episodes
        self.budget = self.budget or until
        while self.episodes < until:
            self._set_learning_rate()
            metrics = self._iterate(env)
            self.iteration += 1
            self.episodes += env.num_envs * self.devices.world * self.rounds
            rate = self.optimizer.param_groups[0]["lr"]
            metrics |= {"lr": rate, "iteration": float(self.iteration), "episode": float(self.episodes)}
            if callback is not None and callback(metrics):
                return

    @abstractmethod
    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        """Learn from one episode in each sub-environment, which `learn` counts. Returns: what it found, by name."""

    def _set_learning_rate(self) -> None:
        factor = rate_at(self.config, self.episodes, self.budget)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor * group.get("multiple", 1.0)

    def _centre_values(self, returns: Floats) -> tuple[float, float]:
        """Return scale and offset of V = offset + scale * head: spread and mean of the first returns that differ."""
        if self.value_scale is None:
            self.value_offset, spread = float(returns.mean()), float(returns.std())
            self.value_scale = spread if spread > 1e-6 * max(abs(self.value_offset), 1e-6) else None
        return self.value_scale or 1.0, self.value_offset

    def _finish_step(self) -> float:
        """Apply the gradient of all devices, scaled down to `max_grad_norm`; return its norm before."""
        return apply_gradient(self.optimizer, self.devices, self.config.max_grad_norm, f"iteration {self.iteration}")

    def _seed(self, purpose: int) -> int:
        return int(np.random.SeedSequence([self.config.seed, self.iteration, purpose]).generate_state(1)[0])

    def log_probs(self, observation: Observation) -> NDArray[np.float32]:
        """See `Agent.log_probs`."""
        return self.policy.log_probs(observation)

    def values(self, observation: Observation) -> Floats:
        """See `Agent.values`; `textgym_agents.lm.critic` documents what they include."""
        if not self.critic:
            return super().values(observation)
        values = self.policy.advance(observation)[1].cpu().double().numpy()
        return np.asarray(self.value_offset + values * (self.value_scale or 1.0))

    def own_reference(self) -> Reference | None:
        """See `Agent.own_reference`: that of an agent with its own model or temperature."""
        return self.reference if self.has_own_reference else None


def apply_gradient(optimizer: torch.optim.Optimizer, devices: Devices, max_grad_norm: float, when: str) -> float:
    """Sum the gradients of all devices, clip the norm of the sum, and take the optimiser's step.

    Args: max_grad_norm: upper bound of the gradient's norm. when: begins the error's message, as in "step 3".
    Returns: the norm before clipping. Raises: FloatingPointError if it is not finite, with the parameters unchanged.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    devices.add_gradients(parameters)
    norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"{when}: the gradient is not finite; lower learning_rate={optimizer.param_groups[0]['lr']!r} "
            f"or max_grad_norm={max_grad_norm!r}"
        )
    optimizer.step()
    return norm
