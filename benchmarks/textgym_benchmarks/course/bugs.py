"""The agent of chapter 12: PPO on a table, put together of small functions, each of which can be replaced by a bug."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from textgym_agents.conformance import FAILS, Estimator, Finding, LossGradient, TrainingBatch, check
from textgym_agents.protocol import Agent, Callback, Metrics, Observation, as_agent
from torch import Tensor

from textgym import Task, TokenVectorEnv
from textgym.checks import Bools, Floats, Ints, token_counts
from textgym.play import Turn, draw, play_batch
from textgym.solver import prefix_tree
from textgym.task import make_reference

Parts = Mapping[str, Callable[..., Any]]
"""Functions by the names of chapter 12's exercises, and "frozen", which makes the reference of the policy's table."""
TEMPERATURE, CLIP, LAM, EPOCHS = 0.8, 0.2, 0.9, 2
STEP, HALVED, VALUE_STEP = 8.0, 8, 0.3  # STEP is halved after 8 batches, and a third after 16
CHECKS: Final = (
    "first ratio",
    "act draws from log-probs",
    "log-prob alignment",
    "starts at the reference",
    "gradient of the stop action",
    "score on the last action",
    "token rewards add up",
    "GAE",
    "whitening",
    "logged KL",
    "penalised KL",
    "clipping",
    "gradient of J",
    "gradient with a discount",
)
"""What `findings` asks."""
_PLAIN: Final = ("clipping", "gradient of J", "gradient with a discount")


def right_parts() -> Parts:
    """Return every part without a bug: the solutions of chapter 12, and a reference that is a copy."""
    module = import_module("textgym_benchmarks.course.solutions.ch12")
    return {name: part for name, part in vars(module).items() if callable(part)} | {"frozen": np.copy}


class _Batch(NamedTuple):
    """B answers, padded to T tokens: ids (B, L), tokens, states, log-probs and values (B, T), lengths, scores (B,)."""

    input_ids: Ints
    starts: Ints  # (B,) tokens of the prompts
    tokens: Ints
    states: Ints  # places in the table; in the padding that of the last real state
    log_probs: Floats
    lengths: Ints
    scores: Floats

    @property
    def real(self) -> Bools:
        """Where the policy acted (B, T)."""
        return np.asarray(np.arange(self.tokens.shape[1]) < self.lengths[:, None])


class TablePPO:
    """PPO with a KL penalty and a critic, on a table with logits and a value for every state of a small task.

    Args:
        task: without a grammar mask; its states can be listed, and it pays at the end.
        parts: functions in place of right ones. plain: one step per batch, lambda 1, advantages as they are.
        seed: of its random draws.
    """

    name, critic = "table-ppo", True

    def __init__(self, task: Task, parts: Parts, plain: bool = False, seed: int = 0) -> None:
        if task.mask is not None:
            raise ValueError(f"task {task.name!r}: it has a grammar mask, and only tasks without one are allowed")
        self.task, self.plain, self.seed, self.iteration = task, plain, seed, 0
        self.parts: Parts = {**right_parts(), **parts}
        tree, reference = prefix_tree(task), make_reference(task)
        shown = [tree.observations(depth, level.running) for depth, level in enumerate(tree.levels[:-1])]
        self._place = {key: n for n, key in enumerate(key for each in shown for key in _keys(each))}
        logs = np.concatenate([np.asarray(reference.log_probs(each), dtype=np.float64) for each in shown])
        self.table = np.where(task.vocabulary.allowed, TEMPERATURE * logs, -np.inf)
        self.reference: Floats = self.parts["frozen"](self.table)
        self.critic_table = np.zeros(len(self.table))
        self._acting = np.random.default_rng([9, seed])

    # The policy

    def _states(self, observation: Observation) -> Ints:
        return np.array([self._place[key] for key in _keys(observation)])

    def log_probs(self, observation: Observation) -> Floats:
        """See `Agent.log_probs`."""
        return self._array("tempered_log_probs", self.table[self._states(observation)], TEMPERATURE)

    def values(self, observation: Observation) -> Floats:
        """See `Agent.values`."""
        return self.critic_table[self._states(observation)]

    def act(self, observation: Observation, deterministic: bool = False) -> Ints:
        """See `Agent.act`."""
        states = self._states(observation)
        return np.asarray(self.table[states].argmax(1)) if deterministic else self._draw(states, self._acting)[0]

    def _draw(self, states: Ints, generator: np.random.Generator) -> tuple[Ints, Floats]:
        """Return tokens drawn at the temperature, and their log-probabilities."""
        weights = np.exp((self.table[states] - self.table[states].max(1, keepdims=True)) / TEMPERATURE)
        chances = weights / weights.sum(1, keepdims=True)
        tokens = draw(chances, generator.random(len(states)))
        return tokens, np.log(chances[np.arange(len(states)), tokens])

    def _play(self, env: TokenVectorEnv, seed: int) -> _Batch:
        generator = np.random.default_rng([self.iteration, seed, self.seed])
        observation, _ = env.reset(seed=int(generator.integers(2**31)))
        starts = token_counts(observation)
        visited: list[tuple[Ints, Floats]] = []

        def choose(turn: Turn) -> Ints:
            states = self._states(turn.seen())
            tokens, logs = self._draw(states, generator)
            visited.append((states, logs))
            return tokens

        played = play_batch(env, observation, choose)
        states, logs = (np.concatenate(column) for column in zip(*visited, strict=True))
        shape, at = (env.num_envs, int(played.lengths.max())), (played.rows, played.times)
        tokens = np.full(shape, self.task.vocabulary.pad_id)
        places, log_probs = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        tokens[at], places[at], log_probs[at] = played.actions, states, logs
        last = np.minimum(np.arange(shape[1]), played.lengths[:, None] - 1)  # (B, T), in the padding the last real step
        places = np.take_along_axis(places, last, axis=1)
        ids = np.asarray(played.observation["input_ids"], dtype=np.int64)
        return _Batch(ids, starts, tokens, places, log_probs, played.lengths, played.sums(played.rewards))

    # Learning

    def _array(self, name: str, *given: object) -> Floats:
        """Return what a part makes of these, as an array."""
        return np.asarray(self.parts[name](*given), dtype=np.float64)

    def _credit(self, batch: _Batch) -> tuple[Floats, Floats, Floats, Floats, Bools]:
        """Return log-ratios, token rewards, advantages, their weights in the loss, and the mask, (B, T) each."""
        part, width = self._array, batch.tokens.shape[1]
        base = _taken(self.reference[batch.states], batch.tokens)
        rewards = part("scores_on_tokens", batch.scores, batch.lengths, width)
        rewards = part("discounted_rewards", rewards, self.task.gamma)
        rewards = part("charged_rewards", rewards, batch.log_probs, np.where(batch.real, base, 0.0), self.task.beta)
        lam = 1.0 if self.plain else LAM
        advantages = part("gae_rows", rewards, self.critic_table[batch.states], batch.lengths, lam)
        mask = part("action_mask", batch.tokens, batch.lengths, self.task.vocabulary.pad_id).astype(np.bool_)
        weights = advantages if self.plain else part("whitened", advantages, mask)
        return np.where(batch.real, batch.log_probs - base, 0.0), rewards, advantages, weights, mask

    def _losses(self, batch: _Batch, weights: Floats, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the policy loss and the log-ratio to the sampler of every token, (B, T), from logits (B, T, V)."""
        logs = leaf.numpy(force=True).reshape(-1, leaf.shape[-1])
        scored = torch.tensor(self._array("tempered_log_probs", logs, TEMPERATURE)).reshape(leaf.shape)
        # The part gives numbers; their gradient is that of a softmax of these logits.
        own = (leaf / TEMPERATURE).log_softmax(-1)
        new = (own + (scored - own).nan_to_num().detach()).gather(2, torch.tensor(batch.tokens)[:, :, None])[:, :, 0]
        old, real = torch.tensor(batch.log_probs), torch.tensor(batch.real)
        new = torch.where(real, new, torch.zeros_like(new))
        return self.parts["ppo_losses"](new, old, torch.tensor(weights), CLIP), (new - old).detach()

    def _gradient(self, batch: _Batch, weights: Floats, mask: Bools, whole: bool = False) -> tuple[Floats, Floats]:
        """Return the loss's gradient on the logits (B, T, V), in two micro-batches, and the log-ratios (B, T).

        Args: whole: of the sum over tokens, without micro-batches.
        """
        leaf = torch.tensor(np.where(np.isneginf(table := self.table[batch.states]), -1e9, table), requires_grad=True)
        losses, log_ratio = self._losses(batch, weights, leaf)
        real = torch.tensor(mask)
        count = len(mask) * self.task.max_new_tokens if self.plain else int(batch.lengths.sum())
        if whole:
            loss = (losses * real).sum()
        else:
            halves = np.array_split(np.argsort(batch.lengths, kind="stable"), 2)
            widths = [int(batch.lengths[rows].max()) for rows in halves]
            cut = [(losses[rows, :width], real[rows, :width]) for rows, width in zip(halves, widths, strict=True)]
            loss = torch.stack([self.parts["micro_batch_loss"](*each, count) for each in cut]).sum()
        loss.backward()
        assert leaf.grad is not None
        return leaf.grad.numpy(), log_ratio.numpy()

    def learn(self, env: TokenVectorEnv, episodes: int, callback: Callback | None = None) -> None:
        """See `Agent.learn`."""
        for done in range(env.num_envs, episodes + 1, env.num_envs):
            batch = self._play(env, 0)
            log_ratio, _, advantages, weights, mask = self._credit(batch)
            values = self.critic_table[batch.states]
            metrics = self._metrics(batch, log_ratio, values, advantages)
            rate = STEP / (1 + self.iteration / HALVED)
            for epoch in range(1 if self.plain else EPOCHS):
                gradient, moved = self._gradient(batch, weights, mask)
                first = epoch == 0
                metrics |= _ratios(moved[batch.real], "val/first_kl" if first else "val/last_kl", first)
                step = np.zeros_like(self.table)
                np.add.at(step, batch.states, gradient)
                self.table -= rate * step
            self._teach(batch, values + advantages)
            self.iteration += 1
            metrics |= {"iteration": float(self.iteration), "episode": float(done), "lr": rate}
            if callback is not None and callback(metrics):
                return

    def _teach(self, batch: _Batch, targets: Floats) -> None:
        """Move V of every state that was played towards the mean of its targets."""
        states, size = batch.states[batch.real], len(self.critic_table)
        sums = np.bincount(states, targets[batch.real] - self.critic_table[states], size)
        self.critic_table += VALUE_STEP * sums / np.maximum(np.bincount(states, minlength=size), 1)

    def _metrics(self, batch: _Batch, log_ratio: Floats, values: Floats, advantages: Floats) -> Metrics:
        gamma, stops = self.task.gamma, self.task.vocabulary.stop_ids
        kl = float(self.parts["mean_kl"](log_ratio, batch.real))
        returns = batch.scores * gamma ** (batch.lengths - 1)
        stopped = np.isin(batch.tokens[np.arange(len(returns)), batch.lengths - 1], stops)
        targets = (values + advantages)[batch.real]
        metrics = {
            "objective/scores": float(returns.mean()),
            "objective/scores_std": float(returns.std()),
            "objective/kl": kl,
            "objective/rlhf_reward": float(returns.mean()) - self.task.beta * kl,
            "policy/entropy_avg": float(-batch.log_probs[batch.real].mean()),
            "completion_length": float(batch.lengths.mean()),
        }
        if targets.var() > 1e-8:
            metrics["val/explained_variance"] = float(1 - advantages[batch.real].var() / targets.var())
        if stops:
            metrics |= {"val/cut_rate": float(1 - stopped.mean()), "val/num_eos_tokens": float(stopped.sum())}
        return metrics

    # For the conformance kit

    def conformance_hooks(self) -> Mapping[str, Callable[..., object]]:
        """See `Agent.conformance_hooks`."""
        return {"batch": self._training_batch, "gradient": self._loss_gradient, "surrogate": self._surrogate}

    def _training_batch(self, env: TokenVectorEnv) -> TrainingBatch:
        batch = self._play(env, 0)
        real = batch.real
        log_ratio, rewards, advantages, weights, mask = self._credit(batch)
        rows, steps = np.nonzero(real)
        paid = self._array("scores_on_tokens", batch.scores, batch.lengths, real.shape[1])
        return TrainingBatch(
            input_ids=batch.input_ids,
            rows=rows,
            columns=batch.starts[rows] - 1 + steps,
            actions=batch.tokens[real],
            log_probs=batch.log_probs[real],
            rewards=paid[real],
            penalties=log_ratio[real],
            token_rewards=rewards[real],
            beta=self.task.beta,
            gamma=self.task.gamma,
            lam=1.0 if self.plain else LAM,
            values=self.critic_table[batch.states][real],
            advantages=advantages[real],
            weights=weights[real],
            logit_gradient=self._gradient(batch, weights, mask, whole=True)[0][real],
        )

    def _loss_gradient(self, env: TokenVectorEnv, seed: int) -> LossGradient:
        batch = self._play(env, seed + 1)
        _, _, advantages, weights, mask = self._credit(batch)
        gradient, _ = self._gradient(batch, weights, mask)
        rows, steps = np.nonzero(batch.real)
        return LossGradient(
            input_ids=batch.input_ids,
            rows=rows,
            columns=batch.starts[rows] - 1 + steps,
            logits=gradient[batch.real],
            beta=self.task.beta,
            values=-advantages[batch.real],
            estimator=Estimator("value"),
        )

    def _surrogate(self, log_ratios: Floats, advantages: Floats) -> Floats:
        new, weights = torch.tensor(log_ratios), torch.tensor(advantages)
        losses: Floats = self.parts["ppo_losses"](new, torch.zeros_like(new), weights, CLIP).numpy()
        return losses


