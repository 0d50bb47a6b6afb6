"""Evaluations as flat rows of numbers, as they are logged, and their completions as rows of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textgym.evaluate import Estimate, Evaluation
from textgym.optima import Optimum
from textgym_agents.protocol import Metrics

ESTIMATES = ("reward", "gold", "kl", "objective", "optimality", "entropy", "length")
NUMBERS = ("stop_rate", "distinct_1", "distinct_2")


def evaluation_row(evaluation: Evaluation) -> Metrics:
    """`eval/NAME` for every measure, with `_low` and `_high` for the ends of its 95% interval unless it is exact.

    `eval/exact` says whether reward, KL and J are expectations by enumeration. `eval/failures/KIND` counts the
    completions that the reward failed on, `eval/answer_tokens` the tokens of those that the policy had scored for an
    answer (a mean).
    """
    row: Metrics = {}
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(evaluation, name)
        if estimate is not None:
            row[f"eval/{name}"] = estimate.mean
            if not estimate.exact:
                row[f"eval/{name}_low"], row[f"eval/{name}_high"] = estimate.low, estimate.high
    row |= {f"eval/{name}": getattr(evaluation, name) for name in NUMBERS}
    row |= {"eval/exact": evaluation.exact, "eval/answer_tokens": evaluation.episodes.answer_tokens}
    row |= {f"eval/terms/{name}": value for name, value in evaluation.reward_terms.items()}
    return row | {f"eval/failures/{kind}": count for kind, count in evaluation.failures.items()}


def optimum_summary(optimum: Optimum) -> dict[str, Any]:
    """J* and the reference's J as JSON values, and how they were found.

    `value` is None, and `unknown` the reason, where J* is not known; `policies` counts those that were sampled for it,
    the reference among them.
    """
    estimates = {
        name: None if estimate is None else asdict(estimate)
        for name, estimate in (("value", optimum.value), ("reference", optimum.reference))
    }
    numbers = {"effective_samples": optimum.effective_samples, "beta": optimum.beta}
    policies = None if optimum.samples is None else optimum.samples.policies
    known = {"exact": optimum.exact, "committed": optimum.committed, "policies": policies}
    return estimates | numbers | known | {"unknown": optimum.unknown}


def spread(weights: NDArray[np.float64], count: int) -> list[int]:
    """Up to `count` different prompts, at even distances over the distribution that they are drawn from."""
    places = (np.arange(count) + 0.75) / max(count, 1)
    chosen = np.searchsorted(np.cumsum(weights), places * weights.sum(), side="right")
    return sorted({int(index) for index in np.minimum(chosen, len(weights) - 1)})


def sample_rows(evaluation: Evaluation, count: int) -> Iterator[dict[str, Any]]:
    """The first completion of some prompts: prompt, completion, reward, terms, and gold where there is one."""
    episodes = evaluation.episodes
    for index in spread(episodes.weights, count):
        row = {
            "prompt": episodes.prompts[index],
            "completion": str(episodes.completions[index, 0]),
            "reward": float(episodes.returns[index, 0]),
            "terms": {name: float(values[index, 0]) for name, values in episodes.terms.items()},
        }
        if not np.isnan(episodes.gold[index, 0]):
            row["gold"] = float(episodes.gold[index, 0])
        yield row
