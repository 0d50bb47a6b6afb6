"""Numbers out of results: None wherever a result does not hold one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from textgym.rewards.values import is_finite
from textgym_benchmarks.results import Result
from textgym_benchmarks.statistics.runs import mean_of_runs

MEASURES = ("optimality", "reward", "gold", "kl", "objective")


@dataclass(frozen=True)
class Spread:
    """A mean over the runs of one agent on one problem.

    Attributes:
        mean: over the runs that have the measure; None where none has.
        low, high: ends of the 95% interval, None where it is not known.
        runs: that have the measure. of_runs: that there should be.
        interval: "runs": bootstrap over two runs or more (of three, it is their range, and holds the true mean about
            three times in four); "run": of a single run, from the completions that it was evaluated on; "none".
    """

    mean: float | None
    low: float | None
    high: float | None
    runs: int
    of_runs: int
    interval: str


def number(value: Any) -> float | None:
    """A finite float, or None for null, NaN, an infinity or what is no number."""
    return float(value) if is_finite(value) else None


def at(data: Any, *path: str) -> Any:
    """The entry of nested mappings, None where one of them has no such key."""
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def final(result: Result, measure: str, when: str = "after") -> float | None:
    """A measure before or after learning, its mean where it has an interval."""
    found = at(result.measures, when, measure)
    return number(found.get("mean")) if isinstance(found, Mapping) else number(found)


def finals(results: Iterable[Result], measure: str) -> list[float]:
    """The measure after learning of every result that has it."""
    return [value for result in results if (value := final(result, measure)) is not None]


def timing(result: Result, name: str) -> float | None:
    """An entry of the result's timing."""
    return number(at(result.timing, name))


def learning_time(result: Result, name: str) -> float | None:
    """What learning took, evaluations and the estimate of J* apart.

    Args:
        name: "seconds" or "cpu_seconds".
    Returns: that of the whole run where its timing does not tell them apart; None where it tells neither.
    """
    learning = timing(result, f"learning_{name}")
    return timing(result, name) if learning is None else learning


def average(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def spread(results: Sequence[Result], measure: str, generator: np.random.Generator) -> Spread:
    """Mean of a measure after learning over runs, with the interval that they allow."""
    values = finals(results, measure)
    if not values:
        return Spread(None, None, None, 0, len(results), "none")
    if len(values) > 1:
        mean, low, high = (float(end[0]) for end in mean_of_runs(np.array(values)[:, None], generator))
        return Spread(mean, low, high, len(values), len(results), "runs")
    (only,) = (result for result in results if final(result, measure) is not None)
    low_end, high_end = (number(at(only.measures, "after", measure, end)) for end in ("low", "high"))
    known = low_end is not None and high_end is not None
    return Spread(values[0], low_end, high_end, 1, len(results), "run" if known else "none")


def generator_of(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each part of a summary: no number depends on what else is summarised."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])
