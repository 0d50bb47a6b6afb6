"""Statistics over the runs of a suite: pure functions of scores, after Agarwal et al. (2021), arXiv:2108.13264."""

from textgym_benchmarks.statistics.comparisons import (
    Improvement,
    Profile,
    mean_of_runs,
    performance_profile,
    probability_of_improvement,
)
from textgym_benchmarks.statistics.resampling import (
    Aggregate,
    Strata,
    aggregates,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    percentile_interval,
    resample,
    share_above,
    strata_of,
    strata_of_matrix,
    task_means,
)

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
