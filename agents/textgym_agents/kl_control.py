"""The coefficient beta of the KL penalty: fixed, or steered towards a target KL."""

from __future__ import annotations

from dataclasses import dataclass

_SMALLEST = 1e-8  # An adaptive beta that reached 0 could never rise again.


@dataclass
class KLController:
    """beta, and how it follows the observed KL.

    Args:
        beta: > 0 with a target, >= 0 without; reward units per nat.
        target: wanted KL in nats per sequence; None keeps beta fixed.
        horizon: episodes over which a full error of 0.2 moves beta by 20%.
    Raises: ValueError if a number is out of range.
    Source: Ziegler et al. (2019), arXiv:1909.08593, section 2.2.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if self.target is not None and not (self.target > 0 and self.beta > 0):
            raise ValueError(
                f"kl_target={self.target!r}, beta={self.beta!r}: both must be > 0 to be adaptive"
            )
        if self.beta < 0 or self.horizon <= 0:
            raise ValueError(f"beta={self.beta!r}, horizon={self.horizon!r}: beta must be >= 0, horizon > 0")

    def update(self, kl: float, episodes: int) -> None:
        """Raises beta when `kl` (nats per sequence, batch mean) is above the target, lowers it when below."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.beta = max(self.beta * max(1.0 + error * episodes / self.horizon, 0.1), _SMALLEST)
