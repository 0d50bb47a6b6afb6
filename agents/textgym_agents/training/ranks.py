"""The processes of one training, as its loop sees them: one leads, which evaluates, prints and writes; others follow.

Imports no torch: agents that need none are trained here as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from textgym_agents.protocol import Agent

if TYPE_CHECKING:
    from textgym_agents.lm.devices import Devices


def world() -> int:
    """Return how many processes a launcher such as torchrun has started together; 1 where no launcher says so."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Return whether this process is the first, or the only one."""
    return world() == 1 or os.environ.get("RANK", "0") == "0"


def share(name: str, count: int, unit: int = 1) -> int:
    """Return how many of `count` rows each process has.

    Args:
        name: of the setting, for the message. unit: consecutive rows that stay together.
    Raises: ValueError unless all processes have as many whole units.
    """
    if count % (world() * unit):
        whole = f", in whole groups of {unit}" if unit > 1 else ""
        raise ValueError(f"{name}={count!r}: allowed is a multiple of the {world()} processes{whole}")
    return count // world()


def refuse_ranks(what: str) -> None:
    """Raise ValueError in one of several processes, for work that only one can do."""
    if world() > 1:
        raise ValueError(
            f"{what} runs in one process, and WORLD_SIZE={world()} says that there are several; allowed are the "
            "agents on a language model but alphazero and vine-ppo, sft and reward-model; start it without a launcher"
        )


class Ranks:
    """What the loop needs of the agent's devices. Args: agent: one that cannot share its work is refused in a group."""

    def __init__(self, agent: Agent) -> None:
        self._devices: Devices | None = getattr(agent, "devices", None)
        if self._devices is None:
            refuse_ranks(f"agent {agent.name!r}")

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, prints and writes files."""
        return self._devices is None or self._devices.leads

    def any(self, flag: bool) -> bool:
        """Return whether a flag is up in any process."""
        return flag if self._devices is None else self._devices.any(flag)

    def sum(self, number: float) -> float:
        """Return the sum of a number over the processes."""
        return number if self._devices is None else self._devices.sums([number])[0]

    def counts(self, counts: Mapping[str, float]) -> Mapping[str, float]:
        """Return the sums of some counts over the processes, which need not have the same names."""
        if self._devices is None or self._devices.world == 1:
            return dict(counts)
        found: dict[str, float] = {}
        for part in self._devices.gather_json(dict(counts)):
            found.update({name: found.get(name, 0) + count for name, count in part.items()})
        return found

    def part(self) -> None:
        """Wait for the other processes: until then each may need the others to answer."""
        self.sum(0.0)
