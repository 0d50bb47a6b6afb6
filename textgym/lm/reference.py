"""Reference policies: next-token log-probabilities for a batch of observations, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from textgym.checks import Bools, Floats, Ints, shown, token_counts

Observation = Mapping[str, NDArray[np.integer]]
LogProbs = NDArray[np.floating]
Real = TypeVar("Real", bound=np.floating)


@runtime_checkable
class Reference(Protocol):
    """pi_ref of a task. The answer depends on the observation alone."""

    def log_probs(self, observation: Observation) -> LogProbs:
        """Return next-token log-probabilities.

        Args:
            observation: `input_ids` (B, L) int64 and `attention_mask` (B, L) int8, right-padded.
        Returns: (B, V) float, nats; -inf at tokens that are never chosen.
        """


def said_by(policy: object, observation: Observation) -> LogProbs | None:
    """Return what a policy's `log_probs` says of observations; None for a policy that only acts.

    Raises: TypeError for an object that does neither.
    """
    method = getattr(policy, "log_probs", None)
    if method is None and not callable(getattr(policy, "act", None)):
        raise TypeError(
            f"policy={shown(policy)}: allowed has log_probs(observation) or act(observation, deterministic)"
        )
    return None if method is None else cast("LogProbs | None", method(observation))


def log_probs_of(policy: object, observation: Observation, size: int, argument: str) -> LogProbs:
    """Return what a policy's, or a reference's, `log_probs` says of observations.

    Args:
        size: of the vocabulary, V.
        argument: the policy's name in messages.
    Returns: (B, V), whatever numbers are in it.
    Raises: TypeError if it has no log-probabilities; ValueError for another shape.
    """
    method = getattr(policy, "log_probs", None)
    table = None if method is None else method(observation)
    if table is None:
        raise TypeError(
            f"{argument}={policy!r:.80} gives no log-probabilities; needed is log_probs(observation) -> (B, V)"
        )
    return checked_shape(table, observation, size, argument)


def checked_shape(table: object, observation: Observation, size: int, argument: str) -> LogProbs:
    """Return log-probabilities as an array. Args: as `log_probs_of`. Raises: ValueError if it is not (B, V)."""
    found, shape = np.asarray(table), (len(observation["input_ids"]), size)
    if found.shape != shape:
        raise ValueError(f"{argument}: log_probs returned shape {found.shape}, allowed is {shape}")
    return found


def checked_actions(acted: object, observation: Observation) -> Ints:
    """Return what a policy's `act` said of observations, int64. Raises: ValueError unless it is integers (B,)."""
    shape = (len(observation["input_ids"]),)
    try:
        found = np.asarray(acted)
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy: act returned {acted!r:.80}, allowed are integers {shape}") from error
    if found.shape != shape or found.dtype.kind not in "iu":
        raise ValueError(f"policy: act returned {found.dtype} {found.shape}, allowed are integers {shape}")
    return found.astype(np.int64, copy=False)


def restricted(log_probs: NDArray[Real], masks: Bools | None) -> NDArray[Real]:
    """Return a policy's distribution over the tokens that a task's grammar allows.

    Args:
        log_probs: (B, V) float, nats.
        masks: (B, V) bool, at least one True a row; None leaves `log_probs` as they are.
    Returns: (B, V) float, nats, -inf where masked; rows whose every allowed token has probability 0 are uniform.
    """
    if masks is None:
        return log_probs
    allowed = np.where(masks, log_probs, -np.inf)
    top = allowed.max(1, keepdims=True)
    allowed = np.where(np.isneginf(top) & masks, 0.0, allowed)
    top = np.where(np.isneginf(top), 0.0, top)
    return np.asarray(allowed - top - np.log(np.exp(allowed - top).sum(1, keepdims=True)))


def over_legal(log_probs: NDArray[Real], masks: Bools | None, allowed: Bools) -> NDArray[Real]:
    """Return a policy's or a reference's distribution over the legal tokens, as `restricted` does.

    Args:
        log_probs: (B, V) float, nats. masks: (B, V) bool, the tokens that a task's grammar allows; None without one.
        allowed: (V,) bool, the tokens that are ever legal. What others have is shared out among these.
    """
    if masks is None and np.exp(log_probs[:, ~allowed]).any():  # models have -1e9 there, and are left as they are
        masks = np.broadcast_to(allowed, log_probs.shape)
    return restricted(log_probs, masks)


class UniformReference:
    """The same probability for every allowed token, of bool (V,). Raises: ValueError if none is."""

    def __init__(self, allowed: Bools) -> None:
        if not np.any(allowed):
            raise ValueError("allowed: no token is allowed; at least one must be True")
        with np.errstate(divide="ignore"):
            self._row = np.log(np.asarray(allowed, dtype=np.float64) / np.count_nonzero(allowed))

    def __str__(self) -> str:
        return "uniform"

    def log_probs(self, observation: Observation) -> Floats:
        """See `Reference.log_probs`; (B, V) float64, a read-only view."""
        return np.broadcast_to(self._row, (len(observation["input_ids"]), len(self._row)))


class NGramReference:
    """A table of next-token probabilities by the last n - 1 tokens.

    Args:
        probabilities: (V,) * n float; `probabilities[a, b]` is the distribution after ..., a, b. Rows sum to 1.
        start: token ids that stand before the first token of a state, n - 1 of them; default all 0.
    Raises: ValueError for another shape, a row that is negative or does not sum to 1, or another `start`.
    Source: Shannon (1948), A Mathematical Theory of Communication, section 3.
    """

    def __init__(self, probabilities: NDArray[np.floating], start: Sequence[int] | None = None) -> None:
        table = np.asarray(probabilities, dtype=np.float64)
        if len(set(table.shape)) != 1:
            raise ValueError(f"probabilities: shape {table.shape}, allowed is V as often as n, as in (V, V) for n = 2")
        if (table < 0).any() or not np.allclose(table.sum(-1), 1.0, atol=1e-9):
            raise ValueError("probabilities: every row must be >= 0 and sum to 1")
        self._order = table.ndim
        self._start = np.zeros(self._order - 1, dtype=np.int64) if start is None else np.asarray(start)
        if self._start.shape != (self._order - 1,) or not np.isin(self._start, np.arange(len(table))).all():
            raise ValueError(f"start={start!r}: {self._order - 1} token ids in 0..{len(table) - 1} are needed")
        with np.errstate(divide="ignore"):
            self._table = np.log(table)

    @property
    def order(self) -> int:
        """n: the next token depends on the last n - 1."""
        return self._order

    def __str__(self) -> str:
        return f"{self._order}-gram"

    def log_probs(self, observation: Observation) -> Floats:
        """See `Reference.log_probs`; (B, V) float64."""
        ids = np.asarray(observation["input_ids"])
        lengths = token_counts(observation)
        before = np.broadcast_to(self._start, (len(ids), self._order - 1))
        padded = np.concatenate([before, ids], axis=1)
        # Column `lengths` of `padded` is the first of the last n - 1 tokens of the row.
        columns = lengths[:, None] + np.arange(self._order - 1)
        context = np.take_along_axis(padded, columns, axis=1)
        rows = np.asarray(self._table[tuple(context.T)])
        return np.broadcast_to(rows, (len(ids), self._table.shape[-1]))  # n = 1 has one row for all
