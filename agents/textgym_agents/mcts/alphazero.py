"""AlphaZero on a causal LM: play with tree search, and learn to predict the result of the search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from textgym.checks import Bools, Floats, Ints, token_counts
from textgym.lm.reference import Reference
from textgym.play import PlayedBatch, Turn, play_batch
from textgym.task import Task, make_reference
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL, LMConfig, at_least_one, not_negative, only_with, positive, require, share
from textgym_agents.lm.agent import LMAgent
from textgym_agents.mcts.planner import Planner
from textgym_agents.mcts.search import MCTSConfig
from textgym_agents.protocol import Metrics
from textgym_agents.tabular.policies import draw, log_ratios
from textgym_agents.training.ranks import refuse_ranks

_NEVER = -1e4  # nats: the gradient of a logarithm of nothing would be NaN


@dataclass(frozen=True)
class Games:
    """B finished episodes with N states, ordered by time.

    Attributes:
        input_ids: (B, L) right-padded prompts and completions.
        rows, columns: (N,) state n is input_ids[rows[n], : columns[n] + 1].
        tokens: (N, k) candidates. targets: (N, k) float32, probabilities that the search found for them; other tokens
            share the rest as in the policy that was searched with. masks: (N, V) legal tokens, None for all.
        outcomes: (N,) rewards to come less beta times the log-ratios to come, reward units at time 0; behind a
            truncation, the V that the search found.
        returns, log_ratios: (B,) discounted rewards and summed log(search policy / reference), nats.
        lengths: (B,) tokens.
    """

    input_ids: NDArray[np.integer]
    rows: Ints
    columns: Ints
    tokens: Ints
    targets: NDArray[np.float32]
    masks: Bools | None
    outcomes: Floats
    returns: Floats
    log_ratios: Floats
    lengths: Ints


def play_games(env: TokenVectorEnv, seed: int, planner: Planner, beta: float, generator: np.random.Generator) -> Games:
    """Play one episode in every sub-environment, drawing every token from the searched distribution.

    Args:
        env: vector environment in DISABLED mode. seed: of the prompts. planner: searches.
        beta: charged per nat; 0 for a search that counts the return alone.
    """
    gamma = env.unwrapped.task.gamma
    behind = np.zeros(env.num_envs)
    found: list[tuple[Ints, Ints, NDArray[np.float32], Floats]] = []  # columns, candidates, targets, log-ratios
    masks: list[Bools] = []

    def choose(turn: Turn) -> Ints:
        seen = turn.seen()
        log_policy, _ = planner.plan(seen, turn.masks)
        tokens = draw(log_policy, generator)
        ratios = log_ratios(log_policy, planner.log_reference(seen, turn.masks), tokens)
        columns = token_counts(seen) - 1
        considered = planner.candidates(seen, log_policy)
        targets = np.exp(np.take_along_axis(log_policy, considered, axis=1)).astype(np.float32)
        found.append((columns, considered, targets, ratios))
        if turn.masks is not None:
            masks.append(turn.masks)
        return tokens

    def at_limit(turn: Turn) -> None:
        behind[turn.rows] = planner.plan(turn.seen(), turn.masks)[1]

    observation, _ = env.reset(seed=seed)
    played = play_batch(env, observation, choose, at_limit=at_limit)
    columns, considered, targets, ratios = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rewards = played.discounted(gamma)
    return Games(
        input_ids=played.observation["input_ids"],
        rows=played.rows,
        columns=columns,
        tokens=considered,
        targets=targets,
        masks=np.concatenate(masks) if masks else None,
        outcomes=_outcomes(played, rewards - beta * ratios, behind),
        returns=played.sums(rewards),
        log_ratios=played.sums(ratios),
        lengths=played.lengths,
    )


def _outcomes(played: PlayedBatch, worth: Floats, behind: Floats) -> Floats:
    """Return the sums of `worth` (N,) from each state to the end of its row, and of what comes behind that (B,)."""
    to_come, outcomes = behind.copy(), []
    for rows, paid in zip(reversed(played.by_time(played.rows)), reversed(played.by_time(worth)), strict=True):
        to_come[rows] += paid
        outcomes.append(to_come[rows])
    return np.concatenate(outcomes[::-1])


@dataclass(frozen=True)
class AlphaZeroConfig(LMConfig):
    """Settings of AlphaZero. Raises: as `LMConfig` does."""

    batch: int = 64
    """Episodes per iteration (sub-environments)."""
    kl: KL = "k1"
    """Must be k1: outcomes are charged the log-ratios of their tokens."""
    simulations: int = 32
    """Simulations before each token of an episode."""
    backup: Literal["soft", "mean"] = "soft"
    """soft: search and learn for J. mean: for the return only, by visit counts, as AlphaZero does in games."""
    leaf: Literal["values", "rollout"] = "values"
    """Value of a new state: that of the value head, or the return of one completion."""
    candidates: int = 64
    """Maximum number of tokens considered in a state: the most likely ones of the policy."""
    widening: float | None = None
    """C of progressive widening: after N visits, the ceil(C N^widening_power) most likely candidates of a state are
    open. None opens all of them at once."""
    widening_power: float = 0.5
    """Exponent of progressive widening, > 0 and at most 1."""
    visit_temperature: float = 1.0
    """Temperature of the policy over visit counts, with backup="mean"."""
    c_init: float = 1.25
    """Exploration constant of PUCT."""
    root_noise: float = 0.25
    """Share of random noise in the prior of the root state."""
    memory: int = 1024
    """Maximum memory for the tree of an iteration, MiB."""
    epochs: int = 4
    """Passes over a batch."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    value_coefficient: float = 0.1
    """Weight of the value loss relative to the cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "simulations", "candidates", "memory", "epochs", "minibatches")
        positive(self, "visit_temperature", "c_init", "widening", "widening_power")
        not_negative(self, "value_coefficient")
        share(self, "root_noise", "widening_power")
        only_with(self, "widening_power", self.widening is not None, "widening")
        require("kl", self.kl, self.kl == "k1", "'k1'")
        require("kl_target", self.kl_target, self.kl_target is None, "None: searches have a fixed beta")
        only_with(self, "visit_temperature", self.backup == "mean", "backup='mean'")
        require("minibatches", self.minibatches, self.minibatches <= self.batch, f"at most batch={self.batch}")


def distillation_losses(
    logits: Tensor, values: Tensor, targets: Tensor, outcomes: Tensor, tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy to the searched distribution and the squared error to the outcome, (n,) each.

    Args:
        logits: (n, V). values: (n,). targets: (n, k) probabilities. outcomes: (n,) in the units of `values`.
        tokens: (n, k) int64, what the targets are of; None for all V in order. What the targets leave of 1 is that of
            all other tokens together: the search has not told one from another.
    Source: Silver et al. (2017), arXiv:1712.01815, equation 1.
    """
    log_probs = torch.log_softmax(logits, -1)
    if tokens is not None:
        others = log_probs.scatter(1, tokens, -torch.inf).clamp(min=_NEVER).logsumexp(1, keepdim=True)
        log_probs = torch.cat([log_probs.gather(1, tokens), others], 1)
        targets = torch.cat([targets, 1 - targets.sum(1, keepdim=True)], 1)
    cross_entropy = -torch.where(targets > 0, targets * log_probs, 0.0).sum(-1)
    return cross_entropy, (values - outcomes).square()


