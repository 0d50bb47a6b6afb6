"""BigVocab: the same task with ever more words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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
from textgym.vocab import Vocabulary

SUMMARY: Final = "Choose a word that pays, from a vocabulary of any size."
SIZES: Final = (16, 64, 256, 1024, 4096, 16384, 50257)
"""Difficulty -> V; the last one is that of GPT-2."""
STEP: Final = 16
"""Every 16th word pays."""


@dataclass(frozen=True)
class EverySixteenth(NamedReward):
    """Pays 1 for the words w0, w16, w32, ..., else 0."""

    name = "every_sixteenth"
    maximum = 1.0

    def __call__(
        self, prompts: list[str], completions: list[str], *, completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        """Score every completion."""
        return [float(ids[0] % STEP == 0) for ids in completion_ids]


def big_vocab_task(
    difficulty: int = 3, *, beta: float = BETA, reference: str | Reference = "uniform"
) -> Task:
    """Make the task BigVocab.

    ### Description
    One word out of V is chosen; one in sixteen pays. The optimum is the same for every V that 16 divides, but every
    word has to be found by itself: nothing in its name tells whether it pays.

    ### Action Space
    `Discrete(V)`: `w0`, `w1`, ...

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = 2.

    ### Rewards
    Paid at the end: 1 for `w0`, `w16`, `w32` and so on, else 0.

    ### Starting State
    The prompt `w1`, in all splits.

    ### Episode End
    Terminated after one token. There is no stop token. Never truncated.

    ### Arguments
        difficulty: 0..6, for a V of 16, 64, 256, 1024, 4096, 16384 and 50257.
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
    """
    size = SIZES[read_difficulty(difficulty, 0, len(SIZES) - 1, f"vocabularies of {SIZES} words")]
    return diagnostic(
        "BigVocab",
        SUMMARY,
        vocabulary=_vocabulary(size),
        prompts=one_prompt("w1"),
        reward=EverySixteenth(),
        words=1,
        beta=beta,
        reference=reference,
    )


@cache
def _vocabulary(size: int) -> Vocabulary:
    """The words w0, w1, ...; made when they are first asked for."""
    return word_vocabulary([f"w{i}" for i in range(size)])
