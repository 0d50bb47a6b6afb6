"""A table of states and its values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from textgym.checks import Floats, Ints
from textgym_agents.protocol import Observation
from textgym_agents.saving import Arrays, LoadedArrays

UNKNOWN = -1
_FIRST_ROWS = 1024
_ENTRY_BYTES = 16  # a float64 and an int64 for each action


def state_keys(observation: Observation) -> list[bytes]:
    """Return the tokens of each state as int32 in bytes. The mask alone says what is padding."""
    ids = np.ascontiguousarray(observation["input_ids"], dtype=np.int32)
    lengths = np.count_nonzero(observation["attention_mask"], axis=1).tolist()
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
        """Sets entries (m,), by their places row * A + column, and counts their updates."""
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