class AlphaZero(LMAgent):
    """An LM policy trained by tree search: its probabilities are the prior, and its value head evaluates the leaves.

    It acts without searching. To search with what it has learned, make `mcts` with its folder as `guide`, with
    `prior="guide"`, `leaf="values"` and the `backup` of the training.
    Args: see `LMAgent`.
    Raises: ValueError for soft backups at beta = 0.
    Source: Silver et al. (2017), arXiv:1712.01815.
    """

    name = "alphazero"
    config_type = AlphaZeroConfig
    config: AlphaZeroConfig
    critic = True

    def __init__(self, task: Task, config: AlphaZeroConfig | None = None, model: nn.Module | None = None) -> None:
        config = config or AlphaZeroConfig()
        refuse_ranks("agent 'alphazero'")  # its searches draw row after row from one generator
        super().__init__(task, config, model)
        if config.backup == "soft" and not self.controller.beta:
            raise ValueError("beta=0.0: backup='soft' needs a number > 0; allowed at 0 is 'mean'")

    @cached_property
    def _reference(self) -> Reference:
        # Not before it is needed: only then a loaded agent knows whether it has one of its own.
        return self.own_reference() or make_reference(self.task)

    def _iterate(self, env: TokenVectorEnv) -> Metrics:
        config = self.config
        beta = self.controller.beta
        charged = beta if config.backup == "soft" else 0.0
        self.policy.forget()
        # The network has changed since the last iteration, and with it what a tree would hold.
        planner = self._planner()
        games = play_games(env, self._seed(0), planner, charged, np.random.default_rng([self._seed(1)]))
        self._centre_values(games.outcomes)
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
            widening=config.widening,
            widening_power=config.widening_power,
            temperature=config.visit_temperature,
            c_init=config.c_init,
            root_noise=config.root_noise,
            memory=config.memory,
            seed=self._seed(2),
        )
        return Planner(self.task, settings, self.controller.beta, guide=self, reference=self._reference)

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

    def _step(self, games: Games, rows: Ints) -> tuple[Tensor, float]:
        """Take one optimiser step on some episodes. Returns: mean cross-entropy and value loss (2,), gradient norm."""
        total = int(games.lengths[rows].sum())
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2)
        size = self.config.micro_batch
        for start in range(0, len(rows), size):
            losses = self._losses(games, rows[start : start + size])
            (losses[0] + self.config.value_coefficient * losses[1]).sum().div(total).backward()
            sums += torch.stack([loss.detach().sum().cpu() for loss in losses])
        return sums / total, self._finish_step()

    def _losses(self, games: Games, rows: Ints) -> tuple[Tensor, Tensor]:
        """Return both losses of the states of some episodes (n,)."""
        place = np.full(len(games.lengths), -1)
        place[rows] = np.arange(len(rows))
        states = np.flatnonzero(place[games.rows] >= 0)
        columns = games.columns[states]

        def tensor(array: ArrayLike, kind: torch.dtype | None = None) -> Tensor:
            return torch.as_tensor(array, dtype=kind, device=self.policy.device)

        logits, values = self.policy.states(
            tensor(games.input_ids[rows, : columns.max() + 1]),
            tensor(place[games.rows[states]]),
            tensor(columns),
            None if games.masks is None else tensor(games.masks[states]),
        )
        outcomes = (games.outcomes[states] - self.value_offset) / (self.value_scale or 1.0)
        tokens = tensor(games.tokens[states]) if games.tokens.shape[1] < logits.shape[1] else None
        targets = tensor(games.targets[states])
        return distillation_losses(logits, values, targets, tensor(outcomes, torch.float32), tokens)
