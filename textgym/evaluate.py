"""How good a policy is: reward, KL, the objective J and its optimality, each with a bootstrap interval."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.bootstrap import Estimate, Floats, interval, resampled_means, widen
from textgym.lm.reference import Reference
from textgym.references import make_reference
from textgym.rewards import TextGymWarning
from textgym.sampling import Episodes, play
from textgym.task import Task

__all__ = [
    "Estimate",
    "Evaluation",
    "Optimum",
    "distinct",
    "estimate_optimum",
    "evaluate",
    "expected_returns",
    "optimality_of",
    "soft_maximum",
]

_ENOUGH = 30


@dataclass(frozen=True)
class Optimum:
    """J* of a task, estimated from samples of its reference.

    Attributes:
        value: J*, reward units. reference: J of the reference itself.
        effective_samples: weighted harmonic mean over prompts of (sum w)^2 / sum w^2 with w = exp(R / beta):
            the number of samples a prompt that carry the estimate. Below 30 it is not to be trusted.
        beta: reward units per nat.
        returns: (P, n) sampled returns; weights: (P,) probabilities of the prompts.
        replicates: (R, 2) bootstrap replicates of the reference's J and of J*, drawn together.
    """

    value: Estimate
    reference: Estimate
    effective_samples: float
    beta: float
    returns: Floats
    weights: Floats
    replicates: Floats
    episodes: Episodes


@dataclass(frozen=True)
class Evaluation:
    """A policy on held-out prompts. Rewards in reward units, `kl` and `entropy` in nats per sequence,
    `length` in tokens.

    `objective` is J = E[R] - beta E[KL]; `optimality` is (J - J_ref) / (J* - J_ref). Entries are None where
    the task or the policy has nothing to compute them from. `distinct_n` is the share of different n-grams
    among all words. `reward_terms` are means over the completions that have the term. `failures` are
    completions that the reward failed on, by kind.
    """

    reward: Estimate
    gold: Estimate | None
    kl: Estimate | None
    objective: Estimate | None
    optimality: Estimate | None
    entropy: Estimate | None
    length: Estimate
    stop_rate: float
    distinct_1: float
    distinct_2: float
    reward_terms: dict[str, float]
    failures: dict[str, int]
    episodes: Episodes

    def summary(self) -> dict[str, Any]:
        """Everything but the episodes, as JSON values."""
        plain = {name: value for name, value in self.__dict__.items() if name != "episodes"}
        return {name: asdict(v) if isinstance(v, Estimate) else v for name, v in plain.items()}


def estimate_optimum(
    task: Task,
    reference: Reference | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 128,
    seed: int = 0,
) -> Optimum:
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
    return Optimum(
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

    Raises: ValueError for a noisy task whose gold reward, the reward's expectation, is missing.
    """
    if not task.noisy:
        return episodes.returns
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


def evaluate(
    policy: Any,
    task: Task,
    reference: Reference | None = None,
    optimum: Optimum | None = None,
    *,
    beta: float | None = None,
    split: str = "eval",
    per_prompt: int = 16,
    seed: int = 0,
    deterministic: bool = False,
) -> Evaluation:
    """Samples a policy on a split's prompts and scores it.

    Args:
        policy: an agent, or anything with `log_probs(observation)` or `act(observation)`.
        reference: pi_ref; None takes the task's.
        optimum: from `estimate_optimum` with the same split and beta; None estimates it (skipped at beta 0).
        per_prompt: completions per prompt.
    """
    beta = (task.beta if optimum is None else optimum.beta) if beta is None else beta
    if optimum is not None and optimum.beta != beta:
        raise ValueError(f"optimum: it was estimated at beta={optimum.beta}, allowed is beta={beta}")
    reference = make_reference(task) if reference is None else reference
    if optimum is None and beta > 0:
        optimum = estimate_optimum(task, reference, beta=beta, split=split, seed=seed)
    episodes = play(
        policy,
        task,
        split=split,
        per_prompt=per_prompt,
        seed=seed,
        reference=reference,
        deterministic=deterministic,
    )

    returns = expected_returns(task, episodes)
    objective = returns - beta * episodes.kl
    # Where the reference is already optimal (or was sampled once), there is nothing to be gained.
    room = optimum is not None and optimum.value.mean > optimum.reference.mean
    known = room and not np.isnan(objective).any()
    measures = {
        "reward": returns,
        "gold": episodes.gold,
        "kl": episodes.kl,
        "objective": objective,
        "entropy": episodes.entropy,
        "length": episodes.lengths.astype(np.float64),
    }
    columns = np.stack(list(measures.values()))
    means = columns.mean(-1) @ episodes.weights
    replicates = widen(means, resampled_means(columns, seed) @ episodes.weights, per_prompt)  # (R, K)
    estimates = {
        name: interval(float(means[column]), replicates[:, column])
        for column, name in enumerate(measures)
        if not np.isnan(means[column])
    }
    return Evaluation(
        reward=estimates["reward"],
        gold=estimates.get("gold"),
        kl=estimates.get("kl"),
        objective=estimates.get("objective"),
        optimality=optimality_of(estimates["objective"].mean, replicates[:, 3], optimum)
        if optimum and known
        else None,
        entropy=estimates.get("entropy"),
        length=estimates["length"],
        stop_rate=float(episodes.weights @ episodes.stopped.mean(1)),
        distinct_1=distinct(episodes.completions, 1),
        distinct_2=distinct(episodes.completions, 2),
        reward_terms={name: _mean_term(episodes.weights, v) for name, v in episodes.terms.items()},
        failures=episodes.failures,
        episodes=episodes,
    )


def _mean_term(weights: Floats, values: Floats) -> float:
    """The mean of a term (P, n) over the completions that have it; NaN where none has."""
    present = ~np.isnan(values)
    share = weights[:, None] * present
    return (
        float((share * np.where(present, values, 0.0)).sum() / share.sum()) if present.any() else float("nan")
    )


def distinct(completions: NDArray[np.object_], n: int) -> float:
    """Different word n-grams divided by all of them; 0 if there are none.

    Source: Li et al. (2016), arXiv:1510.03055, section 5.
    """
    words = [text.split() for text in completions.ravel()]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


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
