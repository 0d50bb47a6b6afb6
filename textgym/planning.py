"""Plan: walk and search the states of a task as a tree, beside an episode, which is not disturbed.

    tree = Tree(env)                      # the tree below the state that `env.get_state()` gives
    for child in tree.root.children: ...  # legal next states, each with its token and its reward
    node, value = tree.root.best(1, solution)[0]
    env.step(node.token)                  # or env.set_state(node.state)

The moves are made in rows of their own, by the same transition and the same pay as the environment's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from textgym.checks import Bools, Floats, check_count
from textgym.env import TokenEnv
from textgym.episodes import Episodes
from textgym.lm.reference import Observation, Reference, log_probs_of
from textgym.rewards.scorer import scorers_restored
from textgym.sampling import legal_log_probs
from textgym.solver.solution import Solution
from textgym.state import TokenState
from textgym.task import refuse_turns

_ROWS = 256
Value = Callable[[Sequence["Node"]], ArrayLike]


@dataclass(frozen=True)
class Node:
    """One state of a tree. Nodes with the same state and returns are equal.

    Attributes:
        state: as `get_state` gives it; `env.set_state(node.state)` goes there.
        token: the id that led here; None at a root.
        reward: the environment's pay for arriving here, reward units; 0 at a root.
        ret: the rewards since the root, that of the t-th token times gamma^(t - 1), reward units at time 0.
    """

    tree: Tree = field(repr=False, compare=False)
    state: TokenState
    token: int | None = None
    reward: float = 0.0
    ret: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the episode has ended here."""
        return self.state.finish_reason is not None

    @property
    def text(self) -> str:
        """The completion so far, decoded."""
        return self.tree.task.vocabulary.decode([self.state.completion])[0]

    @property
    def children(self) -> tuple[Node, ...]:
        """The next states that the action mask allows, by token; none where the episode has ended.

        O(length) each; those that have to be paid are scored in batches. They are made anew at every access.
        """
        return self.tree.expand([self])[0]

    def child(self, token: int) -> Node:
        """Return the child of one token. Raises: ValueError if there is none."""
        found = {node.token: node for node in self.children}
        if token not in found:
            raise ValueError(f"token={token!r}: not legal here, allowed are (the first 20) {[*found][:20]}")
        return found[token]

    def best(self, count: int = 1, by: Reference | Value | None = None) -> list[tuple[Node, float]]:
        """Return the `count` best children with their values, the best first; equal ones in the order of their tokens.

        Args:
            by: the value to rank by. None: `ret`. A `Solution`: Q*. Anything else with `log_probs(observation)`: the
                log-probability of the token, nats. A function: it gets a list of nodes and returns as many numbers.
        Raises: TypeError for another `by`; ValueError if a function returns a wrong number of values or NaN.
        """
        check_count("count", count)
        children = self.children
        values = self.tree.values([self], [children], by)[0]
        return [(children[i], float(values[i])) for i in _top(values, count)]

    def best_leaves(
        self, count: int = 1, by: Reference | Value | None = None, width: int = 64
    ) -> list[tuple[Node, float]]:
        """Search the `count` best finished states below by a beam that keeps the `width` best nodes of each length.

        Nothing is cut where no length has more than `width` states: then the answer is exact. Log-probabilities are
        added up along the way; the other values are those of the leaves themselves.

        Args:
            by: as in `best`. width: at least `count`.
        """
        check_count("count", count)
        check_count("width", width, count)
        beam, totals, leaves = [self], np.zeros(1), list[tuple[Node, float]]()
        adds = isinstance(by, Reference) and not isinstance(by, Solution)
        while beam:
            families = self.tree.expand(beam)
            values = self.tree.values(beam, families, by)
            nodes = [node for family in families for node in family]
            parts = [own + (total if adds else 0.0) for own, total in zip(values, totals, strict=True)]
            scores = np.concatenate(parts)
            best = _top(scores, width)
            leaves += [(nodes[i], float(scores[i])) for i in best if nodes[i].finished]
            going = [i for i in best if not nodes[i].finished]
            beam, totals = [nodes[i] for i in going], scores[going]
        return [leaves[i] for i in _top(np.array([value for _, value in leaves]), count)]


