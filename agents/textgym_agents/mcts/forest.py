"""The states that were searched, as arrays, and the true model that steps from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import DTypeLike

from textgym import TokenVectorEnv
from textgym.checks import Bools, Floats, Ints
from textgym.play import Turn, play_batch
from textgym.state import TokenState
from textgym.task import Task
from textgym_agents.protocol import Observation
from textgym_agents.saving import Arrays, LoadedArrays
from textgym_agents.tabular.policies import draw

LogProbs = Callable[[Observation, Bools | None], Floats]


@dataclass(frozen=True)
class Arrival:
    """The results of n moves.

    Attributes:
        states: n states. rewards: (n,) what was paid, discounted to time 0. finished: (n,).
        observation: arrays (n, L). masks: (n, V) tokens that the grammar allows next, None for all.
    """

    states: list[TokenState]
    rewards: Floats
    finished: Bools
    observation: Observation
    masks: Bools | None


class Model:
    """Up to `rows` states at a time, stepped together.

    Args:
        task: the task. split: whose prompts the states have. rows: at most so many at once.

    Attributes:
        env: the environment of so many rows. scored: completions that the reward was asked for.
    """

    def __init__(self, task: Task, split: str, rows: int) -> None:
        self.task, self.split, self.rows, self.scored = task, split, rows, 0
        self.env = TokenVectorEnv(task, rows, split=split, segments=True, autoreset_mode=AutoresetMode.DISABLED)
        # What is not used has ended: it is neither moved nor scored.
        prompt, stops = task.encoded(split)[0], task.end_ids[:1]
        self._parked = TokenState(prompt, stops or (0,) * task.max_new_tokens, "stop" if stops else "length")

    def place(self, states: Sequence[TokenState]) -> Arrival:
        """Put n running states into the first rows."""
        count = len(states)
        observation = self.env.set_states([*states, *[self._parked] * (self.rows - count)])
        seen = {name: array[:count] for name, array in observation.items()}
        return Arrival(list(states), np.zeros(count), np.zeros(count, dtype=np.bool_), seen, self._masks(count))

    def step(self, states: Sequence[TokenState], tokens: Ints) -> Arrival:
        """Append one token to each of n states. In noisy tasks `states` say which noise: see `with_seeds`."""
        count = len(states)
        self.env.set_states([*states, *[self._parked] * (self.rows - count)])
        actions = np.zeros(self.rows, dtype=np.int64)
        actions[:count] = tokens
        observation, rewards, finished, _, infos = self.env.step(actions)
        self.scored += int(infos["_completion"].sum()) if "completion" in infos else 0
        return Arrival(
            states=self.env.get_states(range(count)),
            rewards=self._discounts(states) * rewards[:count],
            finished=finished[:count],
            observation={name: array[:count] for name, array in observation.items()},
            masks=self._masks(count),
        )

    def answers(
        self, state: TokenState, token: int, generator: np.random.Generator
    ) -> Iterator[tuple[TokenState, float, float]]:
        """End a turn with a token. Yield what each different reply leads to, its reward and its chance given the tokens
        seen.

        What is hidden in a state that runs on is one of the things that would have led there, drawn by their chances.
        """
        assert self.task.turns is not None
        beliefs = self.task.turns.beliefs(state)
        order = generator.permutation(np.flatnonzero(beliefs))
        found: dict[TokenState, float] = {}
        paid: dict[TokenState, float] = {}
        for start in range(0, len(order), self.rows):
            part = order[start : start + self.rows].tolist()
            arrival = self.step([replace(state, hidden=k) for k in part], np.full(len(part), token))
            for k, there, reward in zip(part, arrival.states, arrival.rewards.tolist(), strict=True):
                seen = replace(there, hidden=None)
                found[seen] = found.get(seen, 0.0) + float(beliefs[k])
                paid[seen] = reward
        for seen, chance in found.items():
            over = seen.finish_reason is not None
            yield seen if over else self.task.turns.redraw(seen, generator), paid[seen], chance

    def roll_out(self, arrival: Arrival, log_probs: LogProbs, generator: np.random.Generator) -> Floats:
        """Go on from where the last move arrived, by a policy.

        Returns: (n,) returns from there on, discounted to time 0.
        """
        count, going = len(arrival.finished), ~arrival.finished
        if not going.any():
            return np.zeros(count)

        def choose(turn: Turn) -> Ints:
            return draw(log_probs(turn.seen(), turn.masks), generator)

        running = np.zeros(self.rows, dtype=np.bool_)
        running[:count] = going
        played = play_batch(self.env, arrival.observation, choose, running=running)
        self.scored += int(going.sum())
        return self._discounts(arrival.states) * played.returns(self.task.gamma)[:count]

    def with_potentials(self, states: Sequence[TokenState]) -> list[TokenState]:
        """Return states found by their tokens as the environment has them: pay by differences knows the last score."""
        if self.task.scorer.pay != "difference":
            return list(states)
        reached = [TokenState(state.prompt) if state.completion else state for state in states]
        for place in range(max((len(state.completion) for state in states), default=0)):
            rows = [row for row, state in enumerate(states) if place < len(state.completion)]
            tokens = np.array([states[row].completion[place] for row in rows])
            moved = self.step([reached[row] for row in rows], tokens).states
            for row, state in zip(rows, moved, strict=True):
                reached[row] = state
        return reached

    def with_seeds(self, states: Sequence[TokenState], generator: np.random.Generator) -> list[TokenState]:
        """Return the same states with what is not known of them drawn anew: the seed of noise, what the environment
        hides.
        """
        if self.task.turns is not None:
            states = [self.task.turns.redraw(state, generator) for state in states]
        if not self.task.noisy:
            return list(states)
        seeds = generator.integers(2**63, size=len(states)).tolist()
        return [replace(state, episode_seed=seed) for state, seed in zip(states, seeds, strict=True)]

    def _discounts(self, states: Sequence[TokenState]) -> Floats:
        return np.asarray(self.task.gamma ** np.array([len(state.completion) for state in states]))

    def _masks(self, count: int) -> Bools | None:
        return None if self.task.mask is None else self.env.action_masks()[:count]


UNSEEN, ENDED = -1, -2
_FIRST_NODES = 1024
_NODE_BYTES = 1024  # of the Python objects, roughly
_FIELDS: dict[str, tuple[DTypeLike, float]] = {  # per node and candidate: dtype and what a new one holds
    "actions": (np.int64, 0),
    "log_prior": (np.float64, -np.inf),
    "log_reference": (np.float64, -np.inf),
    "visits": (np.int64, 0),
    "rewards": (np.float64, 0.0),
    "children": (np.int64, UNSEEN),
    "answers": (np.float64, np.nan),
}
_VALUES: dict[str, tuple[DTypeLike, float]] = {
    "values": (np.float64, 0.0),
    "own": (np.float64, 0.0),
    "parents": (np.int64, -1),
    "solved": (np.bool_, False),
    "chance": (np.bool_, False),
}


def nodes_in_memory(candidates: int, memory: int) -> int:
    """Return how many nodes with so many candidates fit into `memory` MiB."""
    return memory * 2**20 // _node_bytes(candidates)


def _node_bytes(candidates: int) -> int:
    return _NODE_BYTES + 8 * (len(_FIELDS) * candidates + len(_VALUES))


class Leaves(NamedTuple):
    """The prior and the value of n new states.

    Attributes:
        log_prior, log_reference: (n, V) nats, over the legal tokens. values: (n,) reward units at time 0.
    """

    log_prior: Floats
    log_reference: Floats
    values: Floats

    def rows(self, chosen: Ints) -> Leaves:
        """Return some of them."""
        return Leaves(self.log_prior[chosen], self.log_reference[chosen], self.values[chosen])


Key = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Of a state: how many of its tokens are the prompt, its tokens, and the places that the environment wrote."""


