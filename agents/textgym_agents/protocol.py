"""What TextGym asks of an agent: five methods over batched observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Observation = Mapping[str, NDArray[Any]]
Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]


@runtime_checkable
class Agent(Protocol):
    """A policy that may learn. Any class with these methods takes part in evaluation, benchmark and command line."""

    def learn(self, env: Any, episodes: int, callback: Callback | None = None) -> None:
        """Learns from `episodes` episodes of `env`.

        Args:
            env: a vector environment (`gym.make_vec`) or what the agent asks for.
            episodes: the budget; the unit that all agents are compared in.
            callback: called with the metrics of every iteration; returning True stops learning.
        """

    def act(self, observation: Observation, deterministic: bool = False) -> NDArray[np.int64]:
        """Token ids (B,) for a batch of observations; the likeliest ones if `deterministic`."""

    def log_probs(self, observation: Observation) -> NDArray[np.floating[Any]] | None:
        """Next-token log-probabilities (B, V) in nats, or None for an agent that has none."""

    def save(self, path: str | Path) -> None:
        """Writes the agent to a folder, atomically."""

    @classmethod
    def load(cls, path: str | Path, env: Any) -> Agent:
        """Reads what `save` wrote; `env` supplies the task."""
