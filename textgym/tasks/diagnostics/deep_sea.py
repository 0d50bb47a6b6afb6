"""DeepSea: one rewarded string among exponentially many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from textgym.lm.reference import Reference
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    diagnostic,
    one_prompt,
    read_difficulty,
    word_vocabulary,
)

SUMMARY: Final = "Find the one string that pays."
WORDS: Final = ("left", "right")


@dataclass(frozen=True)
class Treasure(NamedReward):
    """Pays 1 for `depth` times the word "right", else 0."""

    depth: int
    name = "treasure"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        treasure = " ".join([WORDS[1]] * self.depth)
        return [float(text == treasure) for text in completions]


def deep_sea_task(
    difficulty: int = 10, *, beta: float = 0.05, reference: str | Reference = "uniform"
) -> Task:
    """Make the task DeepSea.

    ### Description
    Exploration: of the 2 ** difficulty strings a single one pays, and nothing leads there. The reference
    finds it once in 2 ** difficulty episodes. After Osband et al. (2019), arXiv:1908.03568.

    ### Action Space
    `Discrete(3)`: `left`, `right`; the prompt's word `dive` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 1.

    ### Rewards
    Paid at the end: 1 for `right` all the way, else 0.

    ### Starting State
    The prompt `dive`, in all splits.

    ### Episode End
    Terminated after `difficulty` tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 1..18, length of the string.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    depth = read_difficulty(difficulty, 1, 18, "words to get right")
    return diagnostic(
        "DeepSea",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=["dive"]),
        prompts=one_prompt("dive"),
        reward=Treasure(depth),
        words=depth,
        beta=beta,
        reference=reference,
    )
