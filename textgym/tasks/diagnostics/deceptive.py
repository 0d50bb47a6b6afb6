"""Deceptive: a near reward that leads away from a far larger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from textgym.lm.reference import Reference
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.diagnostics.common import diagnostic, one_prompt, read_difficulty, word_vocabulary

SUMMARY: Final = "Resist the near reward to find the far larger one."
WORDS: Final = ("near", "far")
BAIT: Final = 0.5
"""What the near end pays at most."""


@dataclass(frozen=True)
class Trap(NamedReward):
    """Pays 1 for `length` times the word "far", else `BAIT` times the share of "near". Range [0, 1]."""

    length: int
    name = "trap"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        treasure = " ".join([WORDS[1]] * self.length)
        return [
            1.0 if text == treasure else BAIT * text.split().count(WORDS[0]) / self.length
            for text in completions
        ]


def deceptive_task(
    difficulty: int = 8, *, beta: float = 0.05, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Deceptive.

    ### Description
    A trap: every `near` pays a little, and `far` pays nothing at all until there is nothing else; then it pays twice
    as much as `near` ever does. Following the gradient leads away from the optimum.

    ### Action Space
    `Discrete(3)`: `near`, `far`; the prompt's word `walk` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 1.

    ### Rewards
    Paid at the end, in [0, 1]: 1 for `far` throughout, else 0.5 times the share of `near`.

    ### Starting State
    The prompt `walk`, in all splits.

    ### Episode End
    Terminated after `difficulty` tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 2..16, length of the string.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    length = read_difficulty(difficulty, 2, 16, "words of an answer")
    return diagnostic(
        "Deceptive",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=["walk"]),
        prompts=one_prompt("walk"),
        reward=Trap(length),
        words=length,
        beta=beta,
        reference=reference,
    )
