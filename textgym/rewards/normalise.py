"""A reward brought to mean 0 and standard deviation 1 by running statistics."""

from __future__ import annotations

import math
from typing import Any

from textgym.messages import check_flag
from textgym.rewards.base import NamedReward, Values
from textgym.rewards.compose import Inner
from textgym.rewards.registry import RewardSpec


class RunningNorm(NamedReward):
    """Another reward, less its running mean and divided by its running standard deviation.

    The statistics are those of all finite values so far, the batch at hand included, so such a reward is no
    fixed function of the text. None abstains and is not counted; NaN and infinities pass, for they are
    failures.

    Args:
        reward: a reward, or the spec of one.
        center: subtract the mean; False only scales.
        frozen: use the statistics without adding to them (evaluation).

    Attributes:
        count: how many values were seen.
        mean: their mean, reward units.
        squares: the sum of their squared differences from the mean.

    Source: Welford (1962) as merged by Chan, Golub and LeVeque (1979), eq. 2.1.
    """

    def __init__(self, reward: RewardSpec, center: bool = True, frozen: bool = False) -> None:
        check_flag("center", center)
        check_flag("frozen", frozen)
        self.inner = Inner(reward, "running_norm")
        self.name = self.inner.name
        self.center = center
        self.frozen = frozen
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation of the values so far; 1 while they do not differ."""
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        return deviation if deviation > 0.0 else 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Values:
        """Return the normalised reward of every completion."""
        values = self.inner.values(prompts, completions, columns)
        if not self.frozen:
            self._add([value for value in values if value is not None and math.isfinite(value)])
        shift, scale = (self.mean if self.center else 0.0), self.std
        return [None if value is None else (value - shift) / scale for value in values]

    def _add(self, values: list[float]) -> None:
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count = self.count + len(values)
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics, as JSON values."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
            "frozen": self.frozen,
            "inner": self.inner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.squares = float(state["squares"])
        self.frozen = bool(state["frozen"])
        self.inner.load_state_dict(state["inner"])