def _keys(observation: Observation) -> list[tuple[int, ...]]:
    """Return the real tokens of every row."""
    lengths = token_counts(observation)
    return [tuple(row[:n].tolist()) for row, n in zip(observation["input_ids"], lengths, strict=True)]


def _taken(logits: Floats, tokens: Ints) -> Floats:
    """Return the log-probabilities (B, T) of tokens under logits (B, T, V) at the temperature."""
    logs = torch.tensor(logits / TEMPERATURE).log_softmax(-1)
    return np.asarray(logs.gather(2, torch.tensor(tokens)[:, :, None])[:, :, 0].numpy())


def _ratios(log_ratio: Floats, name: str, first: bool) -> Metrics:
    """Return how far tokens (N,) are from the policy that sampled them, as metrics."""
    ratio = np.exp(log_ratio)
    clipped = float((np.abs(ratio - 1) > CLIP).mean())
    found = {name: float(0.5 * np.square(log_ratio).mean()), "policy/clipfrac_avg": clipped}
    return found | ({"val/first_ratio": float(ratio.mean()), "val/first_clipfrac": clipped} if first else {})


def findings(parts: Parts, checks: Sequence[str] = CHECKS) -> list[Finding]:
    """Return what the conformance kit finds wrong with the agent that has these parts, in the order of its checks.

    Args: parts: see `TablePPO`. checks: names of the kit's checks.
    """
    found: list[Finding] = []
    for plain in (False, True):
        names = [name for name in checks if (name in _PLAIN) == plain]
        found += check(partial(_made, parts, plain), names)
    return [each for each in found if each.status == FAILS]


def _made(parts: Parts, plain: bool, env: TokenVectorEnv) -> Agent:
    return as_agent(TablePPO(env.unwrapped.task, parts, plain))


def trained(task: Task, parts: Parts, episodes: int, callback: Callback | None = None, seed: int = 0) -> TablePPO:
    """Return the agent after so many episodes of a task, 64 a batch."""
    agent = TablePPO(task, parts, seed=seed)
    agent.learn(TokenVectorEnv(task, 64, autoreset_mode=AutoresetMode.DISABLED), episodes, callback)
    return agent
