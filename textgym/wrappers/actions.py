"""Wrappers whose actions stand for tokens: allowed ones, the reference's likeliest, points among embeddings, and whole
turns.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints, check_count, shown
from textgym.env import why_reset
from textgym.episodes import Episodes, TokenSpace
from textgym.lm.reference import Observation, Reference
from textgym.state import UNSET, TokenState
from textgym.task import Task
from textgym.wrappers.base import (
    Actions,
    Env,
    Masks,
    RowsEnv,
    RowsStep,
    RowsWrapper,
    SingleWrapper,
    Step,
    reference_of,
    task_of,
)
from textgym.wrappers.reference import token_embedding

ActionSpace: TypeAlias = spaces.Space[Any]
Points: TypeAlias = NDArray[np.floating[Any]]


class Table(Protocol):
    """A list of tokens in every state, of `size` A."""

    size: int

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Ints, Bools]:
        """Return the tokens (B, A) in B states, and which entries (B, A) the task suggests.

        Args:
            observation: `input_ids` (B, L) and `attention_mask` (B, L).
            masks: (B, V) bool, the task's grammar; None where there is none.
        """


class AllowedTokens:
    """All tokens of `vocabulary.allowed`, bool (V,), by id."""

    def __init__(self, allowed: Bools) -> None:
        self._ids = np.flatnonzero(allowed).astype(np.int64)
        self.size = len(self._ids)

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Ints, Bools]:
        """See `Table.tokens`."""
        shape = (len(observation["input_ids"]), self.size)
        legal = np.ones(shape, dtype=np.bool_) if masks is None else masks[:, self._ids]
        return np.broadcast_to(self._ids, shape), legal


class TopKTokens:
    """The k likeliest legal tokens of a reference, likeliest first, equals by id.

    Where fewer than k are legal, the ranks begin again at the likeliest, so every rank is a legal token.

    Args:
        reference: pi_ref. allowed: (V,) bool. k: from 1 to the number of allowed tokens.
    Raises: ValueError for another k.
    """

    def __init__(self, reference: Reference, allowed: Bools, k: int) -> None:
        self.reference, self._allowed = reference, allowed
        self.size = check_count("k", k, 1, int(np.count_nonzero(allowed)), "ranks among the allowed tokens")

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Ints, Bools]:
        """See `Table.tokens`; True at the first appearance of a token in its row."""
        logs = np.asarray(self.reference.log_probs(observation), dtype=np.float64)
        legal = np.broadcast_to(self._allowed, logs.shape) if masks is None else self._allowed & masks
        # A legal token that the reference never writes ranks behind all others, yet before what is not legal.
        scores = np.where(legal, np.maximum(logs, -1e30), -np.inf)
        ids = _greatest(scores, self.size)
        ranked = np.take_along_axis(scores, ids, axis=1)
        order = np.argsort(-ranked, axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        count = np.minimum(legal.sum(1), self.size)[:, None]
        ranks = np.arange(self.size)
        return np.take_along_axis(ids, ranks % count, axis=1), ranks < count


def _greatest(scores: Floats, k: int) -> Ints:
    """Return the columns of the k greatest numbers of every row, ascending; of equal ones the leftmost."""
    threshold = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k, None]
    above, level = scores > threshold, scores == threshold
    chosen = above | (level & (np.cumsum(level, axis=1) <= k - above.sum(1, keepdims=True)))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


class Choice(Protocol):
    """The mapping from an action of `space` to a token of `table`."""

    table: Table
    space: ActionSpace

    def take(self, actions: Actions, observation: Observation, masks: Masks = None) -> Ints:
        """Return the tokens (B,) that B actions stand for. Raises: InvalidAction."""


class Numbered:
    """An action is a number in a table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.space: ActionSpace = TokenSpace(table.size)

    def take(self, actions: Actions, observation: Observation, masks: Masks = None) -> Ints:
        """See `Choice.take`."""
        numbers, size = np.asarray(actions), self.table.size
        integers = numbers.dtype.kind in "iu" and numbers.ndim == 1
        if not integers or not ((numbers >= 0) & (numbers < size)).all():
            raise InvalidAction(f"action {actions!r:.80}: allowed is an integer in 0..{size - 1} a row")
        return np.take_along_axis(self.table.tokens(observation, masks)[0], numbers[:, None], axis=1)[:, 0]


