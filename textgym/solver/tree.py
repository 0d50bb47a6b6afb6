"""Hold the prefix tree of a task, level by level as arrays: its size, its states, and policies on its edges."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints
from textgym.lm.reference import LogProbs, Observation, log_probs_of
from textgym.state import ENVIRONMENT, TokenState, segment_ids
from textgym.task import Task
from textgym.turns import written_by

_LOG = logging.getLogger(__name__)


class UnsolvableError(ValueError):
    """A task without an exact solution: its tree is too large, or its reward is not a known function of the text."""


def count_states(roots: int, going_on: int, ending: int, horizon: int) -> int:
    """Return the number of states of a tree whose every running state has the same legal actions.

    Args:
        roots: prompts.
        going_on: legal actions that do not stop. ending: legal stop ids.
        horizon: tokens; every state of this depth has ended.
    Returns: states of all depths, the prompts included; an exact integer of any size.
    """
    total = running = roots
    for _ in range(horizon):
        total += running * (going_on + ending)
        running *= going_on
        if not running:
            break
    return total


def check_size(states: int, max_states: int, known: str = "") -> None:
    """Raise UnsolvableError for too many states; `known` is "at least " where they are not counted to the end."""
    if states > max_states:
        shown = f"{states:,}" if states < 10**15 else f"about 10^{states.bit_length() * math.log10(2):.0f}"
        raise UnsolvableError(
            f"the prefix tree has {known}{shown} states, allowed is max_states={max_states:,}; "
            "raise max_states or shorten the task, or use textgym.optimum.optimum_of, "
            "which serves tasks of any size"
        )


Entry = TypeVar("Entry", np.float64, np.bool_)
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, eq=False)
class Level:
    """All n states with the same number of generated tokens, ordered by parent, siblings by action.

    Attributes:
        parent: (n,) row of the state before in the level before; at level 0 the index of the prompt.
        action: (n,) the token that led here; -1 at level 0.
        finished: (n,) the episode has ended here.
        first: (n + 1,) the children of state i are rows first[i]:first[i + 1] of the next level.
        reward: (n,) the pay for arriving here, reward units.
        chance: (n,) log of the probability that the environment leads here, nats; NaN where a token of the policy does.
            None where no reply leads to this level.
        environment: (n,) the environment moves here; None where it does so in no state of the level.
    """

    parent: Ints
    action: Ints
    finished: Bools
    first: Ints
    reward: Floats
    chance: Floats | None = None
    environment: Bools | None = None

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
    """The states of one split of a task, made by `textgym.solver.prefix_tree`.

    Attributes:
        task, split: the tree is of these.
        levels: levels[t] holds the states after t moves: tokens of the policy, and whole replies of the environment. An
            edge (s, a) is named by the state it leads to: an array per edge of depth t is aligned with levels[t + 1].
        replies: what the environment can write; its move number i is the action V + i.
    """

    task: Task
    split: str
    levels: tuple[Level, ...] = field(repr=False)
    replies: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

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
        """Return the moves that led to the states in `rows` (m,), (m, depth): tokens, where there are no turns."""
        tokens = np.empty((len(rows), depth), dtype=np.int64)
        for t in range(depth, 0, -1):
            tokens[:, t - 1] = self.levels[t].action[rows]
            rows = self.levels[t].parent[rows]
        return tokens

    def move_text(self, action: int) -> str:
        """Return a move, an `action` of a level, as text: a token, or a whole reply."""
        vocabulary = self.task.vocabulary
        if action < vocabulary.size:
            return vocabulary.token_text(action)
        return vocabulary.decode([self.replies[action - vocabulary.size]])[0]

    def written(self, depth: int, rows: Ints) -> tuple[list[list[int]], list[tuple[int, ...]]]:
        """Return the tokens behind the prompts of the states in `rows` (m,) of the level `depth`.

        Returns: m lists of ids, and for each the places of those that the environment wrote.
        """
        moves, size = self.completions(depth, rows).tolist(), self.task.vocabulary.size
        if not self.replies:
            return moves, [()] * len(moves)
        tokens: list[list[int]] = []
        places: list[tuple[int, ...]] = []
        for each in moves:
            parts = [(move,) if move < size else self.replies[move - size] for move in each]
            authors = [move >= size for move, part in zip(each, parts, strict=True) for _ in part]
            tokens.append([token for part in parts for token in part])
            places.append(tuple(place for place, other in enumerate(authors) if other))
        return tokens, places

    def observations(self, depth: int, rows: Ints) -> Observation:
        """Return the observations of `rows` (m,) of the level `depth`, as with `segments=True`: arrays (m, L)."""
        prompts, lengths = self._prompt_ids
        prompt = self.prompt_of[depth][rows]
        ids = prompts[prompt]
        if self.replies:
            return self._with_replies(ids, lengths[prompt], *self.written(depth, rows))
        ends = lengths[prompt] + depth
        columns = lengths[prompt][:, None] + np.arange(depth)
        np.put_along_axis(ids, columns, self.completions(depth, rows), axis=1)
        mask = (np.arange(ids.shape[1]) < ends[:, None]).astype(np.int8)
        return {"input_ids": ids, "attention_mask": mask, "segment_ids": segment_ids(mask, lengths[prompt])}

    def _with_replies(
        self, ids: Ints, lengths: Ints, tokens: list[list[int]], places: list[tuple[int, ...]]
    ) -> Observation:
        ends = lengths + [len(each) for each in tokens]
        mask = (np.arange(ids.shape[1]) < ends[:, None]).astype(np.int8)
        authors = segment_ids(mask, lengths)
        for row, (written, others) in enumerate(zip(tokens, places, strict=True)):
            ids[row, lengths[row] : ends[row]] = written
            authors[row, lengths[row] + np.array(others, dtype=np.int64)] = ENVIRONMENT
        return {"input_ids": ids, "attention_mask": mask, "segment_ids": authors}

    def batches(self, depth: int) -> Iterator[Ints]:
        """Yield the running states of the level `depth` in batches whose distributions fit into little memory."""
        running = self.levels[depth].running
        size = max(1, min(_ROWS_AT_ONCE, 4_000_000 // self.task.vocabulary.size))
        for start in range(0, len(running), size):
            yield running[start : start + size]

    def edges(self, depth: int, rows: Ints) -> tuple[slice, Ints]:
        """Return the edges out of `rows`, consecutive running states of the level `depth`.

        Returns: a slice of the next level, and the place in `rows` of the state that each edge leaves.
        """
        first = self.levels[depth].first
        where = slice(int(first[rows[0]]), int(first[rows[-1] + 1]))
        return where, np.searchsorted(rows, self.levels[depth + 1].parent[where])

    def find(self, prompt: int, completion: tuple[int, ...] = (), environment: tuple[int, ...] = ()) -> tuple[int, int]:
        """Return depth and row of a prompt with a completion. Raises: KeyError if no legal moves lead there.

        Where a reply may have ended the conversation or not, it is the state in which it goes on.

        Args: environment: the places in the completion that the environment wrote, ascending.
        """
        row, depth, size = int(prompt), 0, self.task.vocabulary.size
        for author, written in written_by(completion, environment):
            moves = [[token] for token in written]
            if author == "environment":
                ids = tuple(written)
                moves = [[size + number for number, reply in enumerate(self.replies) if reply == ids]]
            for allowed in moves:
                level = self.levels[depth]
                low, high = level.first[row], level.first[row + 1]
                below = self.levels[depth + 1].action[low:high] if low < high else np.array([])
                found = low + np.flatnonzero(np.isin(below, allowed))
                if not found.size:
                    raise KeyError(f"completion {completion!r} of prompt {prompt}: move {depth} is not legal")
                going = found[~self.levels[depth + 1].finished[found]]  # one reply may end here or not
                row, depth = int((going if going.size else found)[0]), depth + 1
        return depth, row

    def place(self, state: TokenState) -> tuple[int, int]:
        """Return depth and row of a state. Raises: KeyError for another split's prompt; as `find`."""
        index, known = state.prompt.index, self.task.encoded(self.split)
        if index is None or index >= len(known) or known[index] != state.prompt:
            raise KeyError(f"prompt {state.prompt.text!r:.80}: {self.split} has none like it")
        return self.find(index, state.completion, state.environment)

    @cached_property
    def _prompt_ids(self) -> tuple[Ints, Ints]:
        """Prompts as right-padded ids (P, L), and their lengths (P,)."""
        prompts = self.task.encoded(self.split)
        width = self.task.max_prompt_tokens + self.task.max_new_tokens
        ids = np.full((len(prompts), width), self.task.vocabulary.pad_id, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = prompt.ids
        return ids, np.array([len(prompt.ids) for prompt in prompts])


def per_state(values: Floats, level: Level, ufunc: np.ufunc) -> Floats:
    """Reduce an array per edge (m,) or (m, k) to one entry for each running state, by np.add or np.maximum."""
    result: Floats = ufunc.reduceat(values, level.starts, axis=0)
    return result


def per_edge(values: NDArray[Entry], level: Level) -> NDArray[Entry]:
    """Repeat an entry for each running state once for each of its edges."""
    repeated: NDArray[Entry] = np.repeat(values, np.diff(level.first)[level.running], axis=0)
    return repeated


class TokenPolicy(Protocol):
    """Anything that gives log-probabilities of next tokens, (B, V) nats; None says that it has none."""

    def log_probs(self, observation: Observation) -> LogProbs | None:
        """See `textgym.lm.reference.Reference.log_probs`."""


def edge_log_probs(tree: PrefixTree, policy: TokenPolicy, argument: str = "policy") -> tuple[Floats, ...]:
    """Return the log-probability of every edge, normalised over the legal actions of its state.

    What the environment does is no policy's: its edges have their chance.

    Normalising is what a masked policy does: probability that a policy gives to illegal tokens is shared out among
    the legal ones in proportion. It also takes out the rounding of policies that compute in float32.

    Args:
        policy: anything with `log_probs(observation)`.
        argument: its name in messages.
    Returns: one array per level, aligned with `tree.levels[t + 1]`, nats; -inf throughout a state where the policy
        gives no legal action any probability.

    Raises:
        TypeError: it has no log-probabilities.
        ValueError: they have the wrong shape, or are NaN or +inf.
    """
    result = []
    for depth in range(len(tree.levels) - 1):
        level = tree.levels[depth]
        logs = np.zeros(len(tree.levels[depth + 1].parent))
        for rows in tree.batches(depth):
            _LOG.info("querying the %s at depth %d, %d of %d states", argument, depth, len(rows), len(level.running))
            edges, place = tree.edges(depth, rows)
            where: slice | Ints = edges
            if level.environment is not None:
                own = ~level.environment[rows]
                where = np.arange(edges.start, edges.stop)[own[place]]
                place = (np.cumsum(own) - 1)[place[own[place]]]
                rows = rows[own]
            if len(rows):
                table = log_probs_of(policy, tree.observations(depth, rows), tree.task.vocabulary.size, argument)
                logs[where] = table[place, tree.levels[depth + 1].action[where]]
        if np.isnan(logs).any() or (logs == np.inf).any():
            raise ValueError(f"{argument}: log_probs holds NaN or +inf, allowed are numbers <= 0 and -inf")
        chance = tree.levels[depth + 1].chance
        logs = normalised(logs, level)
        result.append(logs if chance is None else np.where(np.isnan(chance), logs, chance))
    return tuple(result)


def normalised(logs: Floats, level: Level) -> Floats:
    """Subtract from each edge (m,) the log-sum-exp of its state; a state that is -inf throughout stays so."""
    total = log_sum(logs, level)
    return np.asarray(logs - per_edge(np.where(np.isneginf(total), 0.0, total), level))


def log_sum(logs: Floats, level: Level) -> Floats:
    """Return the log-sum-exp of the edges of each running state; -inf where all of them are."""
    top = per_state(logs, level, np.maximum)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(per_state(np.exp(logs - per_edge(shift, level)), level, np.add)))
