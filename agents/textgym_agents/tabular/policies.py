"""Policies over a table: greedy, epsilon-greedy and Boltzmann, their schedules, and legal actions under a grammar.

In all of them B states have A actions each. `known` (B, A) marks the actions whose values count; an action that is not
known is taken to be as good as the known ones of its state, so that the policy there keeps the reference's share.
"""

from __future__ import annotations

import numpy as np

from textgym.checks import Bools, Floats, Ints
from textgym.task import Task
from textgym_agents.protocol import Observation, StateFinder
from textgym_agents.tabular.config import Schedule, StepSize

_TIE = 1e-12  # Q-values that differ by less, relative to their size, are one value: sums round differently.


def soft_values(values: Floats, known: Bools, log_reference: Floats, beta: float) -> Floats:
    """Return V = beta log E_ref[exp(Q / beta)] over the known actions, (B,) reward units; NaN where none is known.

    Args:
        values: (B, A) Q, reward units. log_reference: (B, A) nats. beta: > 0, reward units per nat.
    Source: Korbak et al. (2022), arXiv:2205.11275, section 3.
    """
    counts = known & (log_reference > -np.inf)
    top = np.where(counts, values, -np.inf).max(1)
    shift = np.where(np.isneginf(top), 0.0, top)[:, None]
    mass = np.where(counts, np.exp(log_reference), 0.0)
    gaps = np.where(counts, values - shift, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (mass * np.exp(gaps / beta)).sum(1) / mass.sum(1)
        return np.asarray(np.where(counts.any(1), top + beta * np.log(mean), np.nan))


def hard_values(values: Floats, known: Bools) -> Floats:
    """Return V = max Q over the known actions, (B,) reward units; NaN where none is known."""
    return np.where(known.any(1), np.where(known, values, -np.inf).max(1), np.nan)


def boltzmann(values: Floats, known: Bools, log_reference: Floats, temperature: float) -> Floats:
    """Return the log of ref exp(Q / temperature) / Z, (B, A) nats; the reference where nothing is known."""
    centre = soft_values(values, known, log_reference, temperature)[:, None]
    tilt = np.where(known & ~np.isnan(centre), (values - centre) / temperature, 0.0)
    return normalised(log_reference + tilt)


def greedy(values: Floats, known: Bools, log_reference: Floats) -> Floats:
    """Return the log of the reference given that a best known action is taken, (B, A) nats.

    This is `boltzmann` in the limit of temperature 0: the reference where nothing is known. The best actions are
    equally likely where the reference takes none of them.
    """
    top = np.where(known, values, -np.inf).max(1, keepdims=True)
    best = known & (values >= top - _TIE * np.maximum(1.0, np.abs(top)))
    none = ~known.any(1, keepdims=True)
    kept = np.where(best | none, log_reference, -np.inf)
    dead = np.isneginf(kept).all(1, keepdims=True)
    return normalised(np.where(dead & best, 0.0, kept))


def mixed(log_policy: Floats, support: Bools, epsilon: float) -> Floats:
    """Return the log of (1 - epsilon) pi + epsilon uniform over `support`, (B, A) nats."""
    uniform = support / support.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log((1.0 - epsilon) * np.exp(log_policy) + epsilon * uniform))


def normalised(logs: Floats) -> Floats:
    """Return log-probabilities from unnormalised ones (B, A), at least one of each row finite."""
    shifted = logs - logs.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def draw(log_policy: Floats, generator: np.random.Generator) -> Ints:
    """Draw one column a row (B,): the argmax of log-probabilities plus Gumbel noise is a sample."""
    return np.asarray((log_policy + generator.gumbel(size=log_policy.shape)).argmax(1))


def log_ratios(log_policy: Floats, log_reference: Floats, columns: Ints) -> Floats:
    """Return log(policy / reference) of one column a row (B,), nats; 0 where the reference never takes it."""
    each = np.arange(len(columns))
    taken, against = log_policy[each, columns], log_reference[each, columns]
    return taken - np.where(np.isneginf(against), taken, against)


def scheduled(kind: Schedule, start: float, end: float, progress: float) -> float:
    """Return a number between `start` and `end`, both > 0 if `kind` is "exponential".

    Args:
        progress: share of the way, at least 0; from 1 on it is `end`, or `start` if `kind` is "constant".
    """
    share = min(progress, 1.0)
    if kind == "constant" or start == end:
        return start
    if kind == "linear":
        return start + (end - start) * share
    return float(start * (end / start) ** share)


def update_weight(kind: StepSize, rate: float, before: Ints, repeats: Ints) -> Floats:
    """Return the weight (m,) of n updates one after the other in Q <- Q + weight * (target - Q).

    For a constant rate that is 1 - (1 - rate)^n. For steps 1 / (k + 1), ..., 1 / (k + n) it is n / (k + n), which
    makes Q the mean of all its targets.

    Args:
        before: (m,) k, updates that each value had. repeats: (m,) n, updates now.
    """
    if kind == "harmonic":
        return np.asarray(repeats / (before + repeats))
    return np.asarray(1.0 - (1.0 - rate) ** repeats)


class Grammar:
    """Asks a task's mask about states that are known by their tokens alone.

    Args:
        task: supplies mask, vocabulary and prompts.
    """

    def __init__(self, task: Task) -> None:
        self._mask, self._allowed = task.mask, task.vocabulary.allowed
        self._finder = None if task.mask is None else StateFinder(task)

    def legal(self, observation: Observation, asked: Bools) -> Bools | None:
        """Return the legal tokens (n, V) of running states; None for a task without mask.

        Args:
            asked: (n,) the states to ask about. In others all ordinary tokens are legal.
        """
        if self._mask is None or self._finder is None:
            return None
        legal = np.repeat(self._allowed[None], len(asked), axis=0)
        rows = np.flatnonzero(asked)
        if len(rows):
            found = self._finder.states({name: array[rows] for name, array in observation.items()})
            legal[rows] &= self._mask([state for _, state in found])
        return legal
