"""Bandit: one choice among many arms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from textgym.lm.reference import Reference
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    BETA,
    diagnostic,
    one_prompt,
    read_difficulty,
    word_vocabulary,
)

SUMMARY: Final = "One choice among many arms."


@dataclass(frozen=True)
class Arm(NamedReward):
    """Pays i / (arms - 1) for the word "arm<i>" and 0 for any other. Range [0, 1]."""

    arms: int
    name = "arm"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        pay = {f"arm{i}": i / (self.arms - 1) for i in range(self.arms)}
        return [pay.get(text, 0.0) for text in completions]


def bandit_task(difficulty: int = 5, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Bandit.

    ### Description
    A bandit: one word is chosen, once. Nothing has to be explored twice or remembered; what can go wrong
    is the gradient, the KL, or the collapse onto an arm that is good but not best.

    ### Action Space
    `Discrete(V)`: `arm0`, `arm1`, ...; the prompt's word `pull` is not allowed. V = 2 ** difficulty + 1.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 2.

    ### Rewards
    Paid at the end, in [0, 1]: i / (arms - 1) for `arm<i>`.

    ### Starting State
    The prompt `pull`, in all splits.

    ### Episode End
    Terminated after one token. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 1..12, for 2 ** difficulty arms.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    arms = 2 ** read_difficulty(difficulty, 1, 12, "2 ** difficulty arms")
    return diagnostic(
        "Bandit",
        SUMMARY,
        vocabulary=word_vocabulary([f"arm{i}" for i in range(arms)], asked=["pull"]),
        prompts=one_prompt("pull"),
        reward=Arm(arms),
        words=1,
        beta=beta,
        reference=reference,
    )
