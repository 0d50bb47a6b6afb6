"""Rewards that pay at every token, and rewards blurred by noise."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from textgym.checks import shown
from textgym.rewards.base import TermReward, Values
from textgym.rewards.calling import is_finite
from textgym.rewards.compose import Inner
from textgym.rewards.registry import RewardSpec


class _EveryPrefix(TermReward):
    """Another reward, asked after every token with the text so far."""

    def __init__(self, reward: RewardSpec, outer: str) -> None:
        self.inner = Inner(reward, outer)
        self.name = self.inner.name
        self.term_names = self.inner.term_names
        self.maximum = getattr(self.inner.reward, "maximum", None)

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Values]:
        """Return the other reward's terms."""
        return self.inner.terms(prompts, completions, columns)

    def state_dict(self) -> Any:
        """Return the other reward's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        self.inner.load_state_dict(state)


class Dense(_EveryPrefix):
    """Pays another reward of the text so far after every token."""

    pay: Literal["every"] = "every"

    def __init__(self, reward: RewardSpec) -> None:
        super().__init__(reward, "dense")


class Shaped(_EveryPrefix):
    """Pays differences of another reward as the text grows; they add up to that reward of the finished text.

    See `potential_difference` for what each token earns.

    Args:
        reward: a reward, or the spec of one; its value of a prefix is the potential of that state.
        gamma: the task's discount, in [0, 1].
    """

    pay: Literal["difference"] = "difference"

    def __init__(self, reward: RewardSpec, gamma: float = 1.0) -> None:
        if (
            isinstance(gamma, bool)
            or not isinstance(gamma, int | float | np.floating)
            or not 0.0 <= gamma <= 1.0
        ):
            raise ValueError(f"gamma={gamma!r:.80}: a number from 0 to 1 is allowed")
        super().__init__(reward, "shaped")
        self.gamma = float(gamma)


def potential_difference(before: Any, after: Any, ended: Any, gamma: float = 1.0) -> Any:
    """Return what a token earns that takes the potential from `before` to `after`.

    That is gamma * after - before; at the end after - before: the reward of the finished text plus the
    shaping term gamma * 0 - before, a terminal state having potential 0. With potential 0 at the start the
    discounted sum over an episode of T tokens is gamma**(T - 1) times the reward of the finished text, just
    what that reward pays at the end: shaping changes no policy's value.

    Args:
        before: potential of the state the token was chosen in, reward units; float or float (B,).
        after: potential of the state it leads to.
        ended: whether the episode ended with this token; bool or bool (B,).
        gamma: the discount, in [0, 1].

    Source: Ng, Harada and Russell (1999), theorem 1.
    """
    if isinstance(ended, bool | np.bool_):
        return (after if ended else gamma * after) - before
    return np.where(ended, after, gamma * after) - before


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
