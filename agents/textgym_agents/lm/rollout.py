"""Collect one batch of episodes through `reset` and `step` of a vector environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Bools, Floats, Ints
from textgym.lm.categorical import chunks, sample
from textgym.lm.causal import FORBIDDEN
from textgym.play import PlayedBatch, Turn, play_batch, reset_groups
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import PackedMasks


@dataclass(frozen=True)
class Rollout:
    """B finished episodes and the N states in which the policy acted, row by row and in order.

    State n is input_ids[rows[n], : columns[n] + 1]; what stands None was not asked for, or there is nothing of it.
    """

    input_ids: Tensor  # (B, L) int64, right-padded prompts and completions
    rows: Ints  # (N,) int64
    columns: Ints  # (N,) int64
    steps: Ints  # (N,) int64, t of each state in its episode
    actions: Tensor  # (N,) int64
    log_probs: Tensor  # (N,) float32, nats, of the policy that sampled
    values: Tensor  # (N,) float32, of its value head
    features: Tensor | None  # (N, F), of which it makes its distributions
    rewards: Floats  # (N,) float64, the environment's
    lengths: Ints  # (B,) int64, actions per row
    bootstrap: Floats  # (B,) float64, the value head at s_T of truncated rows, 0 of ended ones
    truncated: Bools  # (B,) bool
    stopped: Bools  # (B,) bool, its last action was one that ends a completion or a turn
    masks: PackedMasks | None = None  # the tokens that the task's grammar allows
    bootstrap_kl: Floats | None = None  # (B,) float64, KL(policy || reference) at s_T of truncated rows, nats, else 0
    kept: PackedMasks | None = None  # of those in `masks`, the tokens that the policy's cut kept
    sampler_log_probs: Tensor | None = None  # (N,) float32, nats, of another sampler that wrote the actions
    importance: Tensor | None = None  # (N,) float32, what then weighs them as the policy's
    rounds: int = 1  # batches of the environment that it is made of

    @property
    def first_states(self) -> Ints:
        """The place of every row's first state among the N, (B,)."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    def masks_of(self, states: Tensor | slice) -> Tensor | None:
        """Return the masks of some of the N states (n, V); None where the grammar allows all."""
        return None if self.masks is None else self.masks[states]

    def kept_of(self, states: Tensor | slice) -> Tensor | None:
        """Return what the policy may take in some of the N states (n, V); None where that is everything."""
        return self.masks_of(states) if self.kept is None else self.kept[states]


@torch.no_grad()
def collect(
    env: TokenVectorEnv,
    policy: LMPolicy,
    seed: int,
    stop_ids: tuple[int, ...],
    keep_features: bool = False,
    group: int = 1,
    reference: LMPolicy | None = None,
    devices: Devices = ALONE,
) -> Rollout:
    """Play one episode of the policy in every sub-environment, and return them.

    Args:
        env: vector environment in DISABLED mode, B sub-environments.
        seed: seeds the prompts and the sampling; the same seed gives the same rollout.
        stop_ids: the ids that end an episode or a turn. keep_features: keep the features of every state (N, F).
        group: consecutive sub-environments that answer the same prompt; divides B.
        reference: asked for the KL of states in which an outer time limit truncates a row, and of no other.
        devices: whose ranks each play a part of the batch; a row is the same whichever plays it.
    """
    policy.forget()
    observation, _ = reset_groups(env, seed + devices.rank * env.num_envs, group)
    sampler = Recorder(policy, reference, keep_features, seed, env.num_envs, devices)
    played = play_batch(env, observation, sampler.choose, at_limit=sampler.bootstrap_from)
    policy.forget()
    return sampler.rollout(played, stop_ids)


