"""A table of states and its values, and the folder that it is saved as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from textgym.files import replace_folder, write_json
from textgym_agents.protocol import Observation
from textgym_agents.saving import count, head_of, read_saved

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
UNKNOWN = -1
_FIRST_ROWS = 1024
_ENTRY_BYTES = 16  # a float64 and an int64 for each action


def state_keys(observation: Observation) -> list[bytes]:
    """The tokens of each state as int32 in bytes. The mask alone says what is padding."""
    ids = np.ascontiguousarray(observation["input_ids"], dtype=np.int32)
    lengths = np.count_nonzero(observation["attention_mask"], axis=1).tolist()
    return [row[:length].tobytes() for row, length in zip(ids, lengths, strict=True)]


def rows_in_memory(actions: int, memory: int) -> int:
    """How many states of so many actions fit into `memory` MiB. Raises: ValueError if there is no room for one."""
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

    @property
    def keys(self) -> list[bytes]:
        """The keys in the order of their rows."""
        return list(self._index)

    def find(self, keys: Sequence[bytes]) -> Ints:
        """The rows of states, (n,), `UNKNOWN` for those that have none."""
        index = self._index
        return np.array([index.get(key, UNKNOWN) for key in keys], dtype=np.int64)

    def add(self, keys: Sequence[bytes]) -> Ints:
        """The rows of states, (n,), made where there are none; `UNKNOWN` where the table is full."""
        index = self._index
        rows = [
            index.setdefault(key, len(index)) if key in index or len(index) < self.max_states else UNKNOWN
            for key in keys
        ]
        self.refused += rows.count(UNKNOWN)
        if len(index) > len(self.values):
            self._grow(len(index))
        return np.array(rows, dtype=np.int64)

    def update(self, flat: Ints, values: Floats, repeats: Ints) -> None:
        """Sets entries (m,), by their places row * A + column, and counts their updates."""
        self.values.reshape(-1)[flat] = values
        self.counts.reshape(-1)[flat] += repeats

    def restore(self, keys: Sequence[bytes], values: Floats, counts: Ints) -> None:
        """Fills an empty table with rows that another one had."""
        assert not self._index
        rows = self.add(keys)
        self.values[rows], self.counts[rows] = values, counts

    def _grow(self, needed: int) -> None:
        size = min(max(needed, 2 * len(self.values)), self.max_states)
        more = size - len(self.values)
        width = self.values.shape[1]
        self.values = np.concatenate([self.values, np.full((more, width), self._initial)])
        self.counts = np.concatenate([self.counts, np.zeros((more, width), dtype=np.int64)])


_COUNTERS = ("iteration", "episodes", "budget")


def write_table_agent(agent: Any, path: Path) -> None:
    """Writes table, settings and counters of a tabular agent to `path`, replacing what was there."""
    replace_folder(path, lambda folder: _write(agent, folder))


def _write(agent: Any, folder: Path) -> None:
    table, count = agent.table, len(agent.table)
    tokens = [np.frombuffer(key, dtype=np.int32) for key in table.keys]
    tensors = {
        "tokens": np.concatenate([*tokens, np.zeros(0, dtype=np.int32)]),
        "lengths": np.array([len(ids) for ids in tokens], dtype=np.int32),
        "values": table.values[:count].copy(),
        "counts": table.counts[:count].copy(),
    }
    save_file(tensors, folder / "table.safetensors")
    state = head_of(agent) | {"actions": len(agent.actions), "scorer": agent.task.scorer.state_dict()}
    write_json(folder / "agent.json", state | {name: getattr(agent, name) for name in _COUNTERS})


def read_table_agent(kind: Any, path: Path, task: Any) -> Any:
    """Reads what `write_table_agent` wrote.

    Raises: ValueError if there is no agent of this kind at `path`, or it has other actions than the task.
    """
    return read_saved(path, kind.name, lambda state: _read(kind, path, task, state), task, level=2)


def _read(kind: Any, path: Path, task: Any, state: dict[str, Any]) -> Any:
    agent = kind(task, kind.config_type(**state["config"]))
    if state["actions"] != len(agent.actions):
        raise ValueError(
            f"path={str(path)!r}: its table has {state['actions']} actions, the task has {len(agent.actions)}"
        )
    tensors = load_file(path / "table.safetensors")
    parts = np.split(tensors["tokens"], np.cumsum(tensors["lengths"])[:-1]) if len(tensors["lengths"]) else []
    agent.table.restore([part.tobytes() for part in parts], tensors["values"], tensors["counts"])
    for name in _COUNTERS:
        setattr(agent, name, count(state, name))
    if state["task"] == task.name:
        task.scorer.load_state_dict(state["scorer"])
    return agent
