"""The settings of tabular agents: validated, saved as JSON, shown as command-line flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textgym_agents.config import at_least_one, not_negative, only_with, positive, require, share

Schedule = Literal["constant", "linear", "exponential"]
StepSize = Literal["constant", "harmonic"]


@dataclass(frozen=True)
class TabularConfig:
    """Settings shared by all tabular agents.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 64
    """Episodes per iteration (sub-environments); the policy is fixed during an iteration."""
    backup: Literal["soft", "hard"] = "soft"
    """soft: values of J; the policy is the reference times exp(Q / beta). hard: values of the return only; the policy
    is greedy."""
    exploration: Literal["boltzmann", "epsilon-greedy"] = "boltzmann"
    """Behaviour policy. boltzmann: the reference times exp(Q / temperature). epsilon-greedy: the agent's policy, but
    with probability epsilon a uniformly drawn token."""
    temperature: float | None = None
    """Initial temperature of Boltzmann exploration, reward units; None: beta, where soft agents follow their policy."""
    temperature_end: float | None = None
    """Temperature at the end of the schedule; None: the initial one."""
    epsilon: float = 0.1
    """Initial epsilon of epsilon-greedy exploration."""
    epsilon_end: float | None = None
    """Epsilon at the end of the schedule; None: the initial one."""
    schedule: Schedule = "linear"
    """Schedule of epsilon or the temperature."""
    schedule_share: float = 1.0
    """Share of the budget after which the schedule ends."""
    step_size: StepSize = "constant"
    """constant: the learning rate. harmonic: one over the number of updates of the action."""
    learning_rate: float = 0.5
    """Constant step size; with 1, values are exact after one visit if rewards have no noise."""
    initial: float | None = None
    """Initial value of untried actions, reward units; high values make the agent try them soon. None: as good as the
    tried actions of the same state; a greedy policy (backup=hard) takes them only by exploration."""
    beta: float | None = None
    """KL coefficient, reward units per nat; None: the task's beta."""
    max_states: int | None = None
    """Maximum number of states to store; None: what fits into the memory. In further states the reference acts."""
    memory: int = 1024
    """Maximum memory for values and counts, MiB."""
    seed: int = 0
    """Seed of prompts and sampling."""

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
