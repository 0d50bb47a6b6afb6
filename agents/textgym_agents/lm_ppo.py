"""PPO on a causal LM with a KL penalty to its frozen start: the third stage of RLHF."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.lm.causal import check_positions, choose_device
from textgym.lm.reference import Reference
from textgym.references import has_language_model
from textgym_agents.categorical import statistics
from textgym_agents.checkpoint import read_checkpoint, write_checkpoint
from textgym_agents.config import LMPPOConfig
from textgym_agents.kl_control import KLController
from textgym_agents.losses import clipped_policy_loss, clipped_value_loss, kl_estimate
from textgym_agents.metrics import UpdateMeter, rollout_metrics
from textgym_agents.policy import LMPolicy, draw
from textgym_agents.protocol import Callback, Metrics, Observation
from textgym_agents.rollout import MicroBatch, Rollout, check_env, collect, micro_batches, score_reference
from textgym_agents.tabula import start_model
from textgym_agents.targets import Targets, make_targets, token_kl

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


class LMPPO:
    """An LM policy with value head, trained by PPO; acts, scores and is saved.

    Args:
        task: what `env.unwrapped.task` holds: supplies vocabulary, reference, beta and gamma.
        config: the settings.
        model: a causal LM to start from and to keep as reference; None loads `config.model` or the task's reference;
            a tiny model stands in for a reference that is no LM.
    Source: Schulman et al. (2017), arXiv:1707.06347; Ziegler et al. (2019), arXiv:1909.08593; Ouyang et al. (2022),
        arXiv:2203.02155.
    """

    name = "lm-ppo"

    def __init__(self, task: Any, config: LMPPOConfig | None = None, model: Any = None) -> None:
        self.config = config = config or LMPPOConfig()
        self.task = task
        start = model if model is not None else start_model(task, config.model, config.seed)
        check_positions(start, task.max_prompt_tokens + task.max_new_tokens)
        tiny = model is None and config.model is None and not has_language_model(task)
        self.learning_rate = config.learning_rate or (TINY_LEARNING_RATE if tiny else LEARNING_RATE)
        device = choose_device(config.device)
        settings = (task.vocabulary.allowed, config.temperature, device, config.precision == "bfloat16")
        self.policy = LMPolicy(copy.deepcopy(start), *settings)
        self.reference = LMPolicy(copy.deepcopy(start), *settings).requires_grad_(False)
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
            metrics = self._iterate(env)
            if callback is not None and callback(metrics):
                return

    def _iterate(self, env: Any) -> Metrics:
        config = self.config
        exact = config.kl == "exact"
        stop_ids = self.task.vocabulary.stop_ids
        rollout = collect(env, self.policy, self._seed(0), stop_ids, keep_all=exact)
        reference = score_reference(self.reference, rollout, config.micro_batch, exact)
        kl = token_kl(rollout, reference, config.kl)
        self._centre_values(rollout)
        assert self.value_scale is not None
        targets = make_targets(
            rollout,
            kl,
            config.kl,
            self.controller.beta,
            self.task.gamma,
            config.lam,
            config.whiten,
            self.value_scale,
            self.value_offset,
        )
        metrics = rollout_metrics(rollout, targets, self.controller.beta)
        rate = self._set_learning_rate()
        metrics |= self._update(rollout, targets, reference)
        self.controller.update(metrics["objective/kl"], len(rollout.lengths))
        self.iteration += 1
        self.episodes += len(rollout.lengths)
        return metrics | {"lr": rate, "iteration": float(self.iteration), "episode": float(self.episodes)}

    def _update(self, rollout: Rollout, targets: Targets, reference: Tensor) -> Metrics:
        config = self.config
        generator = np.random.default_rng([self._seed(1)])
        meter, count = UpdateMeter(), len(rollout.lengths)
        for _ in range(config.epochs):
            for rows in np.array_split(generator.permutation(count), min(config.minibatches, count)):
                self._step(rollout, targets, reference, rows, meter)
                if config.stop_update_kl is not None and meter.last_kl > config.stop_update_kl:
                    return meter.means()
        return meter.means()

    def _step(
        self,
        rollout: Rollout,
        targets: Targets,
        reference: Tensor,
        rows: NDArray[np.int64],
        meter: UpdateMeter,
    ) -> None:
        count = int(rollout.lengths[rows].sum())
        meter.start(count)
        self.optimizer.zero_grad(set_to_none=True)
        for part in micro_batches(rollout, rows, self.config.micro_batch):
            # Sums over the global token count: the split into parts cannot change the gradient.
            loss = self._loss(part, rollout, targets, reference, meter).sum() / count
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"iteration {self.iteration}: the gradient is not finite; "
                f"lower learning_rate={self.learning_rate!r} or max_grad_norm={self.config.max_grad_norm!r}"
            )
        self.optimizer.step()
        meter.finish(float(norm))

    def _loss(
        self, part: MicroBatch, rollout: Rollout, targets: Targets, reference: Tensor, meter: UpdateMeter
    ) -> Tensor:
        config, chosen = self.config, part.states
        logits, values = self.policy.states(part.input_ids, part.rows, part.columns)
        exact = config.kl == "exact"
        taken, divergence, entropy = statistics(
            logits, rollout.actions[chosen], reference[chosen] if exact else None
        )
        log_ratio = taken - rollout.log_probs[chosen]
        policy_loss = clipped_policy_loss(log_ratio, targets.advantages[chosen], config.clip)
        value_loss = clipped_value_loss(
            values, targets.old_values[chosen], targets.returns[chosen], config.value_clip
        )
        loss = policy_loss + config.value_coefficient * value_loss
        if targets.kl_weight:
            kl = divergence if exact else kl_estimate(taken - reference[chosen], config.kl)
            loss = loss + targets.kl_weight * kl
        if config.entropy_coefficient:
            loss = loss - config.entropy_coefficient * entropy
        meter.add(log_ratio, policy_loss, value_loss, entropy, config.clip)
        return loss

    def _centre_values(self, rollout: Rollout) -> None:
        """V = offset + scale * head, by mean and spread of the first batch's scores, then kept.

        So learning does not depend on the reward's zero and unit.
        """
        if self.value_scale is not None:
            return
        scores = np.bincount(rollout.rows, weights=rollout.rewards)
        mean, spread = float(np.mean(scores)), float(np.std(scores))
        self.value_offset = mean
        self.value_scale = spread if spread > 1e-6 * max(abs(mean), 1e-6) else 1.0

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
        """V(s) of a batch of observations (B,), reward units."""
        values = self.policy.advance(observation)[1].cpu().double().numpy()
        return np.asarray(self.value_offset + values * (self.value_scale or 1.0))

    def own_reference(self) -> Reference | None:
        """pi_ref where it is another than the task's (a model or temperature of the agent's own), else None."""
        return _View(self.reference) if self.has_own_reference else None

    # Storage

    def save(self, path: str | Path) -> None:
        """See `Agent.save`: safetensors and JSON; a reader never sees half of it."""
        write_checkpoint(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, env: Any) -> LMPPO:
        """See `Agent.load`. Learning goes on as if it had not been interrupted."""
        agent: LMPPO = read_checkpoint(cls, Path(path), env.unwrapped.task)
        return agent