def key_of(state: TokenState) -> Key:
    """Return what a state's node is found by."""
    return len(state.prompt.ids), state.tokens, state.environment


class Forest:
    """Nodes by the tokens of their state. Values are in units of reward at time 0.

    Args:
        candidates: tokens of a node. most: nodes that there is memory for, with so many candidates. The replies to one
            turn are added whatever they need.

    Attributes:
        columns: k, the candidates, or the replies of the turn that has the most of them.
        actions: (n, k) candidate tokens. log_prior, log_reference: (n, k) of the prior and of pi_ref, nats; the prior
            is -inf where there is no candidate.
        visits: (n, k) simulations that went there. rewards: (n, k) what is paid on the way, the mean of what was.
        children: (n, k) nodes, or `UNSEEN` or `ENDED`.
        answers: (n, k) log-probabilities that were given for this state; NaN where none were asked for.
        values: (n,) V by all simulations. own: (n,) the evaluation as a leaf. parents: (n,) -1 at roots.
        solved: (n,) all that the candidates lead to was tried, to its end.
        chance: (n,) the environment moves here: candidates are its replies, the prior is their chance.
        states: n states. splits: n, whose prompts they have.
    """

    actions: Ints
    log_prior: Floats
    log_reference: Floats
    visits: Ints
    rewards: Floats
    children: Ints
    answers: Floats
    values: Floats
    own: Floats
    parents: Ints
    solved: Bools
    chance: Bools

    def __init__(self, candidates: int, most: int) -> None:
        self.candidates, self.most = candidates, most
        self._memory = most * _node_bytes(candidates)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.index: dict[Key, int] = {}
        self.states: list[TokenState] = []
        self.splits: list[str] = []
        self.columns = self.candidates
        self._allocate(min(_FIRST_NODES, self.most))

    def __len__(self) -> int:
        return len(self.states)

    def add(self, states: Sequence[TokenState], splits: Sequence[str], leaves: Leaves) -> Ints:
        """Return the nodes of n states (n,). New nodes have the k likeliest tokens of the prior as candidates."""
        found = np.empty(len(states), dtype=np.int64)
        new: list[int] = []
        for i, state in enumerate(states):
            node = self.index.setdefault(key_of(state), len(self.states))
            if node == len(self.states):
                self.states.append(state)
                self.splits.append(splits[i])
                new.append(i)
            found[i] = node
        if len(self.states) > len(self.values):
            self._allocate(max(len(self.states), min(2 * len(self.values), self.most)))
        if new:
            nodes = found[new]
            tokens, logs = likeliest(leaves.log_prior[new], self.candidates)
            own = slice(self.candidates)
            self.actions[nodes, own], self.log_prior[nodes, own] = tokens, logs
            self.log_reference[nodes, own] = np.take_along_axis(leaves.log_reference[new], tokens, axis=1)
            self.own[nodes] = self.values[nodes] = leaves.values[new]
        return found

    def add_chance(self, state: TokenState, split: str, chances: Sequence[float]) -> int:
        """Return a new node in which the environment replies, with these chances."""
        node, replies = len(self.states), slice(len(chances))
        if len(chances) > self.columns:
            self.columns = len(chances)
            self.most = min(self.most, self._memory // _node_bytes(self.columns))
            self._allocate(len(self.values))
        none = np.full((1, 1), -np.inf)
        self.add([state], [split], Leaves(none, none, np.zeros(1)))
        self.actions[node], self.chance[node] = np.arange(self.columns), True
        self.log_prior[node, replies] = self.log_reference[node, replies] = np.log(chances)
        self.visits[node, replies] = 1
        return node

    def action_values(self, nodes: Ints) -> tuple[Floats, Bools]:
        """Return Q (m, k), reward units, and which of the candidates were visited."""
        children = self.children[nodes]
        below = np.where(children >= 0, self.values[np.maximum(children, 0)], 0.0)
        return self.rewards[nodes] + below, self.visits[nodes] > 0

    def done(self, nodes: Ints) -> Bools:
        """Return which candidates (m, k) need no search: they end the episode, are solved, or are padding."""
        children = self.children[nodes]
        solved = (children >= 0) & self.solved[np.maximum(children, 0)]
        return np.asarray((children == ENDED) | solved | np.isneginf(self.log_prior[nodes]))

    def tensors(self) -> LoadedArrays:
        """Return everything but the states' prompts, as arrays."""
        count = len(self)
        tokens = [np.array(ids, dtype=np.int64) for _, ids, _ in self.index]
        found = {
            **{name: getattr(self, name)[:count].copy() for name in (*_FIELDS, *_VALUES) if name != "chance"},
            "tokens": np.concatenate([*tokens, np.zeros(0, dtype=np.int64)]),
            "lengths": np.array([len(ids) for ids in tokens], dtype=np.int64),
            "prompt_lengths": np.array([start for start, _, _ in self.index], dtype=np.int64),
            "potentials": np.array([state.potential for state in self.states]),
        }
        if self.chance[:count].any():  # a task with turns
            found["chance"] = self.chance[:count].copy()
            found["authors"] = np.concatenate([np.array(state.authors, dtype=np.int8) for state in self.states])
        return found

    def restore(self, states: Sequence[TokenState], splits: Sequence[str], tensors: Arrays) -> None:
        """Fill an empty forest with what another one held."""
        self.states, self.splits = list(states), list(splits)
        self.index = {key_of(state): node for node, state in enumerate(states)}
        self.columns = tensors["actions"].shape[1]
        self.most = min(self.most, self._memory // _node_bytes(self.columns))
        self._allocate(max(len(states), min(_FIRST_NODES, self.most)), empty=True)
        for name in tensors.keys() & {*_FIELDS, *_VALUES}:
            getattr(self, name)[: len(states)] = tensors[name]

    def _allocate(self, size: int, empty: bool = False) -> None:
        used = 0 if empty or not self.states else len(self.values)
        for name, (kind, first) in {**_FIELDS, **_VALUES}.items():
            shape = (size, self.columns) if name in _FIELDS else (size,)
            array = np.full(shape, first, dtype=kind)
            if used:
                old = getattr(self, name)
                array[tuple(map(slice, old.shape))] = old
            setattr(self, name, array)


def likeliest(log_prior: Floats, count: int) -> tuple[Ints, Floats]:
    """Return the `count` likeliest tokens of each row (n, count), in ascending order, and their log-probabilities.

    Where there are fewer than `count` tokens, the rest is filled with token 0 at -inf.
    """
    if log_prior.shape[1] <= count:
        tokens = np.tile(np.arange(log_prior.shape[1]), (len(log_prior), 1))
    else:
        tokens = np.sort(np.argpartition(-log_prior, count - 1, axis=1)[:, :count], axis=1)
    logs = np.take_along_axis(log_prior, tokens, axis=1)
    missing = ((0, 0), (0, count - tokens.shape[1]))
    return np.pad(tokens, missing), np.pad(logs, missing, constant_values=-np.inf)


def widened(log_prior: Floats, done: Bools, width: Floats) -> Bools:
    """Return which candidates (m, k) are open: the `width` (m, 1) likeliest ones, or up to the first that is not done.

    Args: log_prior: (m, k) nats. done: (m, k) those that need no search.
    Source: Coulom (2007), "Computing Elo Ratings of Move Patterns in the Game of Go", section 4; widening by a power of
        the visits as in Couetoux et al. (2011), "Continuous Upper Confidence Trees", section 3.
    """
    rank = np.argsort(np.argsort(-log_prior, axis=1, kind="stable"), axis=1)
    first = np.where(done, rank.shape[1], rank).min(1, keepdims=True)
    return np.asarray(rank < np.maximum(width, np.where(first < rank.shape[1], first + 1, 0)))
