"""Actions that stand for tokens: fixed tables, the reference's likeliest tokens, points among embeddings."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction
from numpy.typing import NDArray

from textgym.lm.reference import Observation, Reference
from textgym.spaces import TokenSpace
from textgym.wrappers.base import Masks

Tokens = NDArray[np.int64]


class Table(Protocol):
    """A list of tokens in every state.

    Attributes:
        size: A, its length.
    """

    size: int

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Tokens, NDArray[np.bool_]]:
        """The tokens (B, A) in B states, and which entries (B, A) the task suggests.

        Args:
            observation: `input_ids` (B, L) and `attention_mask` (B, L).
            masks: (B, V) bool, the task's grammar; None where there is none.
        """


class AllowedTokens:
    """All tokens of `vocabulary.allowed`, by id.

    Args:
        allowed: (V,) bool.
    """

    def __init__(self, allowed: NDArray[np.bool_]) -> None:
        self._ids = np.flatnonzero(allowed).astype(np.int64)
        self.size = len(self._ids)

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Tokens, NDArray[np.bool_]]:
        """See `Table.tokens`."""
        shape = (len(observation["input_ids"]), self.size)
        legal = np.ones(shape, dtype=np.bool_) if masks is None else masks[:, self._ids]
        return np.broadcast_to(self._ids, shape), legal


class TopKTokens:
    """The k likeliest legal tokens of a reference, likeliest first, equals by id.

    Where fewer than k are legal, the ranks begin again at the likeliest: every rank always stands for a legal token.

    Args:
        reference: pi_ref. allowed: (V,) bool. k: from 1 to the number of allowed tokens.
    Raises: ValueError for another k.
    """

    def __init__(self, reference: Reference, allowed: NDArray[np.bool_], k: int) -> None:
        most = int(np.count_nonzero(allowed))
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= most:
            raise ValueError(f"k={k!r}: allowed is an int in 1..{most}, the number of allowed tokens")
        self.reference, self.size, self._allowed = reference, int(k), allowed

    def tokens(self, observation: Observation, masks: Masks = None) -> tuple[Tokens, NDArray[np.bool_]]:
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


def _greatest(scores: NDArray[np.float64], k: int) -> Tokens:
    """The columns of the k greatest numbers of every row, ascending; of equal ones the leftmost."""
    threshold = np.partition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k, None]
    above, level = scores > threshold, scores == threshold
    chosen = above | (level & (np.cumsum(level, axis=1) <= k - above.sum(1, keepdims=True)))
    return np.nonzero(chosen)[1].reshape(len(scores), k)


class Choice(Protocol):
    """How an action becomes a token.

    Attributes:
        table: the tokens to choose from. space: of a single action.
    """

    table: Table
    space: spaces.Space[Any]

    def take(self, actions: Any, observation: Observation, masks: Masks = None) -> Tokens:
        """The tokens (B,) that B actions stand for. Raises: InvalidAction."""


class Numbered:
    """An action is a number in a table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.space: spaces.Space[Any] = TokenSpace(table.size)

    def take(self, actions: Any, observation: Observation, masks: Masks = None) -> Tokens:
        """See `Choice.take`."""
        numbers = np.asarray(actions)
        size = self.table.size
        if (
            numbers.dtype.kind not in "iu"
            or numbers.ndim != 1
            or not ((numbers >= 0) & (numbers < size)).all()
        ):
            raise InvalidAction(f"action {actions!r:.80}: allowed is an integer in 0..{size - 1} a row")
        return np.take_along_axis(self.table.tokens(observation, masks)[0], numbers[:, None], axis=1)[:, 0]


class Nearest:
    """An action is a point; it stands for the legal token of the table whose embedding is nearest.

    Args:
        table: the tokens to choose from. embedding: (V, D) float, inside [-1, 1].
    Source: Dulac-Arnold et al. (2015), arXiv:1512.07679, section 4: k = 1, so without their re-ranking by Q.
    """

    def __init__(self, table: Table, embedding: NDArray[np.floating[Any]]) -> None:
        self.table = table
        self._embedding = np.asarray(embedding, dtype=np.float64)
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (self._embedding.shape[1],), np.float32)

    def take(self, actions: Any, observation: Observation, masks: Masks = None) -> Tokens:
        """See `Choice.take`; of equally near tokens the first of the table."""
        points = np.asarray(actions, dtype=np.float64)
        if points.ndim != 2 or points.shape[1:] != self.space.shape or not np.isfinite(points).all():
            raise InvalidAction(f"action {actions!r:.80}: allowed are finite points {self.space.shape} a row")
        tokens, legal = self.table.tokens(observation, masks)
        at = self._embedding[tokens]  # (B, A, D)
        # |a - e|^2 without the |a|^2 that all tokens share.
        distances = np.einsum("bad,bad->ba", at, at) - 2 * np.einsum("bad,bd->ba", at, points)
        nearest = np.where(legal, distances, np.inf).argmin(1)
        return np.asarray(tokens[np.arange(len(tokens)), nearest])
