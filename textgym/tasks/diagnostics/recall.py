"""Recall: look a word up in the prompt."""

from __future__ import annotations

from typing import Final

import numpy as np

from textgym.lm.reference import Reference
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    BETA,
    RightWords,
    diagnostic,
    read_difficulty,
    with_answers,
    word_vocabulary,
)

SUMMARY: Final = "Look a word up in the prompt's list of pairs."
KEYS: Final = ("a", "b", "c", "d", "e", "f")
VALUES: Final = ("0", "1", "2", "3")
PROMPTS: Final = 1600
"""At most, of `train` and `eval`."""


def recall_task(difficulty: int = 2, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Recall.

    ### Description
    The prompt lists keys with their values and ends with one of the keys; the answer is its value, as `3` after
    `recall a 3 c 0 : a`. A fifth of the prompts is held out for the `eval` split.

    ### Action Space
    `Discrete(12)`: the values `0`..`3`; the keys `a`..`f`, `recall` and `:` stand in prompts only and are
    not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 2 * difficulty + 4.

    ### Rewards
    Paid at the end: 1 for the right value, else 0.

    ### Starting State
    A prompt with `difficulty` pairs and different keys, all of a split equally likely.

    ### Episode End
    Terminated after one token. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 1..6, pairs in the prompt.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    pairs = read_difficulty(difficulty, 1, len(KEYS), "pairs in the prompt")
    return diagnostic(
        "Recall",
        SUMMARY,
        vocabulary=word_vocabulary(VALUES, asked=["recall", ":", *KEYS]),
        prompts=with_answers(_questions(pairs), PROMPTS, held_out=0.2),
        reward=RightWords(),
        words=1,
        beta=beta,
        reference=reference,
    )


def _questions(pairs: int) -> list[tuple[str, str]]:
    """Different prompts with their answers, drawn by a fixed generator."""
    generator = np.random.default_rng(pairs)
    draws = 3 * PROMPTS
    keys = generator.permuted(np.tile(KEYS, (draws, 1)), axis=1)[:, :pairs]
    values = generator.choice(VALUES, (draws, pairs))
    asked = generator.integers(pairs, size=draws)
    found: dict[str, str] = {}
    for row, at in enumerate(asked):
        listed = " ".join(f"{key} {value}" for key, value in zip(keys[row], values[row], strict=True))
        found[f"recall {listed} : {keys[row, at]}"] = str(values[row, at])
    return list(found.items())
