"""Play a batch of episodes to their ends, whatever chooses the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import Observation
from textgym.vector import TokenVectorEnv, scoring_together, settle_rest
from textgym.vector_io import Infos

LogProbs = NDArray[np.floating[Any]]
Scalar = TypeVar("Scalar", bound=np.generic)


class Turn(NamedTuple):
    """The running rows of a batch of N episodes, before they write their next token.

    Attributes:
        time: tokens that each of them has written since the batch began.
        running: (N,) bool. rows: (n,) int64, the places of True in it.
        observation: of all rows, arrays (N, L), with `segment_ids` whatever the environment shows.
        masks: (n, V) bool, the tokens that the task's grammar allows; None where it allows all.
    """

    time: int
    running: Bools
    rows: Ints
    observation: Observation
    masks: Bools | None

    def seen(self) -> Observation:
        """Return the observations of the running rows, arrays (n, L), `segment_ids` among them."""
        if len(self.rows) == len(self.running):
            return self.observation
        return {name: array[self.rows] for name, array in self.observation.items()}


class FinalInfos(NamedTuple):
    """The last infos of N episodes.

    Attributes:
        completions, written, finish_reasons: (N,) texts, what the policy wrote of them, and why they ended; "" in a row
            that an outer limit stopped.
        gold: (N,) reward units; NaN where the task has none.
        terms: reward term -> (N,), NaN where the row has none.
    """

    completions: NDArray[np.object_]
    written: NDArray[np.object_]
    finish_reasons: NDArray[np.object_]
    gold: Floats
    terms: dict[str, Floats]


@dataclass(frozen=True)
class PlayedBatch:
    """N finished episodes and their M actions in the order of time.

    Attributes:
        rows, times, actions: (M,) int64.
        rewards: (M,) float64. A reward that came after its row had ended is that of the row's last action.
        lengths: (N,) int64, tokens.
        truncated: (N,) bool, whether an outer limit stopped the row.
        observation: the last one of all rows, arrays (N, L).
        infos: those of the steps in which episodes ended; see `final`.
    """

    rows: Ints
    times: Ints
    actions: Ints
    rewards: Floats
    lengths: Ints
    truncated: Bools
    observation: Observation
    infos: tuple[Infos, ...]

    def sums(self, values: Floats) -> Floats:
        """Return the sum of some values (M,) over each row, (N,)."""
        return np.bincount(self.rows, values, len(self.lengths)).astype(np.float64)

    def discounted(self, gamma: float) -> Floats:
        """Return the rewards (M,), discounted to the beginning of the batch."""
        return np.asarray(gamma**self.times * self.rewards)

    def returns(self, gamma: float) -> Floats:
        """Return the sums (N,) of the discounted rewards."""
        return self.sums(self.discounted(gamma))

    def by_time(self, values: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """Split an array (M, ...) into one for each step."""
        return np.split(values, np.flatnonzero(np.diff(self.times)) + 1)

    @cached_property
    def final(self) -> FinalInfos:
        """The last infos of every row, collected from the steps in which rows ended."""
        count = len(self.lengths)
        texts, written, reasons = (np.full(count, "", dtype=object) for _ in range(3))
        found = FinalInfos(texts, written, reasons, np.full(count, np.nan), {})
        for infos in self.infos:
            rows = np.flatnonzero(infos["_completion"] & ~self.truncated)
            found.completions[rows] = infos["completion"][rows]
            found.written[rows] = infos["written" if "written" in infos else "completion"][rows]
            found.finish_reasons[rows] = infos["finish_reason"][rows]
            if "gold" in infos:
                found.gold[rows] = infos["gold"][rows]
            for name, values in infos["reward_terms"].items():
                if not name.startswith("_"):
                    found.terms.setdefault(name, np.full(count, np.nan))[rows] = values[rows]
        return found


def check_env(env: object) -> None:
    """Raise ValueError unless `env` is a vector environment that does not reset by itself."""
    mode = getattr(env, "metadata", {}).get("autoreset_mode")
    if not hasattr(env, "num_envs") or mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"env={env!r}: allowed is a vector environment with autoreset_mode=DISABLED, to play whole batches "
            "of episodes; textgym_agents.make_env(id, num_envs) makes one"
        )


def reset_groups(env: TokenVectorEnv, seed: int, group: int = 1) -> tuple[Observation, Infos]:
    """Start an episode in every row; consecutive rows of a group get the prompt that its first row has drawn.

    Returns: observations and infos, as `TokenVectorEnv.reset`.
    """
    observation, infos = env.reset(seed=seed)
    if group > 1:
        shared = np.repeat(infos["prompt_index"][::group], group)
        observation, infos = env.reset(options={"prompt_index": shared})
    return observation, infos


def play_batch(
    env: TokenVectorEnv,
    observation: Observation,
    choose: Callable[[Turn], Ints],
    *,
    running: Bools | None = None,
    at_limit: Callable[[Turn], None] | None = None,
) -> PlayedBatch:
    """Step an environment until the episodes in its rows have ended.

    A reward that pays at the end is asked once for the whole batch, unless a wrapper looks at the rewards.

    Args:
        env: of N rows, in DISABLED mode, wrapped or not; it has been reset, or its states have been set.
        observation: the one that this returned.
        choose: returns the next tokens (n,) of the running rows.
        running: (N,) rows to play, one at least; None for all.
        at_limit: called with the rows that an outer limit has just stopped, in the states where they stand.
    """
    active = np.ones(env.num_envs, dtype=np.bool_) if running is None else running
    truncated, late = np.zeros(env.num_envs, dtype=np.bool_), np.zeros(env.num_envs)
    written = np.zeros(env.num_envs, dtype=np.int64)
    steps: list[tuple[Ints, Ints, Floats]] = []
    said: list[Infos] = []
    with scoring_together(env):
        while active.any():
            turn = _turn(env, len(steps), active, observation)
            tokens = choose(turn)
            written[turn.rows] = tokens
            observation, rewards, ended, stopped, infos = env.step(written)
            steps.append((turn.rows, tokens, rewards[turn.rows]))
            said += [infos] if "completion" in infos else []
            late[~active] += rewards[~active]
            cut = active & stopped & ~ended
            active = active & ~(ended | stopped)
            truncated |= cut
            if at_limit is not None and cut.any():
                # At once: the environment below the limit may go on writing in these rows.
                at_limit(_turn(env, len(steps), cut, observation))
        paid, infos = settle_rest(env)
    said += [infos] if infos else []
    # Below an outer limit a row may have gone on: what it was paid then is not the policy's.
    late = np.where(truncated, 0.0, late + paid)
    return _joined(steps, late, truncated, observation, tuple(said))


def _turn(env: TokenVectorEnv, time: int, running: Bools, observation: Observation) -> Turn:
    rows, inner = np.flatnonzero(running), env.unwrapped
    masks = inner.action_masks()[rows] if inner.task.mask is not None else None
    if "segment_ids" not in observation:
        observation = {**observation, "segment_ids": inner.segment_ids()}
    return Turn(time, running, rows, observation, masks)


def _joined(
    steps: list[tuple[Ints, Ints, Floats]],
    late: Floats,
    truncated: Bools,
    observation: Observation,
    infos: tuple[Infos, ...],
) -> PlayedBatch:
    rows, actions, rewards = (np.concatenate(column) for column in zip(*steps, strict=True))
    times = np.repeat(np.arange(len(steps)), [len(step[0]) for step in steps])
    last = np.full(len(late), -1)
    last[rows] = np.arange(len(rows))  # of places that are named again the last one stays
    played = last >= 0
    rewards = rewards.astype(np.float64, copy=False)
    rewards[last[played]] += late[played]
    lengths = np.bincount(rows, minlength=len(late))
    return PlayedBatch(rows, times, actions, rewards, lengths, truncated, observation, infos)


def draw(probabilities: LogProbs, uniforms: Floats) -> Ints:
    """Return one index a row (n,) by inverting the cumulative distribution (n, V) at uniforms (n,) in [0, 1).

    An index of probability 0 is never returned.
    """
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    targets = uniforms * cumulative[:, -1] * (1 - 1e-12)
    return np.asarray((cumulative <= targets[:, None]).sum(1))
