"""Collect one batch of episodes through `reset` and `step` of a vector environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from textgym.lm.categorical import sample
from textgym.vector import scoring_together, settle_rest
from textgym_agents.lm.policy import LMPolicy


@dataclass(frozen=True)
class Rollout:
    """B finished episodes and the N states in which the policy acted, row by row and in order.

    Attributes:
        input_ids: (B, L) int64, right-padded prompts and completions.
        rows, columns: (N,) int64; state n is input_ids[rows[n], : columns[n] + 1].
        steps: (N,) int64, t of each state in its episode.
        actions: (N,) int64.
        log_probs, values: (N,) float32, of the sampling policy.
        all_log_probs: (N, V) float32 of the sampling policy, or None if it was not asked for.
        rewards: (N,) float64, the environment's.
        lengths: (B,) int64, actions per row.
        bootstrap: (B,) float64, the value head at s_T of truncated rows, 0 of ended ones.
        truncated: (B,) bool.
        stopped: (B,) bool, ended by a stop id.
        masks: (N, V) bool, the tokens that the task's grammar allows; None where it allows all.
        bootstrap_kl: (B,) float64, KL(policy || reference) at s_T of truncated rows, nats, 0 of ended ones; None if no
            reference was given.
    """

    input_ids: Tensor
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    steps: NDArray[np.int64]
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    all_log_probs: Tensor | None
    rewards: NDArray[np.float64]
    lengths: NDArray[np.int64]
    bootstrap: NDArray[np.float64]
    truncated: NDArray[np.bool_]
    stopped: NDArray[np.bool_]
    masks: Tensor | None = None
    bootstrap_kl: NDArray[np.float64] | None = None

    @property
    def first_states(self) -> NDArray[np.int64]:
        """The place of every row's first state among the N, (B,)."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)


@dataclass
class _Step:
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    tokens: Tensor
    log_probs: Tensor
    values: Tensor
    everything: Tensor | None
    rewards: NDArray[np.float64]
    masks: Tensor | None


def check_env(env: Any) -> None:
    """Raises ValueError unless `env` is a vector environment that does not reset by itself."""
    mode = getattr(env, "metadata", {}).get("autoreset_mode")
    if not hasattr(env, "num_envs") or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"env={env!r}: LM agents collect whole batches of answers and need a vector environment with "
            "autoreset_mode=DISABLED; textgym_agents.make_env(id, num_envs) makes one"
        )


@torch.no_grad()
def collect(
    env: Any,
    policy: LMPolicy,
    seed: int,
    stop_ids: tuple[int, ...],
    keep_all: bool = False,
    group: int = 1,
    reference: LMPolicy | None = None,
) -> Rollout:
    """Plays one episode in every sub-environment.

    Args:
        env: vector environment in DISABLED mode, B sub-environments.
        policy: acts by sampling.
        seed: seeds the prompts and the sampling; the same seed gives the same rollout.
        stop_ids: the ids that end an episode.
        keep_all: keep the whole log-probabilities of every state (N, V).
        group: consecutive sub-environments that answer the same prompt; divides B.
        reference: asked for the KL of states in which an outer time limit truncates a row, and of no other.
    """
    policy.forget()
    with scoring_together(env):
        rollout = _play(env, policy, seed, stop_ids, keep_all, group, reference)
    policy.forget()
    return rollout


def _play(
    env: Any,
    policy: LMPolicy,
    seed: int,
    stop_ids: tuple[int, ...],
    keep_all: bool,
    group: int,
    reference: LMPolicy | None,
) -> Rollout:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    observation = _reset(env, seed, group)
    count = env.num_envs
    masked = getattr(env.unwrapped.task, "mask", None) is not None
    active = np.ones(count, dtype=np.bool_)
    truncated_rows = np.zeros(count, dtype=np.bool_)
    bootstrap, bootstrap_kl, late = np.zeros(count), np.zeros(count), np.zeros(count)
    actions = np.zeros(count, dtype=np.int64)
    steps: list[_Step] = []

    def legal(rows: NDArray[np.int64]) -> Tensor | None:
        return torch.tensor(env.unwrapped.action_masks()[rows], device=policy.device) if masked else None

    while active.any():
        rows = np.flatnonzero(active)
        masks = legal(rows)
        log_probs, values = policy.advance(observation, active, masks)
        # Every row has its own number each step, so that no row depends on when others end.
        uniforms = torch.tensor(generator.random(count, dtype=np.float32)[rows], device=policy.device)
        tokens = sample(log_probs, uniforms)
        actions[rows] = tokens.cpu().numpy()
        columns = np.count_nonzero(observation["attention_mask"][rows], axis=1) - 1
        taken = log_probs.gather(1, tokens[:, None]).squeeze(1)
        observation, rewards, terminated, truncated, _ = env.step(actions)
        steps.append(
            _Step(
                rows,
                columns,
                tokens,
                taken,
                values,
                log_probs if keep_all else None,
                rewards[rows].astype(np.float64),
                masks,
            )
        )
        late[~active] += rewards[~active]
        cut = active & truncated & ~terminated
        if cut.any():
            # At once: the environment below the time limit may go on writing in this row.
            masks = legal(np.flatnonzero(cut))
            own, values = policy.advance(observation, cut, masks)
            bootstrap[cut] = values.cpu().numpy()
            if reference is not None:
                base, _ = reference.advance(observation, cut, masks)
                bootstrap_kl[cut] = torch.linalg.vecdot(own.exp(), own - base).cpu().numpy()
                reference.forget()
        truncated_rows |= cut
        active &= ~(terminated | truncated)
    late += settle_rest(env)[0]
    behind = bootstrap, None if reference is None else bootstrap_kl
    return _assemble(observation["input_ids"], steps, late, behind, truncated_rows, stop_ids, policy.device)


