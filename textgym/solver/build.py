"""Build the prefix tree of a task, and pay its states with the task's own reward."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from textgym.checks import Bools, Floats, Ints, check_number
from textgym.rewards import Scorer
from textgym.rewards.dense import potential_difference
from textgym.rewards.scorer import lasting
from textgym.solver.tree import Level, PrefixTree, UnsolvableError, check_size, count_states
from textgym.state import Prompt, TokenState
from textgym.task import BETA, GAMMA, Task
from textgym.turns import Reply


def check_beta(task: Task, beta: float | None) -> float:
    """Return beta, reward units per nat, or the task's for None. Raises: ValueError unless it is finite and >= 0."""
    return check_number("beta", task.beta if beta is None else beta, 0, unit=BETA)


def check_gamma(task: Task, gamma: float | None) -> float:
    """Return gamma, or the task's for None.

    What a potential pays keeps the task's own gamma: at another one its differences do not add up to the reward, and
    the optimum is another.

    Raises: ValueError unless it lies in [0, 1], or is 1 in a task with turns.
    """
    if task.turns is not None and gamma not in (None, 1):
        raise ValueError(f"gamma={gamma}: in a task with turns allowed is 1")
    return check_number("gamma", task.gamma if gamma is None else gamma, 0, 1, GAMMA)


_LOG = logging.getLogger(__name__)
MAX_STATES = 2_000_000
"""The states that a prefix tree may have where nothing else is said."""
_TEXTS_AT_ONCE = 50_000
_TEXTS_IN_TIME = 512  # where a batch has a time limit: no more than a large vector environment scores at once
_MASKS_AT_ONCE = 4096
_ARRAYS = ("parent", "action", "finished")


def prefix_tree(problem: object, split: str | None = None, max_states: int = MAX_STATES) -> PrefixTree:
    """Return every state that legal actions reach, with the pay for arriving there.

    Legal are the tokens of `vocabulary.allowed` that the task's mask, where it has one, allows in the state.

    Args:
        problem: a `Task`, or an environment of one; a `PrefixTree` is returned as it is.
        split: "train", "eval" or "tune"; None takes the environment's, "train" for a task.
        max_states: states; a larger tree is refused before memory is spent on it.

    Raises:
        UnsolvableError: the tree is too large; the reward is noisy without an average pay
            (`expected`), changes while it scores, or runs out of time where that is no error; what the environment
            hides is a seed.
        ValueError: the split is unknown; the mask allows nothing in some state.
        TypeError: `problem` is none of these.
        RewardError: the reward fails.
    """
    if isinstance(problem, PrefixTree):
        return problem
    task, split = _task_and_split(problem, split)
    replies: tuple[tuple[int, ...], ...] = ()
    if task.turns is not None:
        bare, replies = _Conversations(task, split, max_states).levels()
    else:
        bare = _masked_levels(task, split, max_states) if task.mask else _free_levels(task, split, max_states)
    unpaid = PrefixTree(task, split, tuple(bare), replies)
    with _Payer(task, split) as payer:
        _LOG.info("scoring %d states", unpaid.states)
        paid = [replace(level, reward=payer.pay(unpaid, depth)) for depth, level in enumerate(bare) if depth]
    return PrefixTree(task, split, (bare[0], *paid), replies)


def _task_and_split(problem: object, split: str | None) -> tuple[Task, str]:
    if isinstance(problem, Task):
        return problem, "train" if split is None else split
    bare = getattr(problem, "unwrapped", None)
    task = getattr(bare, "task", None)
    if not isinstance(task, Task):
        raise TypeError(
            f"task={problem!r:.80}: allowed are a textgym.task.Task, an environment of one, and a PrefixTree"
        )
    return task, str(getattr(bare, "split", "train")) if split is None else split


def _free_levels(task: Task, split: str, max_states: int) -> list[Level]:
    """Return the tree of a task without a mask: every running state has the same actions, so its size is known."""
    actions = np.flatnonzero(task.vocabulary.allowed)
    stops = np.isin(actions, task.vocabulary.stop_ids)
    roots, ending = len(task.encoded(split)), int(stops.sum())
    check_size(count_states(roots, len(actions) - ending, ending, task.max_new_tokens), max_states)
    levels: list[Level] = []
    parent, action, finished = _roots(roots)
    while len(running := np.flatnonzero(~finished)):
        levels.append(_level(parent, action, finished, np.where(finished, 0, len(actions))))
        parent, action = np.repeat(running, len(actions)), np.tile(actions, len(running))
        finished = np.tile(stops | (len(levels) == task.max_new_tokens), len(running))
    return [*levels, _level(parent, action, finished, np.zeros(len(parent), dtype=np.int64))]


