"""Samplers, which continue token prefixes apart from any environment, and rollouts made of what they wrote.

The transition is deterministic, so whole completions are replayed through `step`: rewards, ends and infos are the
environment's, and log-probabilities the policy's own, computed of finished rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Floats, Ints
from textgym.lm.categorical import chunks, sample
from textgym.lm.causal import FORBIDDEN
from textgym.play import Turn, play_batch, reset_groups
from textgym.task import MinNewTokens, Task, refuse_turns
from textgym.vector import TokenVectorEnv
from textgym_agents.config import Importance
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import PackedMasks, Processors
from textgym_agents.lm.rollout import Recorder, Rollout, micro_batches
from textgym_agents.protocol import token_rows


class SampledCompletion(NamedTuple):
    """What a sampler wrote behind one prefix.

    Attributes:
        ids: (T,) int64, the stop id included where it wrote one.
        log_probs: (T,) float64, nats, of the distribution that each was drawn from.
        version: of the weights that wrote it, see `Sampler.update`.
    """

    ids: Ints
    log_probs: Floats
    version: int


class Sampler(Protocol):
    """Continues token prefixes. What else it is to do, such as top-p, it is told when it is made."""

    def sample(
        self,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        stop_ids: Sequence[int],
        temperature: float,
        allowed_ids: Sequence[int] | None,
        seeds: Sequence[int],
    ) -> list[SampledCompletion]:
        """Return a completion of each of B prefixes.

        Args:
            prefixes: B rows of token ids, one at least in each.
            budgets: B counts of tokens, after which a completion ends.
            stop_ids: end a completion, and are its last token.
            temperature: > 0; divides the logits.
            allowed_ids: no others are written; None: any.
            seeds: B; a completion depends on its own seed, and not on what else is in the batch.
        """

    def update(self, policy: LMPolicy, version: int) -> None:
        """Sample from a policy's present weights from now on, and call them `version`."""


class DecoderSampler:
    """`Sampler` by the policy's own model and key-value cache.

    Args:
        policy: its model writes; what it allows and its temperature are left aside.
        processors: cut its distribution.
        min_new_tokens: tokens before which no stop id is written.
    """

    def __init__(self, policy: LMPolicy, processors: Processors | None = None, min_new_tokens: int = 0) -> None:
        self._policy, self._version = policy, 0
        self._processors, self._least = processors or Processors(), min_new_tokens

    def update(self, policy: LMPolicy, version: int) -> None:
        """See `Sampler.update`. The weights are not copied: they are the policy's, as they are when it samples."""
        self._policy, self._version = policy, version

    @torch.no_grad()
    def sample(
        self,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        stop_ids: Sequence[int],
        temperature: float,
        allowed_ids: Sequence[int] | None,
        seeds: Sequence[int],
    ) -> list[SampledCompletion]:
        """See `Sampler.sample`."""
        self._policy.forget()
        starts, most = np.array([len(prefix) for prefix in prefixes]), np.array(budgets)
        ids = np.zeros((len(starts), int((starts + most).max())), dtype=np.int64)
        for row, prefix in zip(ids, prefixes, strict=True):
            row[: len(prefix)] = prefix
        log_probs, lengths = np.zeros((len(starts), int(most.max()))), np.zeros(len(starts), dtype=np.int64)
        generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        running = most > 0
        while running.any():
            mask = np.arange(ids.shape[1]) < (starts + lengths)[:, None]
            features = self._policy.read({"input_ids": ids, "attention_mask": mask.astype(np.int8)}, running)
            rows = np.flatnonzero(running)
            early = stop_ids if int(lengths[rows[0]]) < self._least else ()  # running rows are of one length
            logs = self._log_probs(features, temperature, allowed_ids, early)
            uniforms = torch.tensor([generators[row].random() for row in rows], dtype=torch.float32)
            tokens = sample(logs, uniforms.to(logs.device))
            ids[rows, starts[rows] + lengths[rows]] = tokens.cpu().numpy()
            log_probs[rows, lengths[rows]] = logs.gather(1, tokens[:, None]).squeeze(1).cpu().numpy()
            lengths[rows] += 1
            running[rows] = (lengths < most)[rows] & ~np.isin(tokens.cpu().numpy(), stop_ids)
        self._policy.forget()
        written = zip(ids, log_probs, starts, lengths, strict=True)
        return [SampledCompletion(row[s : s + n], logs[:n], self._version) for row, logs, s, n in written]

    def _log_probs(
        self, features: Tensor, temperature: float, allowed_ids: Sequence[int] | None, forbidden: Sequence[int]
    ) -> Tensor:
        """Return the log-probabilities (n, V) that tokens are drawn from."""
        with self._policy.precision():
            logits = self._policy.backbone.read_out(features)[0].float() / temperature
        barred = torch.full((logits.shape[1],), allowed_ids is not None, device=logits.device)
        if allowed_ids is not None:
            barred[torch.as_tensor(np.array(allowed_ids), device=logits.device)] = False
        barred[list(forbidden)] = True
        logits = logits.masked_fill(barred, FORBIDDEN)
        return torch.log_softmax(logits.masked_fill(~self._processors.kept(logits), FORBIDDEN), -1)


