"""Reverse: write the words of the prompt, last one first."""

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

SUMMARY: Final = "Write the words of the prompt, last one first."
WORDS: Final = ("a", "b", "c", "d", "e", "f")
PROMPTS: Final = 640
"""At most, of `train` and `eval`."""
STATES: Final = 1_000_000
"""About as many for the exact solver, at most: long prompts are fewer."""


def reverse_task(difficulty: int = 3, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Reverse.

    ### Description
    The answer is the list read backwards. The distance to the word that is needed grows with every word.
    A quarter of the prompts is held out for the `eval` split.

    ### Action Space
    `Discrete(8)`: `a` to `f`; `reverse` and `:` stand in prompts only and are not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 2 * difficulty + 2.

    ### Rewards
    Paid at the end, in [0, 1]: the share of words that are right.

    ### Starting State
    A prompt as `reverse d a b :`, all of a split equally likely. There are 36, 216, 640 or 128 in `train` and
    `eval` together.

    ### Episode End
    Terminated after `difficulty` tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 2..5, words to reverse.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    length = read_difficulty(difficulty, 2, 5, "words to reverse")
    at_most = min(PROMPTS, STATES // len(WORDS) ** length)
    chosen = sequences(WORDS, length, at_most)
    pairs = [(f"reverse {' '.join(words)} :", " ".join(words[::-1])) for words in chosen]
    return diagnostic(
        "Reverse",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=["reverse", ":"]),
        prompts=with_answers(pairs, at_most),
        reward=RightWords(),
        words=length,
        beta=beta,
        reference=reference,
    )
