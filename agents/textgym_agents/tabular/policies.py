"""A table of states with their values, and policies over it: greedy, epsilon-greedy and Boltzmann, with schedules.

In all policies B states have A actions each. `known` (B, A) marks the actions whose values count; an action that is not
known is taken to be as good as the known ones of its state, so that the policy there keeps the reference's share. A
greedy policy takes it only where nothing is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textgym.checks import Bools, Floats, Ints, token_counts
from textgym.play import LogProbs
from textgym.task import Task
from textgym_agents.protocol import Observation, StateFinder
from textgym_agents.saving import Arrays, LoadedArrays
from textgym_agents.tabular.config import Schedule, StepSize

_TIE = 1e-12  # Q-values that differ by less, relative to their size, are one value: sums round differently.


def soft_values(values: Floats, known: Bools, log_reference: Floats, beta: float) -> Floats:
    """Return V = beta log E_ref[exp(Q / beta)] over the known actions, (B,) reward units; NaN where none is known.

    Args:
        values: (B, A) Q, reward units. log_reference: (B, A) nats. beta: > 0, reward units per nat.
    Source: Korbak et al. (2022), arXiv:2205.11275, section 3.
    """
    counts = known & (log_reference > -np.inf)
    top = np.where(counts, values, -np.inf).max(1)
    shift = np.where(np.isneginf(top), 0.0, top)[:, None]
    mass = np.where(counts, np.exp(log_reference), 0.0)
    gaps = np.where(counts, values - shift, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (mass * np.exp(gaps / beta)).sum(1) / mass.sum(1)
        return np.asarray(np.where(counts.any(1), top + beta * np.log(mean), np.nan))


def hard_values(values: Floats, known: Bools) -> Floats:
    """Return V = max Q over the known actions, (B,) reward units; NaN where none is known."""
    return np.where(known.any(1), np.where(known, values, -np.inf).max(1), np.nan)


def boltzmann(values: Floats, known: Bools, log_reference: Floats, temperature: float) -> Floats:
    """Return the log of ref exp(Q / temperature) / Z, (B, A) nats; the reference where nothing is known."""
    centre = soft_values(values, known, log_reference, temperature)[:, None]
    tilt = np.where(known & ~np.isnan(centre), (values - centre) / temperature, 0.0)
    return normalised(log_reference + tilt)


def greedy(values: Floats, known: Bools, log_reference: Floats) -> Floats:
    """Return the log of the reference given that a best known action is taken, (B, A) nats.

    Where all are known this is `boltzmann` in the limit of temperature 0, where none is, the reference. What is not
    known is never taken beside what is. The best actions are equally likely where the reference takes none of them.
    """
    top = np.where(known, values, -np.inf).max(1, keepdims=True)
    best = known & (values >= top - _TIE * np.maximum(1.0, np.abs(top)))
    none = ~known.any(1, keepdims=True)
    kept = np.where(best | none, log_reference, -np.inf)
    dead = np.isneginf(kept).all(1, keepdims=True)
    return normalised(np.where(dead & best, 0.0, kept))


def mixed(log_policy: Floats, support: Bools, epsilon: float) -> Floats:
    """Return the log of (1 - epsilon) pi + epsilon uniform over `support`, (B, A) nats."""
    uniform = support / support.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log((1.0 - epsilon) * np.exp(log_policy) + epsilon * uniform))


def normalised(logs: Floats) -> Floats:
    """Return log-probabilities from unnormalised ones (B, A), at least one of each row finite."""
    shifted = logs - logs.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def draw(log_policy: LogProbs, generator: np.random.Generator) -> Ints:
    """Draw one column a row (B,): the argmax of log-probabilities plus Gumbel noise is a sample."""
    return np.asarray((log_policy + generator.gumbel(size=log_policy.shape)).argmax(1))


def log_ratios(log_policy: Floats, log_reference: Floats, columns: Ints) -> Floats:
    """Return log(policy / reference) of one column a row (B,), nats; 0 where the reference never takes it."""
    each = np.arange(len(columns))
    taken, against = log_policy[each, columns], log_reference[each, columns]
    return taken - np.where(np.isneginf(against), taken, against)


def scheduled(kind: Schedule, start: float, end: float, progress: float) -> float:
    """Return a number between `start` and `end`, both > 0 if `kind` is "exponential".

    Args:
        progress: share of the way, at least 0; from 1 on it is `end`, or `start` if `kind` is "constant".
    """
    share = min(progress, 1.0)
    if kind == "constant" or start == end:
        return start
    if kind == "linear":
        return start + (end - start) * share
    return float(start * (end / start) ** share)


def update_weight(kind: StepSize, rate: float, before: Ints, repeats: Ints) -> Floats:
    """Return the weight (m,) of n updates one after the other in Q <- Q + weight * (target - Q).

    For a constant rate that is 1 - (1 - rate)^n. For steps 1 / (k + 1), ..., 1 / (k + n) it is n / (k + n), which
    makes Q the mean of all its targets.

    Args:
        before: (m,) k, updates that each value had. repeats: (m,) n, updates now.
    """
    if kind == "harmonic":
        return np.asarray(repeats / (before + repeats))
    return np.asarray(1.0 - (1.0 - rate) ** repeats)


class Grammar:
    """Asks a task's mask about states that are known by their tokens alone.

    Args:
        task: supplies mask, vocabulary and prompts.
    """

    def __init__(self, task: Task) -> None:
        self._mask, self._allowed = task.mask, task.vocabulary.allowed
        self._finder = None if task.mask is None else StateFinder(task)

    def legal(self, observation: Observation, asked: Bools | None = None) -> Bools | None:
        """Return the legal tokens (n, V) of running states; None for a task without mask.

        Args:
            asked: (n,) the states to ask about, None for all. In others all ordinary tokens are legal.
        """
        if self._mask is None or self._finder is None:
            return None
        count = len(observation["input_ids"])
        legal = np.repeat(self._allowed[None], count, axis=0)
        rows = np.arange(count) if asked is None else np.flatnonzero(asked)
        if len(rows):
            found = self._finder.states({name: array[rows] for name, array in observation.items()})
            legal[rows] &= self._mask([state for _, state in found])
        return legal


# The table

UNKNOWN = -1
_FIRST_ROWS = 1024
_ENTRY_BYTES = 16  # a float64 and an int64 for each action


def state_keys(observation: Observation) -> list[bytes]:
    """Return the tokens of each state as int32 in bytes. The mask alone says what is padding."""
    ids = np.ascontiguousarray(observation["input_ids"], dtype=np.int32)
    lengths = token_counts(observation).tolist()
    return [row[:length].tobytes() for row, length in zip(ids, lengths, strict=True)]


def rows_in_memory(actions: int, memory: int) -> int:
    """Return how many states of so many actions fit into `memory` MiB. Raises: ValueError if not even one does."""
    rows = memory * 2**20 // (_ENTRY_BYTES * actions)
    if not rows:
        raise ValueError(
            f"memory={memory!r} MiB: one state of {actions} actions takes {_ENTRY_BYTES * actions / 2**20:.1f} MiB"
        )
    return rows


class StateTable:
    """Rows of values (A,) by key.

    Args:
        actions: A. max_states: rows, at most. initial: of every value, reward units.

    Attributes:
        values: (S, A) reward units. counts: (S, A) updates. refused: states that found no place, counted each time.
    """

    def __init__(self, actions: int, max_states: int, initial: float = 0.0) -> None:
        self.max_states, self.refused = max_states, 0
        self._initial = initial
        self._index: dict[bytes, int] = {}
        rows = min(_FIRST_ROWS, max_states)
        self.values = np.full((rows, actions), initial)
        self.counts = np.zeros((rows, actions), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def find(self, keys: Sequence[bytes]) -> Ints:
        """Return the rows of states, (n,), `UNKNOWN` for those that have none."""
        index = self._index
        return np.array([index.get(key, UNKNOWN) for key in keys], dtype=np.int64)

    def add(self, keys: Sequence[bytes]) -> Ints:
        """Return the rows of states, (n,), made where there are none; `UNKNOWN` where the table is full."""
        index = self._index
        rows = [
            index.setdefault(key, len(index)) if key in index or len(index) < self.max_states else UNKNOWN
            for key in keys
        ]
        self.refused += rows.count(UNKNOWN)
        if len(index) > len(self.values):
            self._enlarge(len(index))
        return np.array(rows, dtype=np.int64)

    def update(self, flat: Ints, values: Floats, repeats: Ints) -> None:
        """Set entries (m,), given by their places row * A + column, and counts their updates."""
        self.values.reshape(-1)[flat] = values
        self.counts.reshape(-1)[flat] += repeats

    def tensors(self) -> LoadedArrays:
        """Return the rows: tokens, lengths of the states, values and counts."""
        tokens = [np.frombuffer(key, dtype=np.int32) for key in self._index]
        return {
            "tokens": np.concatenate([*tokens, np.zeros(0, dtype=np.int32)]),
            "lengths": np.array([len(ids) for ids in tokens], dtype=np.int32),
            "values": self.values[: len(self)].copy(),
            "counts": self.counts[: len(self)].copy(),
        }

    def restore(self, tensors: Arrays) -> None:
        """Fill an empty table with what `tensors` of another one returned."""
        assert not self._index
        lengths = tensors["lengths"]
        parts = np.split(tensors["tokens"], np.cumsum(lengths)[:-1]) if len(lengths) else []
        rows = self.add([part.tobytes() for part in parts])
        self.values[rows], self.counts[rows] = tensors["values"], tensors["counts"]

    def _enlarge(self, needed: int) -> None:
        size = min(max(needed, 2 * len(self.values)), self.max_states)
        more = size - len(self.values)
        width = self.values.shape[1]
        self.values = np.concatenate([self.values, np.full((more, width), self._initial)])
        self.counts = np.concatenate([self.counts, np.zeros((more, width), dtype=np.int64)])
