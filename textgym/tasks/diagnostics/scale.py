"""Scale: the same task in other units of reward."""

from __future__ import annotations

from typing import Final

from textgym.lm.reference import Reference
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    BETA,
    diagnostic,
    one_prompt,
    read_difficulty,
    word_vocabulary,
)
from textgym.tasks.diagnostics.spelling import LENGTH, PROMPT, WORDS, Spelling

SUMMARY: Final = "Spell a word for pay in other units."
SCALES: Final = (1.0, 10.0, 0.1, 100.0, 0.01)
"""Difficulty -> reward units for a word spelt right throughout."""


def scale_task(
    difficulty: int = 3, *, beta: float | None = None, reference: str | Reference = "uniform"
) -> Task:
    """Make the task Scale.

    ### Description
    A word of three letters is spelt. Rewards and beta are scaled together, so the best policy is the same at
    every difficulty, and an agent that needs another learning rate for other units fails.

    ### Action Space
    `Discrete(5)`: `a`, `b`, `c`, `d`; the prompt's word `spell` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 4.

    ### Rewards
    Paid at the end, in [0, scale]: the share of letters that are right, times the scale.

    ### Starting State
    The prompt `spell`, in all splits.

    ### Episode End
    Terminated after three tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 0..4, for the scales 1, 10, 0.1, 100 and 0.01.
        beta: reward units per nat of KL to the reference; None: 0.1 times the scale.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    scale = SCALES[read_difficulty(difficulty, 0, len(SCALES) - 1, f"scales {SCALES}")]
    return diagnostic(
        "Scale",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=[PROMPT]),
        prompts=one_prompt(PROMPT),
        reward=Spelling(scale),
        words=LENGTH,
        beta=BETA * scale if beta is None else beta,
        reference=reference,
    )
