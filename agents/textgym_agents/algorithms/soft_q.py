"""Soft Q-learning on a causal LM: its logits represent Q / beta, trained for path consistency on replayed episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.task import Task, refuse_turns
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL, MOST, LMConfig, at_least_one, not_negative, require
from textgym_agents.lm.agent import LMAgent
from textgym_agents.lm.gathered import whole_rollout
from textgym_agents.lm.maths import scores
from textgym_agents.lm.metrics import rollout_metrics
from textgym_agents.lm.rollout import Rollout, collect, micro_batches
from textgym_agents.lm.sequences import taken_log_probs
from textgym_agents.protocol import Metrics


@dataclass(frozen=True)
class SoftQConfig(LMConfig):
    """Settings of soft Q-learning. Raises: as `LMConfig` does."""

    batch: int = 64
    """Episodes per iteration (sub-environments)."""
    kl: KL = "k1"
    """Must be k1: paths are charged the log-ratios of their actions."""
    replay: int = 2048
    """Capacity of the replay buffer, episodes."""
    replay_batch: int = 64
    """Replayed episodes per optimiser step, in addition to the new ones, which are in every step: nothing lowers the
    values of tokens that were never taken, so the policy must learn about a token as soon as it begins to take it."""
    updates: int = 1
    """Optimiser steps per iteration. More steps learn faster from the same episodes, on prompts that are not held
    out."""
    value_coefficient: float = 0.1
    """Weight of the gradient of V relative to that of the log-ratios. Both train the same trunk; a large weight costs
    knowledge about prompts outside the training set. The minimum of the loss, 0, does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "replay_batch", "updates")
        at_least_one(self, "replay", most=MOST)
        not_negative(self, "value_coefficient")
        require("kl", self.kl, self.kl == "k1", "'k1'")


class StoredEpisodes(NamedTuple):
    """B finished episodes; entries after an episode's end are 0.

    Attributes:
        input_ids: (B, L) int32, right-padded prompts and completions.
        starts: (B,) int32, tokens of the prompt. lengths: (B,) int32, actions.
        rewards: (B, T) float32, reward units.
        reference: (B, T) float32, log-probability of every action under the reference, nats.
        normalisers: (B, T) float32, log-sum-exp of the reference's logits in every state, nats.
    """

    input_ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    rewards: NDArray[np.float32]
    reference: NDArray[np.float32]
    normalisers: NDArray[np.float32]

    def rows(self, chosen: NDArray[np.integer]) -> StoredEpisodes:
        """Return some of them."""
        return StoredEpisodes(*(array[chosen] for array in self))


