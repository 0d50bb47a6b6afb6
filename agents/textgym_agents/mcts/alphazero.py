"""AlphaZero on a causal LM: plays with tree search, and learns to say at once what the search came to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym.lm.reference import Reference
from textgym.task import make_reference
from textgym.vector import scoring_together, settle_rest, showing_segments
from textgym_agents.config import (
    KL,
    LMConfig,
    at_least_one,
    not_negative,
    only_with,
    positive,
    require,
    share,
)
from textgym_agents.lm.agent import LMAgent
from textgym_agents.mcts.config import MCTSConfig
from textgym_agents.mcts.planner import Planner
from textgym_agents.protocol import Metrics
from textgym_agents.tabular.policies import draw

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Games:
    """B finished episodes with N states, ordered by time.

    Attributes:
        input_ids: (B, L) right-padded prompts and completions.
        rows, columns: (N,) state n is input_ids[rows[n], : columns[n] + 1].
        targets: (N, V) float32, probabilities that the search came to. masks: (N, V) legal tokens, None for all.
        outcomes: (N,) rewards to come less beta times the log-ratios to come, reward units at time 0; behind a
            truncation, the V that the search came to.
        returns, log_ratios: (B,) discounted rewards and summed log(search policy / reference), nats.
        lengths: (B,) tokens.
    """

    input_ids: Ints
    rows: Ints
    columns: Ints
    targets: NDArray[np.float32]
    masks: NDArray[np.bool_] | None
    outcomes: Floats
    returns: Floats
    log_ratios: Floats
    lengths: Ints


def play_games(env: Any, seed: int, planner: Planner, beta: float, generator: np.random.Generator) -> Games:
    """Plays one episode in every sub-environment, drawing every token from the searched distribution.

    Args:
        env: vector environment in DISABLED mode. seed: of the prompts. planner: searches.
        beta: charged per nat; 0 for a search that counts the return alone.
    """
    with scoring_together(env), showing_segments(env):
        return _play(env, seed, planner, beta, generator)


def _play(env: Any, seed: int, planner: Planner, beta: float, generator: np.random.Generator) -> Games:
    task = env.unwrapped.task
    observation, _ = env.reset(seed=seed)
    active, actions = np.ones(env.num_envs, dtype=np.bool_), np.zeros(env.num_envs, dtype=np.int64)
    parts: list[tuple[NDArray[Any], ...]] = []
    masks: list[NDArray[np.bool_]] = []
    behind, late, time = np.zeros(env.num_envs), np.zeros(env.num_envs), 0
    while active.any():
        rows = np.flatnonzero(active)
        seen = {name: array[rows] for name, array in observation.items()}
        legal = env.unwrapped.action_masks()[rows] if task.mask is not None else None
        if legal is not None:
            masks.append(legal)
        log_policy, _ = planner.plan(seen, legal)
        tokens = draw(log_policy, generator)
        each = np.arange(len(rows))
        reference = planner.log_reference(seen, legal)[each, tokens]
        ratio = log_policy[each, tokens] - np.where(
            np.isneginf(reference), log_policy[each, tokens], reference
        )
        columns = np.count_nonzero(seen["attention_mask"], axis=1) - 1
        actions[rows] = tokens
        observation, rewards, terminated, truncated, _ = env.step(actions)
        paid = task.gamma**time * rewards[rows]
        late[~active] += rewards[~active]
        parts.append((rows, columns, np.exp(log_policy).astype(np.float32), paid, ratio))
        cut = active & truncated & ~terminated
        if cut.any():
            seen = {name: array[cut] for name, array in observation.items()}
            behind[cut] = planner.plan(
                seen, None if task.mask is None else env.unwrapped.action_masks()[cut]
            )[1]
        active &= ~(terminated | truncated)
        time += 1
    lengths = np.bincount(np.concatenate([rows for rows, *_ in parts]), minlength=env.num_envs)
    late = task.gamma ** (lengths - 1) * (late + settle_rest(env)[0])
    return _finished(observation["input_ids"], parts, masks, beta, behind, late)


def _finished(
    ids: Ints,
    parts: list[tuple[NDArray[Any], ...]],
    masks: list[NDArray[np.bool_]],
    beta: float,
    behind: Floats,
    late: Floats,
) -> Games:
    # What a row is paid after its end belongs to its last action.
    to_come = behind + late
    outcomes: list[Floats] = []
    for rows, _, _, paid, ratio in reversed(parts):
        to_come[rows] += paid - beta * ratio
        outcomes.insert(0, to_come[rows])
    rows, columns, targets, paid, ratio = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Games(
        input_ids=ids,
        rows=rows,
        columns=columns,
        targets=targets,
        masks=np.concatenate(masks) if masks else None,
        outcomes=np.concatenate(outcomes),
        returns=np.asarray(np.bincount(rows, paid, len(ids)) + late, dtype=np.float64),
        log_ratios=np.asarray(np.bincount(rows, ratio, len(ids)), dtype=np.float64),
        lengths=np.bincount(rows, minlength=len(ids)),
    )


@dataclass(frozen=True)
class AlphaZeroConfig(LMConfig):
    """Settings of AlphaZero."""

    batch: int = 64
    """Episodes per iteration (sub-environments)."""
    kl: KL = "k1"
    """k1, and no other: outcomes are charged the log-ratios of their tokens."""
    simulations: int = 32
    """Simulations before every token of an episode."""
    backup: Literal["soft", "mean"] = "soft"
    """soft: searches and learns for J. mean: for the return alone, by visit counts, as AlphaZero does in games."""
    leaf: Literal["values", "rollout"] = "values"
    """What a new state is worth: by the value head, or the return of one completion."""
    candidates: int = 64
    """Most tokens considered in a state: the likeliest ones of the policy."""
    visit_temperature: float = 1.0
    """Of the policy by visit counts, with backup="mean"."""
    c_init: float = 1.25
    """Exploration constant of PUCT."""
    root_noise: float = 0.25
    """Share of random numbers in the prior of the state that is searched from."""
    memory: int = 1024
    """Most memory for the tree of an iteration, MiB."""
    epochs: int = 4
    """Passes over a batch."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    value_coefficient: float = 0.1
    """Weight of the value loss against the cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("simulations", "candidates", "memory", "epochs", "minibatches"):
            at_least_one(self, name)
        for name in ("visit_temperature", "c_init"):
            positive(self, name)
        not_negative(self, "value_coefficient")
        share(self, "root_noise")
        require("kl", self.kl, self.kl == "k1", "'k1'")
        require("kl_target", self.kl_target, self.kl_target is None, "None: searches have a fixed beta")
        require("backup", self.backup, self.backup in ("soft", "mean"), "'soft' or 'mean'")
        only_with(self, "visit_temperature", self.backup == "mean", "backup='mean'")
        require("leaf", self.leaf, self.leaf in ("values", "rollout"), "'values' or 'rollout'")
        require(
            "minibatches", self.minibatches, self.minibatches <= self.batch, f"at most batch={self.batch}"
        )


def distillation_losses(
    logits: Tensor, values: Tensor, targets: Tensor, outcomes: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy to what the search came to, and squared error to what came of it, (n,) each.

    Args:
        logits: (n, V). values: (n,). targets: (n, V) probabilities. outcomes: (n,) in the units of `values`.
    Source: Silver et al. (2017), arXiv:1712.01815, equation 1.
    """
    log_probs = torch.log_softmax(logits, -1)
    cross_entropy = -torch.where(targets > 0, targets * log_probs, 0.0).sum(-1)
    return cross_entropy, (values - outcomes).square()


