"""The settings of tabular agents: validated, saved as JSON, shown as command-line flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textgym_agents.config import at_least_one, not_negative, only_with, positive, require, share

Schedule = Literal["constant", "linear", "exponential"]
StepSize = Literal["constant", "harmonic"]


@dataclass(frozen=True)
class TabularConfig:
    """Settings that every tabular agent has.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 64
    """Episodes per iteration (sub-environments); the policy is fixed while they are played."""
    backup: Literal["soft", "hard"] = "soft"
    """soft: values of J, the policy is the reference tilted by exp(Q / beta). hard: values of the return alone, the
    policy is greedy."""
    exploration: Literal["boltzmann", "epsilon-greedy"] = "boltzmann"
    """boltzmann: acts by the reference tilted by exp(Q / temperature). epsilon-greedy: acts by its policy, and with
    probability epsilon by a token drawn uniformly."""
    temperature: float | None = None
    """Of Boltzmann exploration at the start, reward units; None takes beta: there, soft agents act by their policy."""
    temperature_end: float | None = None
    """Temperature at the end of the schedule; None keeps the one of the start."""
    epsilon: float = 0.1
    """Of epsilon-greedy exploration at the start."""
    epsilon_end: float | None = None
    """Epsilon at the end of the schedule; None keeps the one of the start."""
    schedule: Schedule = "linear"
    """Course of epsilon or the temperature from start to end."""
    schedule_share: float = 1.0
    """Share of the budget after which the end is reached."""
    step_size: StepSize = "constant"
    """constant: the learning rate. harmonic: one over the number of times that this action was updated."""
    learning_rate: float = 0.5
    """Step size where it is constant; with 1, values are exact after one visit where rewards have no noise."""
    initial: float | None = None
    """Value of actions that were never tried, reward units; optimistic ones are tried before long. None: as good as
    those that were tried in the same state, and left to exploration by a greedy policy (backup=hard)."""
    beta: float | None = None
    """KL coefficient, reward units per nat; None takes the task's."""
    max_states: int | None = None
    """Most states to remember; None: as many as fit into the memory. Later ones are played by the reference."""
    memory: int = 1024
    """Most memory for values and counts, MiB."""
    seed: int = 0
    """Seeds prompts and sampling."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "memory")
        share(self, "epsilon", "schedule_share", "epsilon_end")
        positive(self, "temperature", "temperature_end")
        not_negative(self, "beta")
        last = self.epsilon_end
        if self.schedule == "exponential" and last is not None:
            allowed = "a number > 0 with schedule='exponential'"
            require("epsilon", self.epsilon, self.epsilon > 0, allowed)
            require("epsilon_end", last, last > 0, allowed)
        rate = self.learning_rate
        require("learning_rate", rate, 0 < rate <= 1, "a number in (0, 1]")
        most = self.max_states
        require("max_states", most, most is None or most >= 1, "None or an integer >= 1")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")
        greedy, ends = self.exploration == "epsilon-greedy", (self.epsilon_end, self.temperature_end)
        for name in ("epsilon", "epsilon_end"):
            only_with(self, name, greedy, "exploration='epsilon-greedy'")
        for name in ("temperature", "temperature_end"):
            only_with(self, name, not greedy, "exploration='boltzmann'")
        for name in ("epsilon_end", "temperature_end"):
            only_with(self, name, self.schedule != "constant", "schedule='linear' or 'exponential'")
        moves = ends != (None, None)
        only_with(self, "schedule", moves or self.schedule == "constant", "epsilon_end or temperature_end")
        only_with(self, "schedule_share", moves, "epsilon_end or temperature_end")
        only_with(self, "learning_rate", self.step_size == "constant", "step_size='constant'")
