"""A batch of episodes as a tabular agent plays it: what was done in every step, ready to be learned from backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym.vector import refuse_together
from textgym_agents.protocol import Metrics, Observation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Choice:
    """What an agent decides in n states.

    Attributes:
        columns: (n,) the actions, as places among the vocabulary's A allowed tokens.
        states: (n,) the rows of its table. legal: (n, A) tokens that the grammar allows, None for all.
        log_reference: (n, A) nats.
        log_ratio: (n,) log(behaviour / reference) of the actions, nats.
        surprise: (n,) minus the log of the behaviour's probabilities of the actions, nats.
    """

    columns: Ints
    states: Ints
    legal: Bools | None
    log_reference: Floats
    log_ratio: Floats
    surprise: Floats


@dataclass(frozen=True)
class Step:
    """One token in each of n running rows.

    Attributes:
        rows: (n,) sub-environments. choice: what was done there. rewards: (n,) what was paid, discounted to time 0.
    """

    rows: Ints
    choice: Choice
    rewards: Floats


@dataclass(frozen=True)
class PlayedBatch:
    """B finished episodes.

    Attributes:
        steps: by time. ends: the last observation of all rows. cut: (B,) truncated by an outer limit.
        stopped: episodes that a stop id ended.
    """

    steps: list[Step]
    ends: Observation
    cut: Bools
    stopped: int

    @property
    def count(self) -> int:
        """B."""
        return len(self.cut)

    def total(self, name: str) -> Floats:
        """(B,) sums over each episode of `rewards`, `log_ratio` or `surprise`."""
        totals = np.zeros(self.count)
        for step in self.steps:
            totals[step.rows] += step.rewards if name == "rewards" else getattr(step.choice, name)
        return totals


def check_env(env: Any) -> None:
    """Raises ValueError unless `env` is a vector environment that pays at once and does not reset by itself."""
    mode = getattr(env, "metadata", {}).get("autoreset_mode")
    if not hasattr(env, "num_envs") or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"env={env!r}: this agent plays whole batches of episodes and needs a vector environment with "
            "autoreset_mode=DISABLED; textgym_agents.make_env(id, num_envs) makes one"
        )
    refuse_together(env, "this agent")


def play_batch(env: Any, seed: int, choose: Callable[[Observation, Bools | None], Choice]) -> PlayedBatch:
    """Plays one episode in every sub-environment.

    Args:
        env: vector environment in DISABLED mode. seed: of the prompts.
        choose: from observations (n, L) and the legal tokens (n, V), None for all, to what is done.
    """
    task = env.unwrapped.task
    tokens = np.flatnonzero(task.vocabulary.allowed)
    observation, _ = env.reset(seed=seed)
    active = np.ones(env.num_envs, dtype=np.bool_)
    cut = np.zeros(env.num_envs, dtype=np.bool_)
    actions = np.zeros(env.num_envs, dtype=np.int64)
    steps: list[Step] = []
    discount, stopped = 1.0, 0
    while active.any():
        rows = np.flatnonzero(active)
        legal = env.unwrapped.action_masks()[rows] if task.mask is not None else None
        choice = choose({name: array[rows] for name, array in observation.items()}, legal)
        actions[rows] = tokens[choice.columns]
        observation, rewards, terminated, truncated, _ = env.step(actions)
        steps.append(Step(rows, choice, discount * rewards[rows]))
        stopped += int(np.isin(actions[rows], task.vocabulary.stop_ids).sum())
        discount *= task.gamma
        cut |= active & truncated & ~terminated
        active &= ~(terminated | truncated)
    return PlayedBatch(steps, observation, cut, stopped)


def batch_metrics(batch: PlayedBatch, group: str, beta: float) -> Metrics:
    """Batch means, under TRL's names.

    Args:
        group: "objective" where the policy itself played; another word where exploration did.
        beta: reward units per nat.
    """
    score, kl = batch.total("rewards"), float(batch.total("log_ratio").mean())
    return {
        f"{group}/scores": float(score.mean()),
        f"{group}/scores_std": float(score.std()),
        f"{group}/kl": kl,
        f"{group}/entropy": float(batch.total("surprise").mean()),
        f"{group}/rlhf_reward": float(score.mean()) - beta * kl,
        "objective/beta": beta,
        "val/num_eos_tokens": float(batch.stopped),
        "completion_length": sum(len(step.rows) for step in batch.steps) / batch.count,
    }