def check_sampled(task: Task) -> None:
    """Raise ValueError for a task with turns, whose replies a sampler does not see, or with a mask, see the error."""
    refuse_turns(task, "a sampler")
    mask = task.mask.mask if isinstance(task.mask, MinNewTokens) else task.mask
    if mask is not None:
        raise ValueError(
            f"task {task.name!r}: its mask ({type(mask).__name__}) depends on the state, which a sampler does not "
            "see; allowed are tasks without a mask, with min_new_tokens or without, or sampler=None"
        )


@dataclass
class SampledRollouts:
    """Plays batches by a sampler, in the place of `textgym_agents.lm.rollout.collect`.

    Args:
        task: says what may be written. Raises: ValueError if it has turns, or a mask but for `min_new_tokens`.
        sampler: writes the completions.
        weigh: what its actions weigh, by log pi(a) - log sampler(a) (N,) and the rows that they stand in (N,).
        rows_at_once: of a forward pass.
        version: of the weights that the sampler has.
    """

    task: Task
    sampler: Sampler
    weigh: Callable[[Tensor, Tensor], Tensor] = field(default_factory=lambda: importance_weights)
    rows_at_once: int = 64
    version: int = 0

    def __post_init__(self) -> None:
        check_sampled(self.task)

    def __call__(
        self,
        env: TokenVectorEnv,
        policy: LMPolicy,
        seed: int,
        stop_ids: tuple[int, ...],
        keep_features: bool = False,
        group: int = 1,
        reference: LMPolicy | None = None,
        devices: Devices = ALONE,
    ) -> Rollout:
        """Bring the policy's weights into the sampler, and play one episode in every sub-environment with it.

        When an episode ends is for the environment to say: what a completion has more is left out.

        Args: see `collect`.
        Raises: ValueError for a completion that ends before its episode, or holds what the task forbids; for several
            devices.
        """
        if devices.world > 1:
            raise ValueError(
                f"sampler: {devices.world} processes share the batch; allowed with several is sampler=None"
            )
        self.version += 1
        self.sampler.update(policy, self.version)
        observation, _ = reset_groups(env, seed, group)
        prefixes, allowed = token_rows(observation), self.task.vocabulary.allowed
        completions = self.sampler.sample(
            prefixes,
            [self.task.max_new_tokens] * len(prefixes),
            stop_ids,
            policy.temperature,
            None if allowed.all() else np.flatnonzero(allowed).tolist(),
            np.random.SeedSequence([seed, 1]).generate_state(len(prefixes)).tolist(),
        )
        policy.forget()
        recorder = _Replayed(completions, policy, reference, seed)
        played = play_batch(env, observation, recorder.choose, at_limit=recorder.bootstrap_from)
        policy.forget()
        return scored(policy, recorder.rollout(played, stop_ids), self.rows_at_once, keep_features, self.weigh)