class AlphaZero(LMAgent):
    """An LM policy whose probabilities are a search's prior and whose value head scores its leaves.

    It acts without searching. To search with what it has learned, make `mcts` with its folder as `guide`, with
    `prior="guide"`, `leaf="values"` and the `backup` that it learned with.
    Args: see `LMAgent`.
    Raises: ValueError for soft backups at beta = 0.
    Source: Silver et al. (2017), arXiv:1712.01815.
    """

    name: ClassVar[str] = "alphazero"
    config_type = AlphaZeroConfig
    config: AlphaZeroConfig
    critic = True

    def __init__(self, task: Any, config: AlphaZeroConfig | None = None, model: Any = None) -> None:
        config = config or AlphaZeroConfig()
        super().__init__(task, config, model)
        if config.backup == "soft" and not self.controller.beta:
            raise ValueError("beta=0.0: backup='soft' needs a number > 0; allowed at 0 is 'mean'")

    @cached_property
    def _reference(self) -> Reference:
        # Not before it is needed: only then a loaded agent knows whether it has one of its own.
        return self.own_reference() or make_reference(self.task)

    def _iterate(self, env: Any) -> Metrics:
        config = self.config
        beta = self.controller.beta
        charged = beta if config.backup == "soft" else 0.0
        self.policy.forget()
        # The network has changed since the last iteration, and with it what a tree would hold.
        planner = self._planner()
        games = play_games(env, self._seed(0), planner, charged, np.random.default_rng([self._seed(1)]))
        self._centre_values(games)
        metrics = self._update(games)
        self.policy.forget()
        score, kl = float(games.returns.mean()), float(games.log_ratios.mean())
        return {
            "behaviour/scores": score,
            "behaviour/scores_std": float(games.returns.std()),
            "behaviour/kl": kl,
            "behaviour/rlhf_reward": score - beta * kl,
            "objective/beta": beta,
            "completion_length": float(games.lengths.mean()),
            "scored": float(planner.scored),
            **metrics,
        }

    def _planner(self) -> Planner:
        config = self.config
        settings = MCTSConfig(
            simulations=config.simulations,
            backup=config.backup,
            prior="guide",
            leaf=config.leaf,
            candidates=config.candidates,
            temperature=config.visit_temperature,
            c_init=config.c_init,
            root_noise=config.root_noise,
            memory=config.memory,
            seed=self._seed(2),
        )
        return Planner(self.task, settings, self.controller.beta, guide=self, reference=self._reference)

    def _centre_values(self, games: Games) -> None:
        """V = offset + scale * head, by mean and spread of the first batch's outcomes, then kept."""
        if self.value_scale is None:
            mean, spread = float(games.outcomes.mean()), float(games.outcomes.std())
            self.value_offset = mean
            self.value_scale = spread if spread > 1e-6 * max(abs(mean), 1e-6) else 1.0

    def _update(self, games: Games) -> Metrics:
        config, generator = self.config, np.random.default_rng([self._seed(3)])
        sums, norms, count = torch.zeros(2), 0.0, 0
        for _ in range(config.epochs):
            shuffled = generator.permutation(len(games.lengths))
            for rows in np.array_split(shuffled, min(config.minibatches, len(shuffled))):
                losses, norm = self._step(games, rows)
                sums, norms, count = sums + losses, norms + norm, count + 1
        cross_entropy, value_loss = (sums / count).tolist()
        return {
            "loss/policy_avg": cross_entropy,
            "loss/value_avg": value_loss,
            "policy/grad_norm": norms / count,
            "updates": float(count),
        }

    def _step(self, games: Games, rows: Any) -> tuple[Tensor, float]:
        """One optimiser step on some episodes. Returns: mean cross-entropy and value loss (2,), gradient norm."""
        total = int(games.lengths[rows].sum())
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2)
        size = self.config.micro_batch
        for start in range(0, len(rows), size):
            losses = self._losses(games, rows[start : start + size])
            (losses[0] + self.config.value_coefficient * losses[1]).sum().div(total).backward()
            sums += torch.stack([loss.detach().sum().cpu() for loss in losses])
        return sums / total, self._finish_step()

    def _losses(self, games: Games, rows: Any) -> tuple[Tensor, Tensor]:
        """Both losses of the states of some episodes (n,)."""
        place = np.full(len(games.lengths), -1)
        place[rows] = np.arange(len(rows))
        states = np.flatnonzero(place[games.rows] >= 0)
        columns = games.columns[states]

        def tensor(array: Any, kind: Any = None) -> Tensor:
            return torch.as_tensor(array, dtype=kind, device=self.policy.device)

        logits, values = self.policy.states(
            tensor(games.input_ids[rows, : columns.max() + 1]),
            tensor(place[games.rows[states]]),
            tensor(columns),
            None if games.masks is None else tensor(games.masks[states]),
        )
        outcomes = (games.outcomes[states] - self.value_offset) / (self.value_scale or 1.0)
        return distillation_losses(
            logits, values, tensor(games.targets[states]), tensor(outcomes, torch.float32)
        )
