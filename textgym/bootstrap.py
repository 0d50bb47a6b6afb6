"""The bootstrap within strata: means of what was sampled, resampled within every prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval, from resampling completions within every prompt; without width where it is exact."""

    mean: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Whether the interval has no width."""
        return self.low == self.mean == self.high

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.exact else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def widen(estimates: Floats, replicates: Floats, count: int) -> Floats:
    """Replicates (R, K) whose deviations are centred on the estimates (K,) and have their unbiased size.

    Resampling n completions shrinks a variance by (n - 1) / n, and a statistic with a bias has it twice in a replicate.
    With one completion nothing is known of the spread: the result is NaN.
    """
    if count < 2:
        return np.full_like(replicates, np.nan)
    deviations = replicates - replicates.mean(0)
    return np.asarray(estimates + deviations * np.sqrt(count / (count - 1)))


def interval(mean: float, replicates: Floats) -> Estimate:
    """The percentile interval of bootstrap replicates (R,) around an estimate."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))


def resampled_means(columns: Floats, seed: int) -> Floats:
    """Means of every column over completions drawn with replacement within every prompt.

    Args:
        columns: (K, P, n): K measures of n completions of P prompts; drawn together.
    Returns: (R, K, P) with R = `RESAMPLES`.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 8.
    """
    generator = np.random.default_rng([seed, 4])
    measures, prompts, count = columns.shape
    result = np.empty((RESAMPLES, measures, prompts))
    rows = np.arange(RESAMPLES)[:, None] * count
    for prompt in range(prompts):
        drawn = generator.integers(count, size=(RESAMPLES, count), dtype=np.int32)
        # How often each completion was drawn: then every mean is one matrix product.
        times = np.bincount((rows + drawn).ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
        result[:, :, prompt] = times @ columns[:, prompt].T / count
    return result
