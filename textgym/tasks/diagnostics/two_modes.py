"""TwoModes: two equal optima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from textgym.lm.reference import NGramReference, Reference
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.diagnostics.common import diagnostic, one_prompt, read_difficulty, word_vocabulary

SUMMARY: Final = "Keep both of two answers that pay alike."
WORDS: Final = ("a", "b", "c")
PROMPT: Final = "choose"
FIRST: Final = (0.5, 0.25, 0.25)
"""The reference's probabilities of the first word."""
AGAIN: Final = 0.5
"""The reference's probability that a word is followed by itself; the other two are equally likely."""


@dataclass(frozen=True)
class SameWord(NamedReward):
    """Pays 1 for `length` times the same one of `words`, else 0."""

    words: tuple[str, ...]
    length: int
    name = "same_word"
    maximum = 1.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        paid = {" ".join([word] * self.length) for word in self.words}
        return [float(text in paid) for text in completions]


def two_modes_task(difficulty: int = 3, *, beta: float = 0.2, reference: str | Reference = "pairs") -> Task:
    """Make the task TwoModes.

    ### Description
    The answers `a a a` and `b b b` pay alike (at the default difficulty). The reference, a table of pairs of
    words, writes the first twice as often as the second; so does the best policy, and a policy that collapses onto one
    of them loses beta times the log of its share, log 1.5 or log 3.

    ### Action Space
    `Discrete(4)`: `a`, `b`, `c`; the prompt's word `choose` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 1.

    ### Rewards
    Paid at the end: 1 for `difficulty` times `a` or `difficulty` times `b`, else 0.

    ### Starting State
    The prompt `choose`, in all splits.

    ### Episode End
    Terminated after `difficulty` tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 1..10, words of an answer.
        beta: reward units per nat of KL to the reference.
        reference: "pairs" for the table, "uniform", a model's folder, or an object with
            `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    length = read_difficulty(difficulty, 1, 10, "words of an answer")
    return diagnostic(
        "TwoModes",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=[PROMPT]),
        prompts=one_prompt(PROMPT),
        reward=SameWord(WORDS[:2], length),
        words=length,
        beta=beta,
        reference=_pairs() if isinstance(reference, str) and reference == "pairs" else reference,
    )


def _pairs() -> NGramReference:
    """The reference: `FIRST` after the prompt, then each word again with probability `AGAIN`."""
    table = np.zeros((len(WORDS) + 1, len(WORDS) + 1))
    table[:-1, :-1] = (1.0 - AGAIN) / (len(WORDS) - 1)
    np.fill_diagonal(table, AGAIN)
    table[-1] = (*FIRST, 0.0)
    return NGramReference(table)