class Nearest:
    """An action is a point; it stands for the legal token of the table whose embedding is nearest.

    Args:
        table: the tokens to choose from. embedding: (V, D) float, inside [-1, 1].
    Source: Dulac-Arnold et al. (2015), arXiv:1512.07679, section 4: k = 1, so without their re-ranking by Q.
    """

    def __init__(self, table: Table, embedding: Points) -> None:
        self.table = table
        self._embedding = np.asarray(embedding, dtype=np.float64)
        self.space: ActionSpace = spaces.Box(-1.0, 1.0, (self._embedding.shape[1],), np.float32)

    def take(self, actions: Actions, observation: Observation, masks: Masks = None) -> Ints:
        """See `Choice.take`; of equally near tokens the first of the table."""
        try:
            points = np.asarray(actions, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        if points.ndim != 2 or points.shape[1:] != self.space.shape or not np.isfinite(points).all():
            raise InvalidAction(f"action {actions!r:.80}: allowed are finite points {self.space.shape} a row")
        tokens, legal = self.table.tokens(observation, masks)
        at = self._embedding[tokens]  # (B, A, D)
        # |a - e|^2 without the |a|^2 that all tokens share.
        distances = np.einsum("bad,bad->ba", at, at) - 2 * np.einsum("bad,bd->ba", at, points)
        nearest = np.where(legal, distances, np.inf).argmin(1)
        return np.asarray(tokens[np.arange(len(tokens)), nearest])


def _check_begun(observation: Observation) -> None:
    if not observation:
        raise ResetNeeded(why_reset(UNSET))


class _Chosen(SingleWrapper):
    """One environment whose actions go through a `Choice`."""

    choice: Choice

    def _choose_by(self, choice: Choice) -> None:
        self.choice, self.action_space = choice, choice.space

    def step(self, action: int | Actions) -> Step:
        """See `TokenEnv.step`; the action stands for a token."""
        _check_begun(self._observation)
        token = self.choice.take(np.asarray(action)[None], self._observation, self._masks())[0]
        return self._step(int(token))

    def action_masks(self) -> Bools:
        """Return which actions the task suggests here, bool (A,)."""
        _check_begun(self._observation)
        return np.asarray(self.choice.table.tokens(self._observation, self._masks())[1][0])


class _ChosenRows(RowsWrapper):
    """N environments whose actions go through a `Choice`."""

    choice: Choice

    def _choose_by(self, choice: Choice) -> None:
        self.choice, self.single_action_space = choice, choice.space
        self.action_space = batch_space(choice.space, self.num_envs)

    def step(self, actions: Actions) -> RowsStep:
        """See `TokenVectorEnv.step`; the actions stand for tokens, those of rows that take none may be anything."""
        _check_begun(self._observation)
        taken = np.asarray(actions)
        if taken.shape[:1] != (self.num_envs,):
            raise InvalidAction(f"actions {actions!r:.80}: allowed is one for each of {self.num_envs} sub-environments")
        if self._idle.any():
            taken = np.where(self._idle.reshape(-1, *(1,) * (taken.ndim - 1)), taken.dtype.type(0), taken)
        return self._step(self.choice.take(taken, self._observation, self._masks()))

    def action_masks(self) -> Bools:
        """Return which actions the task suggests, bool (N, A)."""
        _check_begun(self._observation)
        return np.asarray(self.choice.table.tokens(self._observation, self._masks())[1])


class TopKActions(_Chosen):
    """Map action r to the token of rank r among the reference's k most likely legal ones; 0 is the first.

    Where fewer than k tokens are legal, ranks begin again at the likeliest; `action_masks` leaves those out.

    Args:
        env: one environment whose actions are tokens. k: ranks. reference: None takes the task's.
    Raises: TypeError for an environment that is not TextGym's, or whose actions are not tokens; ValueError for a k out
        of range.
    """

    def __init__(self, env: Env, k: int, reference: Reference | None = None) -> None:
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self._choose_by(Numbered(TopKTokens(self.reference, self.task.vocabulary.allowed, k)))


class VectorTopKActions(_ChosenRows):
    """`TopKActions` of a vector environment: one reference call per step. Raises: as `TopKActions` does."""

    def __init__(self, env: RowsEnv, k: int, reference: Reference | None = None) -> None:
        super().__init__(env)
        self.reference = reference_of(env, reference)
        self._choose_by(Numbered(TopKTokens(self.reference, self.task.vocabulary.allowed, k)))


class AllowedActions(_Chosen):
    """Map action i to the i-th allowed token, without control tokens and unused rows of the vocabulary.

    Args:
        env: one environment whose actions are tokens.
    Raises: TypeError for an environment that is not TextGym's, or whose actions are not tokens.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self._choose_by(Numbered(AllowedTokens(self.task.vocabulary.allowed)))


class VectorAllowedActions(_ChosenRows):
    """`AllowedActions` of a vector environment. Raises: as `AllowedActions` does."""

    def __init__(self, env: RowsEnv) -> None:
        super().__init__(env)
        self._choose_by(Numbered(AllowedTokens(self.task.vocabulary.allowed)))


def _nearest(task: Task, dimensions: int, seed: int, embedding: Points | None, table: Table | None) -> Nearest:
    points = token_embedding(task, dimensions, seed) if embedding is None else _checked(embedding, task.vocabulary.size)
    return Nearest(AllowedTokens(task.vocabulary.allowed) if table is None else table, points)


def _checked(embedding: Points, size: int) -> Points:
    """Return points for all tokens, as an array. Raises: ValueError for other numbers of them, or outside [-1, 1]."""
    try:
        points = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or len(points) != size or not points.size or not (np.abs(points) <= 1).all():
        found = f"shape {points.shape}" if points.size else shown(embedding)
        raise ValueError(f"embedding ({found}): allowed is ({size}, D), a point in [-1, 1]^D for each token")
    return points


class EmbeddingActions(_Chosen):
    """Map a point in [-1, 1]^D to the nearest legal token: Wolpertinger without re-ranking.

    Args:
        env: one environment whose actions are tokens.
        dimensions: D. seed: of the embedding, where the reference is no LM.
        embedding: (V, D) float inside [-1, 1]; None takes `token_embedding`.
        table: the tokens to choose from; None takes all allowed ones.
    Raises: TypeError for an environment that is not TextGym's, or whose actions are not tokens; ValueError for
        `dimensions`, `seed` or `embedding` out of range.
    Source: Dulac-Arnold et al. (2015), arXiv:1512.07679, section 4, with k = 1.
    """

    def __init__(
        self, env: Env, dimensions: int = 8, seed: int = 0, embedding: Points | None = None, table: Table | None = None
    ) -> None:
        super().__init__(env)
        self._choose_by(_nearest(self.task, dimensions, seed, embedding, table))


class VectorEmbeddingActions(_ChosenRows):
    """`EmbeddingActions` of a vector environment. Raises: as `EmbeddingActions` does."""

    def __init__(
        self,
        env: RowsEnv,
        dimensions: int = 8,
        seed: int = 0,
        embedding: Points | None = None,
        table: Table | None = None,
    ) -> None:
        super().__init__(env)
        self._choose_by(_nearest(self.task, dimensions, seed, embedding, table))


class TurnEnv(SingleWrapper):
    """Write a turn of tokens in one step; in a task with one turn, the whole answer.

    An action is an array of T ids, T the budget of a turn. Its turn ends as it does token by token; what stands behind
    the end is ignored, so every action is one, and many are the same: the probability of a turn is that of its tokens
    up to its end. An array that is shorter and gets there is taken, too. A time limit belongs around this wrapper.

    The reward is that of all tokens written, that of the t-th times gamma^(t - 1), unless `ReferenceReward` below has
    discounted it. The info is that of the last one and `tokens` (int), how many were written.

    Args:
        env: one environment whose actions are tokens.
    Raises: TypeError for an environment that is not TextGym's, or whose actions are not tokens.
    """

    _turns = 1

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        turns = self.task.turns
        self._budget = self.task.max_new_tokens if turns is None else turns.tokens
        self._ends = self.task.vocabulary.stop_ids if turns is None else turns.ends
        self._most = self._turns * self._budget
        self._gamma = 1.0 if env.has_wrapper_attr("pays_discounted") else self.task.gamma
        self.action_space = spaces.MultiDiscrete(np.full(self._most, self.task.vocabulary.size))

    def step(self, action: Actions) -> Step:
        """Write the tokens of an action, int (A,), see the class.

        Raises: InvalidAction for another shape, an id out of range, or too few tokens; then the state stays.
        """
        tokens, size = np.asarray(action), self.task.vocabulary.size
        fits = tokens.dtype.kind in "iu" and tokens.ndim == 1 and 0 < len(tokens) <= self._most
        if not fits or not ((tokens >= 0) & (tokens < size)).all():
            raise InvalidAction(f"action {action!r:.80}: allowed are 1..{self._most} ids in 0..{size - 1}")
        count = self._count(self.env.get_wrapper_attr("get_state")(), tokens.tolist())
        if not count:  # before anything is written, which wrappers below would count
            raise InvalidAction(
                f"action {action!r:.80}: ends after {len(tokens)} tokens, before what it writes does; allowed are more"
            )
        paid = 0.0
        for time, token in enumerate(tokens[:count].tolist()):
            observation, reward, terminated, truncated, info = self._step(token)
            paid += self._gamma**time * reward
            if terminated or truncated:
                break
        return observation, paid, terminated, truncated, {**info, "tokens": time + 1}

    def _count(self, state: TokenState, tokens: list[int]) -> int:
        """Return how many of the tokens are written at most; 0 where they are too few."""
        if state.finish_reason is not None:
            return 1  # the environment below refuses it
        turns, written = max(self._turns - state.replies, 1), len(state.turn)
        for time, token in enumerate(tokens, 1):
            written += 1
            if token in self._ends or written == self._budget:
                turns, written = turns - 1, 0
                if not turns:
                    return time
        if self._turns > 1:  # the environment may end the episode before its last turn
            episodes = Episodes(self.task, self.env.get_wrapper_attr("split"), 1)
            episodes.restore(0, state)
            for time, token in enumerate(tokens, 1):
                if episodes.store.append(0, token) and episodes.answer(np.zeros(1, np.int64)).size:
                    return time
        return 0


class AnswerEnv(TurnEnv):
    """Write all turns of an episode in one step, as in a bandit. The ids of the turns are concatenated.

    What is written in a later turn cannot depend on a reply. Where chance has no say (`textgym.turns.Turns.random`)
    nothing is lost by that: the reply is known. Where it has, this would be another task with a lower optimum, and is
    refused.

    Args:
        env: one environment whose actions are tokens.
    Raises: as `TurnEnv`; ValueError for a task in which chance has a say in the replies.
    """

    def __init__(self, env: Env) -> None:
        task = task_of(env)
        if task.turns is not None:
            if task.turns.random([prompt for split in task.prompts for prompt in task.encoded(split)]):
                raise ValueError(
                    f"task {task.name!r}: chance has a say in what its environment replies, and a whole answer cannot "
                    "depend on that; allowed is TurnEnv"
                )
            self._turns = task.turns.most
        super().__init__(env)
