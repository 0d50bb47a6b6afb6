"""The settings of tree search: validated, saved as JSON, shown as command-line flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textgym_agents.config import at_least_one, not_negative, only_with, positive, require, share

Backup = Literal["soft", "mean", "max"]
Leaf = Literal["rollout", "values", "exact"]
Prior = Literal["reference", "uniform", "guide"]


@dataclass(frozen=True)
class MCTSConfig:
    """Settings of Monte-Carlo tree search.

    Raises: ValueError that names the setting, its value and what is allowed.
    """

    batch: int = 16
    """Episodes per iteration (sub-environments) while learning."""
    simulations: int = 100
    """Simulations from every state before its token is chosen; what is in the tree already is kept."""
    backup: Backup = "soft"
    """soft: values of J; the policy is the reference tilted by exp(Q / beta). mean: the mean of what simulations
    returned; the policy is that of the visit counts. max: the greatest value found; the policy takes what leads
    there."""
    prior: Prior = "reference"
    """The probabilities that guide the search: the reference's, equal ones for all legal tokens, or the guide's."""
    leaf: Leaf = "rollout"
    """The value of a new state: the return of one completion (of the reference with soft backups, else of the prior),
    the guide's value, or the exact one (of tasks that can be solved). The guide's value is V of J with soft backups;
    with "mean" and "max" it is what the guide was taught, for most agents the return less beta KL to come."""
    guide: str | None = None
    """Folder of a saved agent that supplies the prior, the values of leaves, or both: whichever `prior="guide"` and
    `leaf="values"` ask for."""
    candidates: int = 64
    """Most tokens considered in a state: the likeliest ones of the prior."""
    temperature: float = 1.0
    """Of the policy by visit counts, with backup="mean": N^(1 / temperature); 0 takes the most visited token."""
    c_init: float = 1.25
    """Exploration constant of PUCT."""
    c_base: float = 19652.0
    """Visits after which exploration grows, by PUCT's logarithm."""
    root_noise: float = 0.0
    """Share of random numbers in the prior of the state that is searched from: Dirichlet with 10 / A, A candidates."""
    beta: float | None = None
    """KL coefficient of soft backups, reward units per nat; None takes the task's."""
    memory: int = 1024
    """Most memory for the tree, MiB; when it is full, it is emptied."""
    seed: int = 0
    """Seeds prompts, completions and sampling."""

    def __post_init__(self) -> None:
        at_least_one(self, "batch", "simulations", "candidates", "memory")
        not_negative(self, "temperature", "c_init", "beta")
        positive(self, "c_base")
        share(self, "root_noise")
        only_with(self, "temperature", self.backup == "mean", "backup='mean'")
        asked = self.prior == "guide" or self.leaf == "values"
        only_with(self, "guide", asked, "prior='guide' or leaf='values'")
        require("seed", self.seed, self.seed >= 0, "an integer >= 0")
