"""How good a policy is: reward, KL, the objective J and its optimality, each with a bootstrap interval."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.lm.reference import Reference
from textgym.references import make_reference
from textgym.rewards import TextGymWarning
from textgym.sampling import Episodes, play
from textgym.task import Task

_RESAMPLES = 1000
_ENOUGH = 30
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval, from resampling completions within every prompt."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Optimum:
    """J* of a task, estimated from samples of its reference.

    Attributes:
        value: J*, reward units. reference: J of the reference itself.
        effective_samples: weighted harmonic mean over prompts of (sum w)^2 / sum w^2 with w = exp(R / beta):
            the number of samples a prompt that carry the estimate. Below 30 it is not to be trusted.
        beta: reward units per nat.
        returns: (P, n) sampled returns; weights: (P,) probabilities of the prompts.
    """

    value: Estimate
    reference: Estimate
    effective_samples: float
    beta: float
    returns: Floats
    weights: Floats
    episodes: Episodes


@dataclass(frozen=True)
class Evaluation:
    """A policy on held-out prompts. Rewards in reward units, `kl` and `entropy` in nats per sequence,
    `length` in tokens.

    `objective` is J = E[R] - beta E[KL]; `optimality` is (J - J_ref) / (J* - J_ref). Entries are None where
    the task or the policy has nothing to compute them from. `distinct_n` is the share of different n-grams
    among all words.
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
    return Optimum(
        value=_interval(returns, weights, lambda part: soft_maximum(part, beta), seed),
        reference=_interval(returns, weights, lambda part: part.mean(-1), seed),
        effective_samples=ess,
        beta=beta,
        returns=returns,
        weights=weights,
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
    mean = tilted.mean(-1)
    relative_variance = tilted.var(-1) / np.square(mean)
    return np.asarray(top[..., 0] + beta * (np.log(mean) + 0.5 * relative_variance / returns.shape[-1]))


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

    def estimate(values: NDArray[Any]) -> Estimate | None:
        values = np.asarray(values, dtype=np.float64)
        if np.isnan(values).any():
            return None
        return _interval(values, episodes.weights, lambda part: part.mean(-1), seed)

    returns = expected_returns(task, episodes)
    objective = returns - beta * episodes.kl
    # Where the reference is already optimal (or was sampled once), there is nothing to be gained.
    room = optimum is not None and optimum.value.mean > optimum.reference.mean
    known = room and not np.isnan(objective).any()
    reward, length = estimate(returns), estimate(episodes.lengths)
    assert reward is not None
    assert length is not None
    return Evaluation(
        reward=reward,
        gold=estimate(episodes.gold),
        kl=estimate(episodes.kl),
        objective=estimate(objective),
        optimality=_optimality(objective, episodes.weights, optimum, seed) if optimum and known else None,
        entropy=estimate(episodes.entropy),
        length=length,
        stop_rate=float(episodes.weights @ episodes.stopped.mean(1)),
        distinct_1=distinct(episodes.completions, 1),
        distinct_2=distinct(episodes.completions, 2),
        reward_terms={name: float(episodes.weights @ v.mean(1)) for name, v in episodes.terms.items()},
        episodes=episodes,
    )


def distinct(completions: NDArray[np.object_], n: int) -> float:
    """Different word n-grams divided by all of them; 0 if there are none.

    Source: Li et al. (2016), arXiv:1510.03055, section 5.
    """
    words = [text.split() for text in completions.ravel()]
    grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _optimality(objective: Floats, weights: Floats, optimum: Optimum, seed: int) -> Estimate:
    beta = optimum.beta
    own = _replicates(objective, weights, lambda part: part.mean(-1), seed)
    best = _replicates(optimum.returns, weights, lambda part: soft_maximum(part, beta), seed + 1)
    base = _replicates(optimum.returns, weights, lambda part: part.mean(-1), seed + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (own - base) / (best - base)
    mean = (float(weights @ objective.mean(1)) - optimum.reference.mean) / (
        optimum.value.mean - optimum.reference.mean
    )
    return Estimate(mean, *(float(x) for x in np.quantile(ratios, [0.025, 0.975])))


def _interval(values: Floats, weights: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Estimate:
    mean = float(weights @ statistic(values))
    low, high = np.quantile(_replicates(values, weights, statistic, seed), [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def _replicates(values: Floats, weights: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Floats:
    """Bootstrap replicates (R,) of sum_x rho(x) statistic(values of x), resampling within every prompt.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 8 (strata).
    """
    generator = np.random.default_rng([seed, 4])
    prompts, count = values.shape
    at_once = max(1, 2_000_000 // values.size)
    result = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, at_once):
        size = min(at_once, _RESAMPLES - start)
        index = generator.integers(count, size=(size, prompts, count))
        drawn = np.take_along_axis(np.broadcast_to(values, (size, prompts, count)), index, axis=2)
        result[start : start + size] = statistic(drawn) @ weights
    return result
