"""An annotator who prefers what is better, and errs the more often the closer two completions are.

Source: Bradley and Terry, Biometrika 39 (1952), for two completions; Luce, Individual Choice Behavior (1959), and
Plackett, Applied Statistics 24 (1975), for orders of K; as annotators of K answers to a prompt: Ouyang et al.,
arXiv:2203.02155, section 3.5. Sampling by Gumbel noise: Yellott, Journal of Mathematical Psychology 15 (1977).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def annotate(scores: ArrayLike, temperature: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Orders of completions, drawn from the Plackett-Luce model with logits score / T.

    The best is drawn from softmax(scores / T), the next from the softmax over the rest, and so on. Of two
    completions a is put before b with probability sigmoid((score_a - score_b) / T).

    Args:
        scores: float64 (N, K), reward units, finite.
        temperature: T, reward units, finite and >= 0. At 0 there are no mistakes, and a fair coin breaks ties.
        generator: draws the same count of numbers at every temperature.
    Returns: int64 (N, K), places in `scores`, best first.
    Raises: ValueError for scores of another shape or not finite, or a temperature that is not allowed.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"scores: {array.shape} array, allowed are finite numbers of shape (N, K)")
    check_temperature(temperature)
    # The order of the logits plus Gumbel noise has the model's distribution. Multiplied by T it is the same order,
    # and nothing overflows where T is small.
    noisy = (
        array
        - array.max(1, keepdims=True, initial=-np.inf)
        + temperature * generator.gumbel(size=array.shape)
    )
    return np.lexsort((generator.random(array.shape), -noisy), axis=1).astype(np.int64)


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raises: ValueError, which calls it by `name`, if it is not a finite number >= 0."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"{name}={temperature!r}: allowed is a finite number >= 0 (reward units)")
