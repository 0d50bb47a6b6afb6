"""Statistics over the runs of a suite: pure functions of scores, after Agarwal et al. (2021), arXiv:2108.13264."""

from textgym_benchmarks.statistics.aggregates import (
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    share_above,
    task_means,
)
from textgym_benchmarks.statistics.bootstrap import Aggregate, aggregates, percentile_interval, resample
from textgym_benchmarks.statistics.improvement import Improvement, probability_of_improvement
from textgym_benchmarks.statistics.profiles import Profile, performance_profile
from textgym_benchmarks.statistics.runs import mean_of_runs
from textgym_benchmarks.statistics.strata import Strata, strata_of, strata_of_matrix

__all__ = [
    "Aggregate",
    "Improvement",
    "Profile",
    "Strata",
    "aggregates",
    "interquartile_mean",
    "mean",
    "mean_of_runs",
    "median",
    "optimality_gap",
    "percentile_interval",
    "performance_profile",
    "probability_of_improvement",
    "resample",
    "share_above",
    "strata_of",
    "strata_of_matrix",
    "task_means",
]
