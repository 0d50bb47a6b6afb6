"""V(s) of an agent: whether it has one, what it counts, and the same on the scale of J."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Counts = Literal["objective", "later", "return"]
_WORDS: dict[Counts, str] = {
    "objective": "V counts the rewards to come, less beta times the KL to come",
    "later": (
        "the agent's V leaves the KL of its own state to the loss; "
        "shown is V - beta KL(s), which counts that KL too, as J does"
    ),
    "return": "V counts the rewards to come and no KL; so does the advantage made from it",
}


@dataclass(frozen=True)
class Critic:
    """Asks an agent for V(s).

    Attributes:
        ask: the agent's `values`; None where it has learned none.
        counts: "objective": rewards and KL to come; "later": the KL of s itself is left out; "return": no KL at all.
    """

    ask: Callable[[Mapping[str, NDArray[Any]]], Any] | None
    counts: Counts = "objective"

    @property
    def meaning(self) -> str:
        """What is shown as V, in words."""
        return "the agent has no learned values" if self.ask is None else _WORDS[self.counts]

    def value(self, observation: Mapping[str, NDArray[Any]], kl: float | None, beta: float) -> float | None:
        """V of one state (a batch of one observation), reward units at time 0.

        Args:
            kl: KL(pi || ref) there, nats. beta: reward units per nat.
        """
        if self.ask is None:
            return None
        value = float(np.asarray(self.ask(observation), dtype=np.float64)[0])
        return value - beta * (kl or 0.0) if self.counts == "later" else value


def critic_of(agent: Any) -> Critic:
    """The critic of an agent. A class of the user's that has `values` is taken to give V of J.

    `critic` says of an agent of this package that its values are learned, `plans` that they come from search.
    """
    ask = getattr(agent, "values", None)
    if not callable(ask) or not (getattr(agent, "critic", True) or getattr(agent, "plans", False)):
        return Critic(None)
    config = getattr(agent, "config", None)
    if getattr(config, "backup", "soft") != "soft":
        return Critic(ask, "return")
    kl = getattr(config, "kl", None)
    by_kind: dict[Any, Counts] = {"exact": "later", "k2": "later", "k3": "return"}
    return Critic(ask, by_kind.get(kl, "objective"))