class Tree:
    """The states that can be reached in an environment, as nodes.

    Args:
        env: a `TokenEnv`, wrapped or not. Wrappers are passed over: rewards are the task's own.
    Raises: TypeError if it is another environment.
    """

    def __init__(self, env: object) -> None:
        bare = getattr(env, "unwrapped", None)
        if not isinstance(bare, TokenEnv):
            raise TypeError(f"env={env!r:.80}: allowed is a TokenEnv, wrapped or not")
        refuse_turns(bare.task, "a search")
        self._env = bare
        self.task, self.split = bare.task, bare.split
        # Moves are made in these rows, so whatever happens here the environment's own episode stays as it is.
        self._episodes = Episodes(self.task, self.split, _ROWS, segments=True)

    @property
    def root(self) -> Node:
        """The state in which the environment is now. Raises: ResetNeeded before its first reset."""
        return self.node(self._env.get_state())

    def node(self, state: TokenState) -> Node:
        """Return any state as a root. Raises: ValueError or TypeError if it does not fit this task."""
        self._episodes.restore(0, state)
        return Node(self, state)

    def expand(self, nodes: Sequence[Node]) -> list[tuple[Node, ...]]:
        """Return the children of each of the nodes."""
        edges = self._edges(nodes)
        families = [list[Node]() for _ in nodes]
        with scorers_restored(self.task.scorer, self.task.gold_scorer):
            for start in range(0, len(edges), _ROWS):
                batch = edges[start : start + _ROWS]
                moved = self._move([nodes[i] for i, _ in batch], [token for _, token in batch])
                for (i, _), child in zip(batch, moved, strict=True):
                    families[i].append(child)
        return [tuple(family) for family in families]

    def observations(self, nodes: Sequence[Node]) -> Observation:
        """Return the observations of the nodes: arrays (B, L)."""
        parts = list[Observation]()
        for node in nodes:
            self._episodes.restore(0, node.state)
            parts.append(self._episodes.store.observation(0))
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def values(
        self, parents: Sequence[Node], families: Sequence[Sequence[Node]], by: Reference | Value | None
    ) -> list[Floats]:
        """Return the value of every child in every family; for `by` see `Node.best`."""
        if isinstance(by, Solution):
            return [_optimal_values(by, parent, len(own)) for parent, own in zip(parents, families, strict=True)]
        if isinstance(by, Reference):
            seen, allowed = self.observations(parents), self.task.vocabulary.allowed
            said = log_probs_of(by, seen, len(allowed), "by")
            masks = None if self.task.mask is None else self._masks(parents)
            logs = legal_log_probs(seen, np.arange(len(parents)), masks, allowed, said, "by")
            table: Floats = logs.astype(np.float64)
            return [table[i, [node.state.completion[-1] for node in own]] for i, own in enumerate(families)]
        if by is not None and not callable(by):
            raise TypeError(
                f"by={by!r:.80}: allowed are None, a Solution, log_probs(observation), or a function of nodes"
            )
        nodes = [node for own in families for node in own]
        flat = np.asarray([node.ret for node in nodes] if by is None else by(nodes), dtype=np.float64)
        if flat.shape != (len(nodes),) or np.isnan(flat).any():
            raise ValueError(f"by: it returned values of shape {flat.shape}, allowed are {len(nodes)} numbers")
        return np.split(flat, np.cumsum([len(own) for own in families])[:-1])

    def _edges(self, nodes: Sequence[Node]) -> list[tuple[int, int]]:
        """Return place and legal token of every move from these nodes."""
        running = [i for i, node in enumerate(nodes) if not node.finished]
        places, tokens = np.nonzero(self._masks([nodes[i] for i in running]))
        return [(running[place], token) for place, token in zip(places.tolist(), tokens.tolist(), strict=True)]

    def _masks(self, nodes: Sequence[Node]) -> Bools:
        """Return the legal tokens of running nodes, (B, V)."""
        parts = [np.zeros((0, self.task.vocabulary.size), dtype=np.bool_)]
        for start in range(0, len(nodes), _ROWS):
            part = nodes[start : start + _ROWS]
            for row, node in enumerate(part):
                self._episodes.restore(row, node.state)
            parts.append(self._episodes.masks(range(len(part))))
        return np.concatenate(parts)

    def _move(self, parents: Sequence[Node], tokens: Sequence[int]) -> Iterator[Node]:
        """Step once from each of up to `_ROWS` nodes; they are paid in one call of the reward."""
        store, rows = self._episodes.store, list(range(len(parents)))
        for row, parent in enumerate(parents):
            self._episodes.restore(row, parent.state)
        codes = store.append(np.array(rows), np.array(tokens))
        paid = rows if self._episodes.pays_every_step else np.flatnonzero(codes).tolist()
        rewards = np.zeros(len(rows))
        if paid:
            rewards[paid], _ = self._episodes.settle(paid)
        for row, (parent, token, reward) in enumerate(zip(parents, tokens, rewards.tolist(), strict=True)):
            discounted = self.task.gamma ** len(parent.state.completion) * reward
            yield Node(self, store.state(row), token, reward, parent.ret + discounted)


def _optimal_values(solution: Solution, parent: Node, count: int) -> Floats:
    """Return Q* of the children of a state; the tree of the solver holds them in the same order."""
    try:
        depth, row = solution.tree.place(parent.state)
    except KeyError as error:
        raise ValueError(f"by: the solution does not know {error.args[0]}") from error
    first = solution.tree.levels[depth].first
    return np.asarray(solution.action_values[depth][first[row] : first[row + 1]] if count else np.zeros(0))


def _top(values: Floats, count: int) -> list[int]:
    return [int(i) for i in np.argsort(-values, kind="stable")[:count]]