class Recorder:
    """Sample the tokens of a batch, and keep what the policy said of its states, step by step."""

    def __init__(
        self, policy: LMPolicy, reference: LMPolicy | None, keep: bool, seed: int, count: int, devices: Devices
    ) -> None:
        self._devices, self._keep_features = devices, keep
        self._policy, self._reference = policy, reference
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
        self._columns: list[Ints] = []
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, their log-probabilities, values
        self._features: list[Tensor] = []
        self._masks: list[PackedMasks] = []
        self._cuts: list[PackedMasks] = []
        self._bootstrap = np.zeros(count)
        self._bootstrap_kl = None if reference is None else np.zeros(count)

    def choose(self, turn: Turn) -> Ints:
        """Return the next tokens (n,) of the running rows."""
        masks = self._tensor(turn.masks)
        features = self._policy.read(turn.observation, turn.running)
        logits, values = self._policy.heads(features, masks)
        if self._policy.cut is not None:
            kept = self._policy.cut.kept(logits, turn.observation, turn.running)
            logits = logits.masked_fill(~kept, FORBIDDEN)
            self._cuts.append(PackedMasks.pack(kept))
        log_probs = torch.log_softmax(logits, -1)
        # Every row has its own number each step, so that no row depends on when others end.
        everywhere = self._generator.random(len(turn.running) * self._devices.world, dtype=np.float32)
        uniforms = everywhere[turn.rows + len(turn.running) * self._devices.rank]
        tokens = sample(log_probs, torch.tensor(uniforms, device=self._policy.device))
        self.keep(turn, tokens, log_probs.gather(1, tokens[:, None]).squeeze(1), values)
        if self._keep_features:
            self._features.append(features)
        return np.asarray(tokens.cpu().numpy())

    def keep(self, turn: Turn, tokens: Tensor, log_probs: Tensor, values: Tensor) -> None:
        """Keep what was taken in the states of a turn, (n,) each."""
        self._columns.append(np.count_nonzero(turn.observation["attention_mask"][turn.rows], axis=1) - 1)
        self._kept.append((tokens, log_probs, values))
        if turn.masks is not None:
            self._masks.append(PackedMasks.pack(torch.tensor(turn.masks, device=self._policy.device)))

    def bootstrap_from(self, turn: Turn) -> None:
        """Keep V, and the KL to the reference, of the states in which an outer limit stopped the rows of a turn."""
        masks = self._tensor(turn.masks)
        own, values = self._policy.advance(turn.observation, turn.running, masks)
        self._bootstrap[turn.rows] = values.cpu().numpy()
        if self._reference is not None and self._bootstrap_kl is not None:
            base, _ = self._reference.advance(turn.observation, turn.running, masks)
            self._bootstrap_kl[turn.rows] = torch.linalg.vecdot(own.exp(), own - base).cpu().numpy()
            self._reference.forget()

    def rollout(self, played: PlayedBatch, stop_ids: tuple[int, ...]) -> Rollout:
        """Return what was played and kept, row by row."""
        device = self._policy.device
        order = np.lexsort((played.times, played.rows))
        index = torch.tensor(order, device=device)
        actions, log_probs, values = (torch.cat(column)[index] for column in zip(*self._kept, strict=True))
        columns = np.concatenate(self._columns)[order]
        return Rollout(
            input_ids=torch.tensor(played.observation["input_ids"][:, : columns.max() + 2], device=device),
            rows=played.rows[order],
            columns=columns,
            steps=played.times[order],
            actions=actions,
            log_probs=log_probs,
            values=values,
            features=torch.cat(self._features)[index] if self._features else None,
            rewards=played.rewards[order],
            lengths=played.lengths,
            bootstrap=self._bootstrap,
            truncated=played.truncated,
            stopped=np.isin(played.actions[order][np.cumsum(played.lengths) - 1], stop_ids),
            masks=PackedMasks.join(self._masks, index) if self._masks else None,
            bootstrap_kl=self._bootstrap_kl,
            kept=PackedMasks.join(self._cuts, index) if self._cuts else None,
        )

    def _tensor(self, masks: Bools | None) -> Tensor | None:
        return None if masks is None else torch.tensor(masks, device=self._policy.device)


@torch.no_grad()
def score_reference(reference: LMPolicy, rollout: Rollout, rows_at_once: int, everything: bool) -> Tensor:
    """Return a reference's features (N, F) of a rollout if `everything`, else log ref(a) (N,); by `rows_at_once`."""
    parts = []
    for part in micro_batches(rollout, np.arange(len(rollout.lengths)), rows_at_once, by_length=False):
        features = reference.features(part.input_ids, part.rows, part.columns)
        if everything:
            parts.append(features)
            continue
        for at in chunks(features, reference.backbone.vocab_size):
            states = part.states[at]
            log_probs = reference.distribution(features[at], rollout.masks_of(states))
            parts.append(log_probs.gather(1, rollout.actions[states][:, None]).squeeze(1))
    return torch.cat(parts)


@torch.no_grad()
def token_kl(rollout: Rollout, policy: LMPolicy, reference: LMPolicy, scored: Tensor, kind: KL) -> Floats:
    """Return the penalised KL of each state under the sampling policy (N,), nats.

    Args:
        policy: the one that has sampled, unchanged since. reference: the frozen one.
        scored: what `score_reference` gave: (N, F) for "exact", else (N,).
    """
    if kind != "exact":
        return np.asarray((rollout.log_probs - scored).cpu().double().numpy())
    assert rollout.features is not None
    parts = []
    for at in chunks(scored, policy.backbone.vocab_size):
        old = policy.distribution(rollout.features[at], rollout.kept_of(at))  # (n, V)
        base = reference.distribution(scored[at], rollout.masks_of(at))
        parts.append(torch.linalg.vecdot(old.exp(), old - base))
    return np.asarray(torch.cat(parts).cpu().double().numpy())


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a rollout, trimmed to their longest."""

    input_ids: Tensor  # (b, T) int64
    rows: Tensor  # (n,) int64, of their states in `input_ids`
    columns: Tensor  # (n,) int64
    states: Tensor  # (n,) int64, their places among the rollout's N states


def micro_batches(rollout: Rollout, rows: Ints, size: int, by_length: bool = True) -> list[MicroBatch]:
    """Cut rows of a rollout into groups of at most `size`; sorted by length first, little of a group is padding."""
    starts, device = rollout.first_states, rollout.input_ids.device
    if by_length:
        rows = np.sort(rows)
        rows = rows[np.argsort(rollout.columns[starts[rows] + rollout.lengths[rows] - 1], kind="stable")]
    result = []
    for chosen in (rows[first : first + size] for first in range(0, len(rows), size)):
        local = np.repeat(np.arange(len(chosen)), rollout.lengths[chosen])  # (n,)
        states = np.concatenate([starts[row] + np.arange(rollout.lengths[row]) for row in chosen])  # (n,)
        columns = rollout.columns[states]
        own, *places = (torch.tensor(each, device=device) for each in (chosen, local, columns, states))
        result.append(MicroBatch(rollout.input_ids[own, : int(columns.max()) + 1], *places))
    return result