class Replay:
    """A buffer of the last `capacity` episodes.

    Args:
        capacity: number of episodes, at least 1.
        width: L, tokens of a whole sequence. steps: T, the maximum number of actions of an episode.
    """

    def __init__(self, capacity: int, width: int, steps: int) -> None:
        matrix = (capacity, steps)
        self._arrays = StoredEpisodes(
            np.zeros((capacity, width), np.int32),
            np.zeros(capacity, np.int32),
            np.zeros(capacity, np.int32),
            *(np.zeros(matrix, np.float32) for _ in range(3)),
        )
        self.capacity = capacity
        self.seen = 0

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, paths: StoredEpisodes) -> None:
        """Put episodes in place of the oldest ones."""
        count = len(paths.lengths)
        places = (self.seen + np.arange(count)) % self.capacity
        for kept, new in zip(self._arrays, paths, strict=True):
            kept[places] = new
        self.seen += count

    def sample(self, count: int, generator: np.random.Generator, newest: int = 0) -> StoredEpisodes:
        """Return the `newest` episodes, and `count` of all, uniformly and with replacement.

        Raises: ValueError if there are none.
        """
        if not len(self):
            raise ValueError("replay: it is empty, at least one episode is needed")
        last = (self.seen - 1 - np.arange(min(newest, len(self)))) % self.capacity
        return self._arrays.rows(np.concatenate([last, generator.integers(len(self), size=count)]))

    def tensors(self) -> dict[str, Tensor]:
        """Return what is to be saved."""
        kept = self._arrays._asdict().items()
        tensors = {name: torch.from_numpy(array[: len(self)].copy()) for name, array in kept}
        return tensors | {"seen": torch.tensor([self.seen])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave. Raises: ValueError for episodes that do not fit."""
        self.seen = int(tensors["seen"][0])
        starts, lengths = tensors["starts"], tensors["lengths"]
        width, steps = self._arrays.input_ids.shape[1], self._arrays.rewards.shape[1]
        fits = (starts >= 1) & (lengths >= 1) & (lengths <= steps) & (starts + lengths <= width)
        if self.seen < 0 or not bool(fits.all()):
            raise ValueError(f"replay: seen={self.seen}, or an episode is longer than {steps} actions or empty")
        for name, array in self._arrays._asdict().items():
            array[: len(self)] = tensors[name].numpy()


class SoftQ(LMAgent):
    """An LM policy trained off-policy by path consistency. Args: see `LMAgent`.

    With logits l, Q(s, a) = beta (l(a) - l_ref(a)) up to a constant. So V(s) = beta log sum_a ref(a) exp(Q / beta) is
    beta times the difference of the two normalisers, and softmax(l) is the optimal policy for Q. At the optimum of J,
    and only there, V(s_t) equals the rewards to come, sum of gamma^t r_t, minus beta times the log-ratios to come,
    along every path, whoever took it. Old episodes can therefore be used as well as new ones.

    Raises: as `LMAgent` does; ValueError for a task with turns or a grammar mask, or beta = 0.
    Source: Nachum et al. (2017), arXiv:1702.08892, section 5 (unified PCL); Guo et al. (2021), arXiv:2106.07704 (text).
    """

    name = "soft-q"
    config_type = SoftQConfig
    config: SoftQConfig

    def __init__(self, task: Task, config: SoftQConfig | None = None, model: nn.Module | None = None) -> None:
        refuse_turns(task, "soft-q")
        super().__init__(task, config or SoftQConfig(), model)
        if task.mask is not None:
            raise ValueError(f"task {task.name!r}: it has a grammar mask; soft-q takes tasks without one")
        if not self.controller.beta > 0:
            raise ValueError(f"beta={self.controller.beta!r}: soft-q divides by it, allowed is a number > 0")
        width = task.max_prompt_tokens + task.max_new_tokens
        self._replay = Replay(self.config.replay, width, task.max_new_tokens)

    def memory(self) -> dict[str, Tensor]:
        """See `LMAgent.memory`."""
        return self._replay.tensors()

    def restore_memory(self, tensors: dict[str, Tensor]) -> None:
        """See `LMAgent.restore_memory`. Raises: ValueError for tokens or episodes that the task does not have."""
        ids = tensors["input_ids"]
        if bool(((ids < 0) | (ids >= self.task.vocabulary.size)).any()):
            raise ValueError(f"replay: it holds a token that is not in 0..{self.task.vocabulary.size - 1}")
        self._replay.restore(tensors)

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        config, beta = self.config, self.controller.beta
        part = collect(env, self.policy, self._seed(0), self.task.end_ids, devices=self.devices)
        taken, normalisers = map(self.devices.gather, self._score_reference(part))
        rollout = whole_rollout(self.devices, part)
        kl = (rollout.log_probs - taken).cpu().double().numpy()
        self._centre_values(scores(rollout, self.task.gamma))
        paths = self._paths(rollout, taken, normalisers)
        self._replay.add(paths)
        metrics = rollout_metrics(rollout, kl, beta, self.task.gamma)
        generator = np.random.default_rng([self._seed(1)])
        steps = [
            self._step(self._replay.sample(config.replay_batch, generator, len(paths.lengths)))
            for _ in range(config.updates)
        ]
        loss, norm = np.mean(steps, axis=0).tolist()
        self.controller.update(metrics["objective/kl"], len(rollout.lengths))
        return metrics | {
            "loss/consistency": loss,
            "policy/grad_norm": norm,
            "replay/episodes": float(len(self._replay)),
        }

    @torch.no_grad()
    def _score_reference(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return the reference's log-probability of every action and log-sum-exp of its logits in every state, (N,)."""
        taken, normalisers = [], []
        rows = np.arange(len(rollout.lengths))
        for part in micro_batches(rollout, rows, self.config.micro_batch, by_length=False):
            features = self.reference.features(part.input_ids, part.rows, part.columns)
            logs, sums = taken_log_probs(self.reference, features, rollout.actions[part.states])
            taken.append(logs)
            normalisers.append(sums)
        return torch.cat(taken), torch.cat(normalisers)

    def _paths(self, rollout: Rollout, taken: Tensor, normalisers: Tensor) -> StoredEpisodes:
        """Return the episodes that came to their end: what an outer time limit cut off has no path to its end."""
        count, steps = len(rollout.lengths), self.task.max_new_tokens
        ids = np.zeros((count, self.task.max_prompt_tokens + steps), dtype=np.int32)
        ids[:, : rollout.input_ids.shape[1]] = rollout.input_ids.cpu().numpy()

        def matrix(flat: NDArray[np.floating]) -> NDArray[np.float32]:
            result = np.zeros((count, steps), dtype=np.float32)
            result[rollout.rows, rollout.steps] = flat
            return result

        paths = StoredEpisodes(
            input_ids=ids,
            starts=(rollout.columns[rollout.first_states] + 1).astype(np.int32),
            lengths=rollout.lengths.astype(np.int32),
            rewards=matrix(rollout.rewards),
            reference=matrix(taken.cpu().numpy()),
            normalisers=matrix(normalisers.cpu().numpy()),
        )
        return paths.rows(np.flatnonzero(~rollout.truncated))

    def _step(self, paths: StoredEpisodes) -> tuple[float, float]:
        """Take an optimiser step on remembered episodes. Returns: the mean loss of a state, the gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        total, count = 0.0, int(paths.lengths.sum())
        own, weight = self.devices.deal(np.arange(len(paths.lengths)))
        for start in range(0, len(own), self.config.micro_batch):
            rows = own[start : start + self.config.micro_batch]
            loss = weight * self._loss(paths.rows(rows)).sum() / count
            loss.backward()
            total += float(loss.detach())
        return self.devices.sums([total])[0], self._finish_step()

    def _loss(self, paths: StoredEpisodes) -> Tensor:
        """Return half the squared residual of every state (N,), in units of the first batch's reward spread."""
        beta, device, scale = self.controller.beta, self.policy.device, self.value_scale or 1.0
        rows = np.repeat(np.arange(len(paths.lengths)), paths.lengths)
        steps = np.concatenate([np.arange(length) for length in paths.lengths])
        width = int((paths.starts + paths.lengths).max())
        ids = torch.tensor(paths.input_ids[:, :width], dtype=torch.long, device=device)
        places = torch.tensor(rows, device=device), torch.tensor(steps, device=device)
        columns = torch.tensor(paths.starts[rows] + steps - 1, dtype=torch.long, device=device)
        features = self.policy.features(ids, places[0], columns)
        taken, normalisers = taken_log_probs(self.policy, features, ids[places[0], columns + 1])  # (N,) each
        ratios = taken - torch.tensor(paths.reference[rows, steps], device=device)
        values = beta * (normalisers - torch.tensor(paths.normalisers[rows, steps], device=device))
        share = self.config.value_coefficient
        values = share * values + (1 - share) * values.detach()
        # J discounts rewards by their time and the KL not at all: values are those of time 0.
        discounts = self.task.gamma ** np.arange(paths.rewards.shape[1], dtype=np.float32)
        rewards = torch.tensor(paths.rewards * discounts, device=device)
        charged = rewards.index_put(places, -beta * ratios, accumulate=True)
        residuals = to_go(charged)[places] - (self.value_offset + values)
        return 0.5 * (residuals / scale).square()


def to_go(rewards: Tensor) -> Tensor:
    """Return sums of this and all later entries, (B, T); differentiable."""
    return rewards.flip(1).cumsum(1).flip(1)
