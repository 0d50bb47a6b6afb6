"""Distractor: the word that matters, before a long irrelevant tail."""

from __future__ import annotations

from typing import Final

from textgym.lm.reference import Reference
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    BETA,
    RightWords,
    diagnostic,
    read_difficulty,
    sequences,
    with_answers,
    word_vocabulary,
)

SUMMARY: Final = "Repeat the prompt's first word, whatever follows it."
WORDS: Final = ("a", "b", "c", "d")
PROMPTS: Final = 640
"""At most, of `train` and `eval`."""


def distractor_task(
    difficulty: int = 8, *, beta: float = BETA, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Distractor.

    ### Description
    The prompt's first word is the answer; the tail behind it is made of the same words and says nothing.
    A fifth of the prompts is held out for the `eval` split, so a policy that reads meaning into tails fails there.

    ### Action Space
    `Discrete(4)`: `a`, `b`, `c`, `d`.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = difficulty + 2.

    ### Rewards
    Paid at the end: 1 for the right word, else 0.

    ### Starting State
    A prompt of `difficulty` + 1 words, all of a split equally likely.

    ### Episode End
    Terminated after one token. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 2..24, words in the tail.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    tail = read_difficulty(difficulty, 2, 24, "irrelevant words in the prompt")
    chosen = sequences(WORDS, tail + 1, PROMPTS)
    return diagnostic(
        "Distractor",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS),
        prompts=with_answers([(" ".join(words), words[0]) for words in chosen], PROMPTS, held_out=0.2),
        reward=RightWords(),
        words=1,
        beta=beta,
        reference=reference,
    )
