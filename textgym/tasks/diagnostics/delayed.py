"""Delayed: only the first word matters, and it is paid at the end."""

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

SUMMARY: Final = "The first word decides what is paid at the end."
WORDS: Final = ("a", "b", "c")


@dataclass(frozen=True)
class FirstWord(NamedReward):
    """Pays 1 where the first word is `word`, else 0."""

    word: str
    name = "first_word"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        return [float(text.split()[:1] == [self.word]) for text in completions]


def delayed_task(difficulty: int = 8, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Delayed.

    ### Description
    Credit assignment: the words after the first one change nothing, and the best policy leaves them to the
    reference. An agent that credits them wanders off and pays for it in KL.

    ### Action Space
    `Discrete(4)`: `a`, `b`, `c`; the prompt's word `go` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 1.

    ### Rewards
    Paid at the end: 1 where the first word was `a`, else 0.

    ### Starting State
    The prompt `go`, in all splits.

    ### Episode End
    Terminated after `difficulty` tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 1..12, tokens of an episode.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    length = read_difficulty(difficulty, 1, 12, "words until it is paid")
    return diagnostic(
        "Delayed",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=["go"]),
        prompts=one_prompt("go"),
        reward=FirstWord(WORDS[0]),
        words=length,
        beta=beta,
        reference=reference,
    )
