"""BetaSweep: the same task with the KL ever dearer."""

from __future__ import annotations

from typing import Final

from textgym.lm.reference import Reference
from textgym.task import Task
from textgym.tasks.diagnostics.common import diagnostic, one_prompt, read_difficulty, word_vocabulary
from textgym.tasks.diagnostics.spelling import LENGTH, PROMPT, WORDS, Spelling

SUMMARY: Final = "Spell a word with the KL cheap or dear."
BETAS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Difficulty -> reward units per nat."""


def beta_sweep_task(
    difficulty: int = 3, *, beta: float | None = None, reference: str | Reference = "uniform"
) -> Task:
    """Make the task BetaSweep.

    ### Description
    A word of three letters is spelt. With a small beta the best policy is all but certain, with a large one it
    stays beside the reference, and an agent has to find the point between.

    ### Action Space
    `Discrete(5)`: `a`, `b`, `c`, `d`; the prompt's word `spell` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 4.

    ### Rewards
    Paid at the end, in [0, 1]: the share of letters that are right.

    ### Starting State
    The prompt `spell`, in all splits.

    ### Episode End
    Terminated after three tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 0..6, for beta 0.01, 0.03, 0.1, 0.3, 1, 3 and 10.
        beta: reward units per nat of KL to the reference; None: by difficulty.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    chosen = BETAS[read_difficulty(difficulty, 0, len(BETAS) - 1, f"betas {BETAS}")]
    return diagnostic(
        "BetaSweep",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=[PROMPT]),
        prompts=one_prompt(PROMPT),
        reward=Spelling(),
        words=LENGTH,
        beta=chosen if beta is None else beta,
        reference=reference,
    )