def _reset(env: Any, seed: int, group: int) -> dict[str, NDArray[Any]]:
    """Starts an episode everywhere; in groups, the first prompt drawn in each group is everybody's."""
    observation, infos = env.reset(seed=seed)
    if group > 1:
        shared = np.repeat(infos["prompt_index"][::group], group)
        observation, _ = env.reset(options={"prompt_index": shared})
    first: dict[str, NDArray[Any]] = observation
    return first


def _assemble(
    ids: NDArray[np.int64],
    steps: list[_Step],
    late: NDArray[np.float64],
    behind: tuple[NDArray[np.float64], NDArray[np.float64] | None],
    truncated: NDArray[np.bool_],
    stop_ids: tuple[int, ...],
    device: torch.device,
) -> Rollout:
    rows = np.concatenate([step.rows for step in steps])
    times = np.repeat(np.arange(len(steps)), [len(step.rows) for step in steps])
    order = np.lexsort((times, rows))
    index = torch.tensor(order, device=device)
    rows, columns = rows[order], np.concatenate([step.columns for step in steps])[order]
    everything = [step.everything for step in steps if step.everything is not None]
    masks = [step.masks for step in steps if step.masks is not None]
    lengths = np.bincount(rows, minlength=len(ids))
    width = int(columns.max()) + 2
    last = np.cumsum(lengths) - 1
    actions = torch.cat([step.tokens for step in steps])[index]
    rewards = np.concatenate([step.rewards for step in steps])[order]
    rewards[last] += late  # what a row was paid after its end belongs to its last action
    return Rollout(
        input_ids=torch.tensor(ids[:, :width], device=device),
        rows=rows,
        columns=columns,
        steps=times[order],
        actions=actions,
        log_probs=torch.cat([step.log_probs for step in steps])[index],
        values=torch.cat([step.values for step in steps])[index],
        all_log_probs=torch.cat(everything)[index] if everything else None,
        rewards=rewards,
        lengths=lengths,
        bootstrap=behind[0],
        truncated=truncated,
        stopped=np.isin(actions.cpu().numpy()[last], stop_ids),
        masks=torch.cat(masks)[index] if masks else None,
        bootstrap_kl=behind[1],
    )


@torch.no_grad()
def score_reference(reference: LMPolicy, rollout: Rollout, rows_at_once: int, everything: bool) -> Tensor:
    """Return the reference's log-probabilities of all tokens (N, V) if `everything`, else of the actions (N,)."""
    parts = []
    for chunk in micro_batches(rollout, np.arange(len(rollout.lengths)), rows_at_once, by_length=False):
        masks = None if rollout.masks is None else rollout.masks[chunk.states]
        logits, _ = reference.states(chunk.input_ids, chunk.rows, chunk.columns, masks)
        log_probs = torch.log_softmax(logits, -1)
        if not everything:
            log_probs = log_probs.gather(1, rollout.actions[chunk.states][:, None]).squeeze(1)
        parts.append(log_probs)
    return torch.cat(parts)


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a rollout, trimmed to their longest.

    Attributes:
        input_ids: (b, T) int64.
        rows, columns: (n,) int64, positions of their states in `input_ids`.
        states: (n,) int64, their indices among the rollout's N states; a slice where they are all of them in order,
            which spares copying what belongs to them.
    """

    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    states: Tensor | slice


def micro_batches(
    rollout: Rollout, rows: NDArray[np.int64], size: int, by_length: bool = True
) -> list[MicroBatch]:
    """Cut rows of a rollout into groups of at most `size`; sorted by length first, little of a group is padding."""
    starts = rollout.first_states
    if by_length:
        rows = np.sort(rows)
        rows = rows[np.argsort(rollout.columns[starts[rows] + rollout.lengths[rows] - 1], kind="stable")]
    result = []
    for first in range(0, len(rows), size):
        chosen = rows[first : first + size]
        local = np.repeat(np.arange(len(chosen)), rollout.lengths[chosen])  # (n,)
        states = np.concatenate([starts[row] + np.arange(rollout.lengths[row]) for row in chosen])  # (n,)
        columns = rollout.columns[states]
        everything = len(states) == len(rollout.rows) and bool((np.diff(states) == 1).all())
        device = rollout.input_ids.device
        result.append(
            MicroBatch(
                rollout.input_ids[torch.tensor(chosen, device=device), : int(columns.max()) + 1],
                torch.tensor(local, device=device),
                torch.tensor(columns, device=device),
                slice(None) if everything else torch.tensor(states, device=device),
            )
        )
    return result
