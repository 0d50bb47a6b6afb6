"""J*, the best that any policy can do at a price of KL: estimated from the reference's samples, or solved exactly."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from textgym.bootstrap import RESAMPLES, Estimate, Floats, interval, resampled_means, widen
from textgym.lm.reference import Reference
from textgym.references import make_reference
from textgym.rewards import TextGymWarning
from textgym.rewards.blurred import NOISE
from textgym.sampling import Episodes, play
from textgym.solve import MAX_STATES, solve
from textgym.task import Task

_ENOUGH = 30


@dataclass(frozen=True)
class Optimum:
    """The ends of the scale that policies are measured on: J* of a task, and J of its reference.

    Attributes:
        value: J*, reward units. reference: J of the reference itself.
        beta: reward units per nat.
        replicates: (R, 2) bootstrap replicates of the reference's J and of J*, drawn together; all the same where
            they are exact.
        effective_samples: weighted harmonic mean over prompts of (sum w)^2 / sum w^2 with w = exp(R / beta): the
            number of samples a prompt that carry the estimate. Below 30 it is not to be trusted. None where J* is
            exact.
    """

    value: Estimate
    reference: Estimate
    beta: float
    replicates: Floats
    effective_samples: float | None

    @property
    def exact(self) -> bool:
        """Whether it was solved, not estimated."""
        return self.effective_samples is None

    @classmethod
    def certain(cls, value: float, reference: float, beta: float) -> Optimum:
        """One that is known: its intervals have no width."""
        replicates = np.tile([reference, value], (RESAMPLES, 1))
        best, base = Estimate(value, value, value), Estimate(reference, reference, reference)
        return Optimum(best, base, beta, replicates, None)


@dataclass(frozen=True)
class SampledOptimum(Optimum):
    """An `Optimum` from samples of the reference.

    Attributes:
        returns: (P, n) sampled returns; weights: (P,) probabilities of the prompts. episodes: the samples.
    """

    effective_samples: float
    returns: Floats
    weights: Floats
    episodes: Episodes


def exact_optimum(
    task: Task,
    reference: Reference | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    max_states: int = MAX_STATES,
) -> Optimum:
    """J* and J of the reference by backward induction over the task's states.

    Args:
        reference: None takes the task's. beta: >= 0, reward units per nat; None takes the task's.
        max_states: of the tree of states.
    Raises: UnsolvableError if the task cannot be solved, and what else `textgym.solve.solve` raises.
    """
    solution = solve(task, reference, beta=beta, split=split, max_states=max_states)
    return Optimum.certain(solution.objective, solution.reference_objective, solution.beta)


def estimate_optimum(
    task: Task,
    reference: Reference | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 128,
    seed: int = 0,
) -> SampledOptimum:
    """J* = E_x[beta log E_{y ~ ref} exp(R / beta)] from samples of the reference.

    A log of a mean is biased low; the leading bias, beta / (2 effective samples), is taken out.

    Args:
        beta: > 0, reward units per nat; None takes the task's.
        per_prompt: completions sampled of every prompt of `split`.
    Raises: ValueError if beta is not positive (then J* is the greatest reward, which samples cannot tell).
    Warns: TextGymWarning if fewer than 30 samples a prompt carry the estimate.
    Source: Korbak et al. (2022), arXiv:2205.11275, section 3.
    """
    beta = task.beta if beta is None else beta
    if not beta > 0:
        raise ValueError(f"beta={beta!r}: allowed is a number > 0 (reward units per nat)")
    policy = make_reference(task) if reference is None else reference
    episodes = play(policy, task, split=split, per_prompt=per_prompt, seed=seed)
    returns, weights = expected_returns(task, episodes), episodes.weights
    tilted = np.exp((returns - returns.max(1, keepdims=True)) / beta)
    effective = tilted.sum(1) ** 2 / np.square(tilted).sum(1)
    ess = float(1.0 / np.sum(weights / effective))
    if ess < _ENOUGH:
        warnings.warn(
            f"J* at beta={beta} rests on {ess:.1f} effective samples a prompt (below {_ENOUGH}): "
            f"raise per_prompt (now {per_prompt}) or beta",
            TextGymWarning,
            stacklevel=2,
        )
    estimates = np.array([weights @ returns.mean(1), weights @ soft_maximum(returns, beta)])
    replicates = widen(estimates, _optimum_replicates(returns, weights, beta, seed), per_prompt)
    return SampledOptimum(
        value=interval(float(estimates[1]), replicates[:, 1]),
        reference=interval(float(estimates[0]), replicates[:, 0]),
        effective_samples=ess,
        beta=beta,
        returns=returns,
        weights=weights,
        replicates=replicates,
        episodes=episodes,
    )


def expected_returns(task: Task, episodes: Episodes) -> Floats:
    """Returns (P, n) without the reward's noise: exp(R / beta) of a noisy R would reward luck.

    A noisy reward names its noise by a term `noise`; without one, the gold reward counts as its expectation.

    Raises: ValueError for a noisy task that has neither.
    """
    if not task.noisy:
        return episodes.returns
    if NOISE in episodes.terms:
        noise = np.nan_to_num(episodes.terms[NOISE])  # none was paid where the reward abstained or failed
        return np.asarray(episodes.returns - noise * task.gamma ** (episodes.lengths - 1))
    if np.isnan(episodes.gold).any():
        raise ValueError(
            f"task {task.name!r}: its reward is noisy; allowed is one with the expectation as gold"
        )
    return np.asarray(episodes.gold * task.gamma ** (episodes.lengths - 1))


def soft_maximum(returns: Floats, beta: float) -> Floats:
    """Returns beta log mean exp(R / beta) over the last axis (..., n), with its leading bias removed."""
    top = returns.max(-1, keepdims=True)
    tilted = np.exp((returns - top) / beta)
    return _soft_maximum(top[..., 0], tilted.mean(-1), np.square(tilted).mean(-1), returns.shape[-1], beta)


def _soft_maximum(top: Floats, mean: Floats, square: Floats, count: int, beta: float) -> Floats:
    """`soft_maximum` from the means of exp((R - top) / beta) and of its square."""
    return np.asarray(top + beta * (np.log(mean) + 0.5 * (square / np.square(mean) - 1.0) / count))


def _optimum_replicates(returns: Floats, weights: Floats, beta: float, seed: int) -> Floats:
    top = returns.max(-1, keepdims=True)
    tilted = np.exp((returns - top) / beta)
    base, mean, square = resampled_means(np.stack([returns, tilted, np.square(tilted)]), seed + 1).swapaxes(
        0, 1
    )
    best = _soft_maximum(top[:, 0], mean, square, returns.shape[1], beta)
    return np.stack([base @ weights, best @ weights], axis=1)


def optimality_of(objective: float, replicates: Floats, optimum: Optimum) -> Estimate:
    """(J - J_ref) / (J* - J_ref) with its interval.

    Args:
        objective: J, reward units. replicates: (R,) bootstrap replicates of it.
        optimum: J* and J_ref, estimated from as many replicates.
    """
    base, best = optimum.replicates.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (replicates - base) / (best - base)
    room = optimum.value.mean - optimum.reference.mean
    return interval((objective - optimum.reference.mean) / room, ratios)
