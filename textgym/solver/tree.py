"""The prefix tree of a task: every state that legal actions reach from its prompts, level by level, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from textgym.state import Observation
from textgym.task import Task

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Entry = TypeVar("Entry", np.float64, np.bool_)
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Level:
    """All n states with the same number of generated tokens. States stand in the order of their parents, siblings
    in the order of their actions.

    Attributes:
        parent: (n,) row of the state before in the level before; at level 0 the index of the prompt.
        action: (n,) the token that led here; -1 at level 0.
        finished: (n,) the episode has ended here.
        first: (n + 1,) the children of state i are rows first[i]:first[i + 1] of the next level.
        reward: (n,) what the environment pays on arriving here, reward units.
    """

    parent: Ints
    action: Ints
    finished: NDArray[np.bool_]
    first: Ints
    reward: Floats

    @cached_property
    def running(self) -> Ints:
        """The rows of the states that have not ended."""
        return np.flatnonzero(~self.finished)

    @property
    def starts(self) -> Ints:
        """Where the children of each running state begin in the next level."""
        return self.first[:-1][self.running]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The states of one split of a task. Made by `textgym.solve.prefix_tree`.

    Attributes:
        task, split: what it is the tree of.
        levels: levels[t] holds the states with t generated tokens. An edge (s, a) is named by the state it leads to:
            an array per edge of depth t is aligned with levels[t + 1].
    """

    task: Task
    split: str
    levels: tuple[Level, ...] = field(repr=False)

    @property
    def states(self) -> int:
        """The number of states, ended ones and the prompts included."""
        return sum(len(level.parent) for level in self.levels)

    @property
    def weights(self) -> Floats:
        """rho: the probability of each prompt, (P,)."""
        return self.task.prompt_set(self.split).weights

    @cached_property
    def prompt_of(self) -> tuple[Ints, ...]:
        """For every level the index of each state's prompt, (n,)."""
        result = [self.levels[0].parent]
        for level in self.levels[1:]:
            result.append(result[-1][level.parent])
        return tuple(result)

    def completions(self, depth: int, rows: Ints) -> Ints:
        """The generated tokens of states, (m, depth)."""
        tokens = np.empty((len(rows), depth), dtype=np.int64)
        for t in range(depth, 0, -1):
            tokens[:, t - 1] = self.levels[t].action[rows]
            rows = self.levels[t].parent[rows]
        return tokens

    def observations(self, depth: int, rows: Ints) -> Observation:
        """The observations of states, as the environment gives them: arrays (m, L)."""
        prompts, lengths = self._prompt_ids
        prompt = self.prompt_of[depth][rows]
        ids = prompts[prompt]
        ends = lengths[prompt] + depth
        columns = lengths[prompt][:, None] + np.arange(depth)
        np.put_along_axis(ids, columns, self.completions(depth, rows), axis=1)
        mask = (np.arange(ids.shape[1]) < ends[:, None]).astype(np.int8)
        return {"input_ids": ids, "attention_mask": mask}

    def batches(self, depth: int) -> Iterator[Ints]:
        """The running states of a level in batches whose next-token distributions fit into little memory."""
        running = self.levels[depth].running
        size = max(1, min(_ROWS_AT_ONCE, 4_000_000 // self.task.vocabulary.size))
        for start in range(0, len(running), size):
            yield running[start : start + size]

    def edges(self, depth: int, rows: Ints) -> tuple[slice, Ints]:
        """The edges out of consecutive running states: a slice of the next level, and for each the place in `rows`."""
        first = self.levels[depth].first
        where = slice(int(first[rows[0]]), int(first[rows[-1] + 1]))
        return where, np.searchsorted(rows, self.levels[depth + 1].parent[where])

    def find(self, prompt: int, completion: tuple[int, ...] = ()) -> tuple[int, int]:
        """Depth and row of one state. Raises: KeyError if no legal actions lead there."""
        row = int(prompt)
        for depth, token in enumerate(completion):
            level = self.levels[depth]
            low, high = level.first[row], level.first[row + 1]
            if low == high:
                raise KeyError(f"completion {completion!r} of prompt {prompt}: ended before token {depth}")
            row = int(low + np.searchsorted(self.levels[depth + 1].action[low:high], token))
            if row == high or self.levels[depth + 1].action[row] != token:
                raise KeyError(f"completion {completion!r} of prompt {prompt}: token {depth} is not legal")
        return len(completion), row

    @cached_property
    def _prompt_ids(self) -> tuple[Ints, Ints]:
        """Prompts as right-padded ids (P, L), and their lengths (P,)."""
        prompts = self.task.encoded(self.split)
        width = self.task.max_prompt_tokens + self.task.max_new_tokens
        ids = np.full((len(prompts), width), self.task.vocabulary.pad_id, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = prompt.ids
        return ids, np.array([len(prompt.ids) for prompt in prompts])


def per_state(values: Floats, level: Level, ufunc: Any) -> Floats:
    """Reduce an array per edge (m,) or (m, k) to one entry for each running state, by np.add or np.maximum."""
    result: Floats = ufunc.reduceat(values, level.starts, axis=0)
    return result


def per_edge(values: NDArray[Entry], level: Level) -> NDArray[Entry]:
    """Repeat an entry for each running state once for each of its edges."""
    repeated: NDArray[Entry] = np.repeat(values, np.diff(level.first)[level.running], axis=0)
    return repeated
