"""How good a policy is: reward, KL, the objective J and its optimality, each with a bootstrap interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.bootstrap import Estimate, Floats, interval, resampled_means, widen
from textgym.lm.reference import Reference
from textgym.optima import (
    Optimum,
    SampledOptimum,
    estimate_optimum,
    exact_optimum,
    expected_returns,
    optimality_of,
    soft_maximum,
)
from textgym.references import make_reference
from textgym.sampling import Episodes, play
from textgym.task import Task

__all__ = [
    "Estimate",
    "Evaluation",
    "Optimum",
    "SampledOptimum",
    "distinct",
    "estimate_optimum",
    "evaluate",
    "exact_optimum",
    "expected_returns",
    "optimality_of",
    "soft_maximum",
]


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
        optimum: from `estimate_optimum` or `exact_optimum` with the same split and beta; None estimates it
            (skipped at beta 0).
        per_prompt: completions per prompt.
    """
    beta = (task.beta if optimum is None else optimum.beta) if beta is None else beta
    if optimum is not None and optimum.beta != beta:
        raise ValueError(f"optimum: it is of beta={optimum.beta}, allowed is beta={beta}")
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