def _masked_levels(task: Task, split: str, max_states: int) -> list[Level]:
    """Return the tree of a task whose mask has to be asked in every state; counted on the way."""
    levels: list[Level] = []
    parent, action, finished = _roots(len(task.encoded(split)))
    total = len(parent)
    check_size(total, max_states)
    while len(running := np.flatnonzero(~finished)):
        _LOG.info("expanding the tree of answers, %d states", total)
        so_far = PrefixTree(task, split, (*levels, _level(parent, action, finished, np.array([]))))
        rows, actions = [], []
        for batch, mask in _masks(so_far, len(levels), running):
            total += int(np.count_nonzero(mask))
            check_size(total, max_states, "at least ")
            where, token = np.nonzero(mask)
            rows.append(batch[where])
            actions.append(token)
        below = np.concatenate(rows)
        levels.append(_level(parent, action, finished, np.bincount(below, minlength=len(parent))))
        parent, action = below, np.concatenate(actions)
        finished = np.isin(action, task.vocabulary.stop_ids) | (len(levels) == task.max_new_tokens)
    return [*levels, _level(parent, action, finished, np.zeros(len(parent), dtype=np.int64))]


@dataclass
class _Node:
    """A state, how likely each thing is that may be hidden in it, and how it was reached."""

    state: TokenState
    beliefs: Floats
    parent: int
    action: int = -1
    chance: float = np.nan
    finished: bool = False
    environment: bool = False


class _Conversations:
    """The tree of a task with turns: moves of the policy, a token each, and moves of the environment, a reply each."""

    def __init__(self, task: Task, split: str, max_states: int) -> None:
        assert task.turns is not None
        self._task, self._turns, self._max_states = task, task.turns, max_states
        self._prompts = task.encoded(split)
        self._moves: dict[Reply, int] = {}

    def levels(self) -> tuple[list[Level], tuple[tuple[int, ...], ...]]:
        """Return the levels, unpaid, and the replies by their numbers."""
        nodes = [_Node(TokenState(prompt), self._weights(prompt), row) for row, prompt in enumerate(self._prompts)]
        if self._task.mask is None:  # the first turn alone may be too much
            actions = np.flatnonzero(self._task.vocabulary.allowed)
            ending = int(np.isin(actions, self._turns.ends).sum())
            first = count_states(len(nodes), len(actions) - ending, ending, self._turns.tokens)
            check_size(first, self._max_states, "at least ")
        levels: list[Level] = []
        total = 0
        while nodes:
            total += len(nodes)
            check_size(total, self._max_states, "at least ")
            below = list(self._children(nodes))
            counts = np.bincount([node.parent for node in below], minlength=len(nodes))
            chance = np.array([node.chance for node in nodes])
            moves = np.array([node.environment for node in nodes])
            parent, action, finished = (np.array([getattr(node, name) for node in nodes]) for name in _ARRAYS)
            level = _level(parent, action, finished, counts)
            met, asked = not np.isnan(chance).all(), moves.any()
            levels.append(replace(level, chance=chance if met else None, environment=moves if asked else None))
            nodes = below
        return levels, tuple(reply.tokens for reply in self._moves)

    def _weights(self, prompt: Prompt) -> Floats:
        weights = self._turns.responder.weights(prompt)
        if weights is None:
            raise UnsolvableError(
                f"task {self._task.name!r}: what its environment hides is a seed, one of 2^63; what can be solved "
                "has a few things to hide, with weights"
            )
        return np.asarray(weights, dtype=np.float64)

    def _children(self, nodes: Sequence[_Node]) -> Iterator[_Node]:
        own = [node.state for node in nodes if not (node.finished or node.environment)]
        masks = iter(legal_tokens(self._task, own)) if own else iter(())
        replies = self._replies([node for node in nodes if node.environment])
        for row, node in enumerate(nodes):
            if node.environment:
                yield from self._answered(row, node, next(replies))
            elif not node.finished:
                yield from (self._written(row, node, int(token)) for token in np.flatnonzero(next(masks)))

    def _replies(self, nodes: Sequence[_Node]) -> Iterator[dict[Reply, Floats]]:
        """Yield the replies to each state, with what they leave of its beliefs; asked in one call."""
        possible = [np.flatnonzero(node.beliefs) for node in nodes]
        asked = [replace(node.state, hidden=int(k)) for node, ks in zip(nodes, possible, strict=True) for k in ks]
        answers = iter(self._turns.answers(asked))
        for node, ks in zip(nodes, possible, strict=True):
            found: dict[Reply, Floats] = {}
            for k in ks:
                found.setdefault(next(answers), np.zeros(len(node.beliefs)))[k] = node.beliefs[k]
            yield found

    def _answered(self, row: int, node: _Node, replies: dict[Reply, Floats]) -> list[_Node]:
        """Return the states that replies lead to, in the order of their numbers."""
        start, found = len(node.state.completion), []
        for reply, left in replies.items():
            places = (*node.state.environment, *range(start, start + len(reply.tokens)))
            state = replace(node.state, completion=node.state.completion + reply.tokens, environment=places)
            move = self._task.vocabulary.size + self._moves.setdefault(reply, len(self._moves))
            share = float(left.sum())
            over = reply.ends or self._turns.last(node.state)
            found.append(_Node(state, left / share, row, move, float(np.log(share)), finished=over))
        return sorted(found, key=lambda node: node.action)

    def _written(self, row: int, node: _Node, token: int) -> _Node:
        """Return the state that a token of the policy leads to."""
        state = replace(node.state, completion=(*node.state.completion, token))
        over = token in self._turns.ends or len(state.turn) == self._turns.tokens
        return _Node(state, node.beliefs, row, token, environment=over)


