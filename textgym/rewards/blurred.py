"""Another reward, blurred by noise that every episode draws from a seed of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from textgym.messages import shown
from textgym.rewards.base import TermReward, Values
from textgym.rewards.compose import Inner
from textgym.rewards.registry import RewardSpec
from textgym.rewards.values import is_finite

NOISE = "noise"
"""The term that holds the noise; evaluation and J* leave it out."""


class Blurred(TermReward):
    """Pays another reward plus normal noise.

    Its terms are those of the other reward and `noise`. A task with it is noisy: its episodes have seeds, and its
    optimum is that of the mean, `expected`.

    Args:
        reward: a reward, or the spec of one; where it abstains, so does this.
        deviation: standard deviation of the noise, reward units, finite and >= 0.

    Raises: ValueError for another deviation, or a reward that has a term `noise` already.
    """

    name = "blurred"
    noisy = True

    def __init__(self, reward: RewardSpec, deviation: float) -> None:
        if not is_finite(deviation) or deviation < 0:
            raise ValueError(f"deviation={shown(deviation)}: a finite number >= 0 is allowed (reward units)")
        self._inner = Inner(reward, self.name)
        if NOISE in self._inner.term_names:
            raise ValueError(
                f"reward {self._inner.name!r} has a term {NOISE!r} already; allowed is one without"
            )
        self.deviation = float(deviation)
        self.term_names = (*self._inner.term_names, NOISE)
        self.maximum = getattr(self._inner.reward, "maximum", None)  # of the mean, which J* is of

    @property
    def expected(self) -> Any:
        """The reward without the noise."""
        return self._inner.reward

    @property
    def normal_noise(self) -> float:
        """The standard deviation of the noise that is added to `expected`, reward units."""
        return self.deviation

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Return the other reward's terms and the noise, None where all of those abstain.

        Raises: ValueError without the column `episode_seeds`, which noisy tasks have.
        """
        if "episode_seeds" not in columns:
            raise ValueError("episode_seeds: the column is missing; allowed is a noisy task, which has it")
        seeds = columns.pop("episode_seeds")
        terms = self._inner.terms(prompts, completions, columns)
        paid = [any(value is not None for value in values) for values in zip(*terms.values(), strict=True)]
        noise = [float(np.random.default_rng(seed).normal(0.0, self.deviation)) for seed in seeds]
        return terms | {NOISE: [blur if there else None for blur, there in zip(noise, paid, strict=True)]}

    def state_dict(self) -> Any:
        """Return the other reward's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        self._inner.load_state_dict(state)
