"""Noisy: reward noise as large as the reward."""

from __future__ import annotations

from typing import Final

from textgym.lm.reference import Reference
from textgym.rewards.compose import Blurred
from textgym.task import Task
from textgym.tasks.diagnostics.common import (
    BETA,
    diagnostic,
    one_prompt,
    read_difficulty,
    word_vocabulary,
)
from textgym.tasks.diagnostics.spelling import LENGTH, PROMPT, WORDS, Spelling

SUMMARY: Final = "Spell a word while the pay is blurred by noise."


def noisy_task(difficulty: int = 2, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Noisy.

    ### Description
    The task Scale with noise on its reward: each episode draws a seed from the environment's generator, and
    the noise from that seed. The optimum is that of the mean reward, which is the gold reward and the attribute
    `expected` of the reward.

    ### Action Space
    `Discrete(5)`: `a`, `b`, `c`, `d`; the prompt's word `spell` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 4.

    ### Rewards
    Paid at the end: the share of words that are right, in [0, 1], plus normal noise with standard deviation
    difficulty / 2, without bounds.

    ### Starting State
    The prompt `spell`, in all splits.

    ### Episode End
    Terminated after three tokens. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 0..20, for noise of standard deviation difficulty / 2.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    deviation = 0.5 * read_difficulty(difficulty, 0, 20, "noise, in halves of the greatest reward")
    expected = Spelling()
    return diagnostic(
        "Noisy",
        SUMMARY,
        vocabulary=word_vocabulary(WORDS, asked=[PROMPT]),
        prompts=one_prompt(PROMPT),
        reward=Blurred(expected, deviation),
        gold=expected,
        words=LENGTH,
        beta=beta,
        reference=reference,
    )