def _masks(tree: PrefixTree, depth: int, running: Ints) -> Iterator[tuple[Ints, Bools]]:
    """Yield batches of running states with the tokens that are legal there, bool (m, V)."""
    task = tree.task
    prompts, size = task.encoded(tree.split), max(1, min(_MASKS_AT_ONCE, 8_000_000 // task.vocabulary.size))
    for start in range(0, len(running), size):
        rows = running[start : start + size]
        tokens = tree.completions(depth, rows).tolist()
        prompt = tree.prompt_of[depth][rows].tolist()
        states = [TokenState(prompts[i], tuple(ids)) for i, ids in zip(prompt, tokens, strict=True)]
        yield rows, legal_tokens(task, states)


def legal_tokens(task: Task, states: Sequence[TokenState]) -> Bools:
    """Return the tokens that a task allows in m running states, bool (m, V).

    Raises: ValueError if its mask allows none in some state.
    """
    allowed = np.repeat(task.vocabulary.allowed[None], len(states), axis=0)
    if task.mask is None:
        return allowed
    masks = np.asarray(allowed & task.mask(states))
    if not masks.any(axis=1).all():
        raise ValueError(f"mask of task {task.name!r}: leaves no token at all in some state")
    return masks


def _roots(count: int) -> tuple[Ints, Ints, Bools]:
    return np.arange(count), np.full(count, -1, dtype=np.int64), np.zeros(count, dtype=np.bool_)


def _level(parent: Ints, action: Ints, finished: Bools, children: Ints | Floats) -> Level:
    first = np.zeros(len(children) + 1, dtype=np.int64)
    np.cumsum(children, out=first[1:])
    return Level(parent, action, finished, first, np.zeros(len(parent)))


class _Payer:
    """Ask the task's reward for the states of a tree, in batches, without changing the task's own scorer."""

    def __init__(self, task: Task, split: str) -> None:
        reward: Any = task.reward
        if task.scorer.pay == "together":
            raise UnsolvableError(
                f"task {task.name!r}: its reward {task.scorer.name!r} compares the completions of a batch, "
                "so it is no function of one text; allowed is one that is"
            )
        if task.noisy:
            reward = getattr(task.reward, "expected", None)
            if not callable(reward):
                raise UnsolvableError(
                    f"task {task.name!r}: its reward is noisy and has no attribute `expected`, "
                    "a reward that pays the mean over the noise; without it there is nothing exact to solve"
                )
        self._task, self._split, self._pay = task, split, task.scorer.pay
        self._scorer = Scorer(reward, task.on_error, task.penalty, task.timeout)
        self._before = copy.deepcopy(self._scorer.state_dict()["reward"])
        self._potential: Floats = np.zeros(len(task.encoded(split)))

    def __enter__(self) -> _Payer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._scorer.close()
        state, failures = self._scorer.state_dict(), self._scorer.failures
        same = state["reward"] == self._before
        changed = not same and lasting(state["reward"]) != lasting(self._before)
        if not same:
            self._scorer.load_state_dict(state | {"reward": self._before})
        late = failures["timeout"] + failures["dies"]
        if error is None and late:
            raise UnsolvableError(
                f"task {self._task.name!r}: its reward {self._scorer.name!r} took longer than timeout="
                f"{self._task.timeout} s, or its process died, on batches of {late} texts in all, so what they are "
                "worth is not known"
            )
        if error is None and changed:
            raise UnsolvableError(
                f"task {self._task.name!r}: its reward {self._scorer.name!r} changes while it scores, "
                "so it is no fixed function of the text; allowed is one that stays the same"
            )

    def pay(self, tree: PrefixTree, depth: int) -> Floats:
        """Return the pay for arriving in each state of a level, to be asked level after level."""
        level = tree.levels[depth]
        if self._pay == "end":
            reward = np.zeros(len(level.parent))
            ended = np.flatnonzero(level.finished)
            reward[ended] = self._score(tree, depth, ended)
            return reward
        score = self._score(tree, depth, np.arange(len(level.parent)))
        if self._pay == "every":
            return score
        before, self._potential = self._potential[level.parent], score
        return np.asarray(potential_difference(before, score, level.finished, self._task.gamma))

    def _score(self, tree: PrefixTree, depth: int, rows: Ints) -> Floats:
        prompts, result = self._task.encoded(self._split), np.empty(len(rows))
        size = _TEXTS_AT_ONCE if self._task.timeout is None else _TEXTS_IN_TIME
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            chosen = [prompts[i] for i in tree.prompt_of[depth][rows[part]].tolist()]
            ids, places = tree.written(depth, rows[part])
            seeds = [0] * len(ids)  # a column of noisy tasks, which the mean does not depend on
            judged = self._task.judge(self._split, chosen, ids, seeds, scorer=self._scorer, environment=places)
            result[part] = judged.total
        return result