class _Replayed(Recorder):
    """Writes what completions say; `values` of its rollout are 0, `log_probs` those of the sampler."""

    def __init__(
        self, completions: Sequence[SampledCompletion], policy: LMPolicy, reference: LMPolicy | None, seed: int
    ) -> None:
        super().__init__(policy, reference, False, seed, len(completions), ALONE)
        self._completions = completions

    def choose(self, turn: Turn) -> Ints:
        """Return the next tokens (n,) of the running rows."""
        for row in turn.rows:
            written = len(self._completions[row].ids)
            if written <= turn.time:
                raise ValueError(
                    f"sampler: its completion {row} ended after {written} tokens, and the episode goes on; "
                    "allowed are completions that end by one of the task's stop ids or its max_new_tokens alone"
                )
        tokens = np.array([self._completions[row].ids[turn.time] for row in turn.rows])
        logs = [self._completions[row].log_probs[turn.time] for row in turn.rows]
        log_probs = torch.tensor(logs, dtype=torch.float32, device=self._policy.device)
        self.keep(turn, torch.tensor(tokens, device=self._policy.device), log_probs, torch.zeros_like(log_probs))
        return tokens


def importance_weights(
    log_ratio: Tensor,
    rows: Tensor,
    how: Importance = "truncate",
    level: Literal["token", "sequence"] = "token",
    cap: float = 2.0,
    floor: float = 0.0,
) -> Tensor:
    """Return what the actions of another sampler, or of an older policy, weigh as those of the policy (N,).

    Args:
        log_ratio: (N,) log pi(a) - log mu(a), nats, with mu the distribution that has written them.
        rows: (N,) int64, the completion that each stands in.
        how: "none": 1. "truncate": min(rho, cap). "mask": rho where it is in [floor, cap], else 0.
        level: rho is pi / mu of the action, or the product of these over its completion.
    Source: truncated: Ionides (2008), Truncated importance sampling; Espeholt et al. (2018), arXiv:1802.01561, eq. 1;
        Yao et al. (2025), Your Efficient RL Framework Secretly Brings You Off-Policy RL Training. Masked: Liu et al.
        (2025), When Speed Kills Stability; per token, with a floor: Ling Team (2025), arXiv:2510.18855 (IcePop).
    """
    if how == "none":
        return torch.ones_like(log_ratio)
    if level == "sequence":
        sums = log_ratio.new_zeros(int(rows.max()) + 1).index_add_(0, rows, log_ratio)
        log_ratio = sums[rows]
    rho = log_ratio.exp()
    return rho.clamp(max=cap) if how == "truncate" else torch.where((rho >= floor) & (rho <= cap), rho, 0.0)


@torch.no_grad()
def scored(
    policy: LMPolicy,
    replayed: Rollout,
    rows_at_once: int,
    keep_features: bool,
    weigh: Callable[[Tensor, Tensor], Tensor],
) -> Rollout:
    """Return a replayed rollout with the policy's own log-probabilities, values and kept tokens.

    The tokens kept in a state are those of the policy's logits, and the one that the sampler took.

    Args:
        replayed: its `log_probs` are the sampler's.
        weigh: see `SampledRollouts`.
    Raises: ValueError for an action that the task does not allow.
    """
    rows, found, features = np.arange(len(replayed.lengths)), [], []
    cuts: list[PackedMasks] = []
    for part in micro_batches(replayed, rows, rows_at_once, by_length=False):
        read = policy.features(part.input_ids, part.rows, part.columns)
        features += [read] if keep_features else []
        for at in chunks(read, policy.backbone.vocab_size):
            states = part.states[at]
            actions = replayed.actions[states][:, None]
            logits, values = policy.heads(read[at], replayed.masks_of(states))
            _check_actions(logits, actions)
            if policy.cut is not None:
                kept = policy.cut.kept(logits).scatter_(1, actions, True)
                cuts.append(PackedMasks.pack(kept))
                logits = logits.masked_fill(~kept, FORBIDDEN)
            found.append((torch.log_softmax(logits, -1).gather(1, actions).squeeze(1), values))
    log_probs, values = (torch.cat(column) for column in zip(*found, strict=True))
    return replace(
        replayed,
        log_probs=log_probs,
        values=values,
        features=torch.cat(features) if keep_features else None,
        kept=PackedMasks.join(cuts) if cuts else None,
        sampler_log_probs=replayed.log_probs,
        importance=weigh(log_probs - replayed.log_probs, torch.tensor(replayed.rows, device=log_probs.device)),
    )


def _check_actions(logits: Tensor, actions: Tensor) -> None:
    """Raise ValueError if one of the actions (n, 1) is forbidden in its state."""
    forbidden = logits.gather(1, actions) <= FORBIDDEN / 2
    if forbidden.any():
        token = int(actions[forbidden][0])
        raise ValueError(f"sampler: it wrote token {token}, which the task does not allow in its state")
