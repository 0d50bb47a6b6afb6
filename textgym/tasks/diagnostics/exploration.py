"""Exploration and choice: which words to try, and what to settle on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from textgym.checks import check_count
from textgym.lm.reference import NGramReference, Reference
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.assemble import documented
from textgym.tasks.diagnostics.common import BETA, SHARED, TextReward, diagnostic, word_vocabulary
from textgym.vocab import Vocabulary

SIZES: Final = (16, 64, 256, 1024, 4096, 16384, 50257)
"""Difficulty of BigVocab -> V; the last one is that of GPT-2."""
STEP: Final = 16
"""Every 16th word of BigVocab pays."""
DIRECTIONS: Final = ("left", "right")
DISTANCES: Final = ("near", "far")
BAIT: Final = 0.5
"""The most that the near end of Deceptive pays."""
MODES: Final = ("a", "b", "c")
FIRST: Final = (0.5, 0.25, 0.25)
"""The probabilities of the first word under the reference of TwoModes."""
AGAIN: Final = 0.5
"""The probability that it repeats a word; the other two are equally likely."""


@dataclass(frozen=True)
class Arm(NamedReward):
    """Pay i / (arms - 1) for the word "arm<i>" and 0 for any other. Range [0, 1]."""

    arms: int
    name = "arm"
    maximum = 1.0
    minimum = 0.0

    def __call__(self, prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        """Score every completion."""
        pay = {f"arm{i}": i / (self.arms - 1) for i in range(self.arms)}
        return [pay.get(text, 0.0) for text in completions]


@documented(SHARED, prompt="pull", L="2", T="one token")
def bandit_task(difficulty: int = 5, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Bandit.

    ### Description
    A bandit: one word is chosen, once. Nothing has to be explored twice or remembered; what can go wrong
    is the gradient, the KL, or the collapse onto an arm that is good but not best.

    ### Action Space
    `Discrete(V)`: `arm0`, `arm1`, ...; the prompt's word `pull` is not allowed. V = 2 ** difficulty + 1.

    ### Rewards
    Paid at the end, in [0, 1]: i / (arms - 1) for `arm<i>`.

    ### Arguments
        difficulty: 1..12, for 2 ** difficulty arms.
    """
    arms = 2 ** check_count("difficulty", difficulty, 1, 12, "2 ** difficulty arms")
    names = [f"arm{i}" for i in range(arms)]
    vocabulary = word_vocabulary(names, asked=["pull"])
    return diagnostic("Bandit", vocabulary, "pull", reward=Arm(arms), words=1, beta=beta, reference=reference)


@dataclass(frozen=True)
class EverySixteenth(NamedReward):
    """Pay 1 for the words w0, w16, w32, ..., else 0."""

    name = "every_sixteenth"
    maximum = 1.0
    minimum = 0.0

    def __call__(
        self, prompts: list[str], completions: list[str], *, completion_ids: list[list[int]], **columns: object
    ) -> list[float]:
        """Score every completion."""
        return [float(ids[0] % STEP == 0) for ids in completion_ids]


@documented(SHARED, prompt="w1", L="2", T="one token")
def big_vocab_task(difficulty: int = 3, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task BigVocab.

    ### Description
    One word out of V is chosen; one in sixteen pays. The optimum is the same for every V that 16 divides, but every
    word has to be found by itself: nothing in its name tells whether it pays.

    ### Action Space
    `Discrete(V)`: `w0`, `w1`, ...

    ### Rewards
    Paid at the end: 1 for `w0`, `w16`, `w32` and so on, else 0.

    ### Arguments
        difficulty: 0..6, for a V of 16, 64, 256, 1024, 4096, 16384 and 50257.
    """
    size = SIZES[check_count("difficulty", difficulty, 0, len(SIZES) - 1, f"vocabularies of {SIZES} words")]
    vocabulary = _numbered_words(size)
    return diagnostic("BigVocab", vocabulary, "w1", reward=EverySixteenth(), words=1, beta=beta, reference=reference)


@cache
def _numbered_words(size: int) -> Vocabulary:
    """Return the words w0, w1, ..., made when they are first asked for."""
    return word_vocabulary([f"w{i}" for i in range(size)])


@dataclass(frozen=True)
class Trap(TextReward):
    """Pay 1 for `length` times the word "far", else `BAIT` times the share of "near". Range [0, 1]."""

    length: int
    name = "trap"
    maximum = 1.0
    minimum = 0.0

    def _pay(self, text: str) -> float:
        if text == " ".join([DISTANCES[1]] * self.length):
            return 1.0
        return BAIT * text.split().count(DISTANCES[0]) / self.length


@documented(SHARED, prompt="walk", V="3", words="`near`, `far`", L="difficulty + 1", T="`difficulty` tokens")
def deceptive_task(difficulty: int = 8, *, beta: float = 0.05, reference: str | Reference = "uniform") -> Task:
    """Make the task Deceptive.

    ### Description
    A trap: every `near` pays a little, and `far` pays nothing at all until there is nothing else; then it pays twice
    as much as `near` ever does. Following the gradient leads away from the optimum.

    ### Rewards
    Paid at the end, in [0, 1]: 1 for `far` throughout, else 0.5 times the share of `near`.

    ### Arguments
        difficulty: 2..16, length of the string.
    """
    length = check_count("difficulty", difficulty, 2, 16, "words of an answer")
    vocabulary = word_vocabulary(DISTANCES, asked=["walk"])
    return diagnostic(
        "Deceptive", vocabulary, "walk", reward=Trap(length), words=length, beta=beta, reference=reference
    )


@dataclass(frozen=True)
class SameWord(TextReward):
    """Pay 1 for `length` times the same one of `words`, else 0."""

    words: tuple[str, ...]
    length: int
    name: str = "same_word"
    maximum = 1.0
    minimum = 0.0

    def _pay(self, text: str) -> float:
        return float(any(text == " ".join([word] * self.length) for word in self.words))


@documented(SHARED, prompt="dive", V="3", words="`left`, `right`", L="difficulty + 1", T="`difficulty` tokens")
def deep_sea_task(difficulty: int = 10, *, beta: float = 0.05, reference: str | Reference = "uniform") -> Task:
    """Make the task DeepSea.

    ### Description
    Exploration: of the 2 ** difficulty strings a single one pays, and nothing leads there. The reference
    finds it once in 2 ** difficulty episodes. After Osband et al. (2019), arXiv:1908.03568.

    ### Rewards
    Paid at the end: 1 for `right` all the way, else 0.

    ### Arguments
        difficulty: 1..18, length of the string.
    """
    depth = check_count("difficulty", difficulty, 1, 18, "words to get right")
    vocabulary = word_vocabulary(DIRECTIONS, asked=["dive"])
    reward = SameWord(DIRECTIONS[1:], depth, "treasure")
    return diagnostic("DeepSea", vocabulary, "dive", reward=reward, words=depth, beta=beta, reference=reference)


@documented(SHARED, prompt="choose", V="4", words="`a`, `b`, `c`", L="difficulty + 1", T="`difficulty` tokens")
def two_modes_task(difficulty: int = 3, *, beta: float = 0.2, reference: str | Reference = "pairs") -> Task:
    """Make the task TwoModes.

    ### Description
    The answers `a a a` and `b b b` pay alike (at the default difficulty). The reference, a table of pairs of
    words, writes the first twice as often as the second; so does the best policy, and a policy that collapses onto one
    of them loses beta times the log of its share, log 1.5 or log 3.

    ### Rewards
    Paid at the end: 1 for `difficulty` times `a` or `difficulty` times `b`, else 0.

    ### Arguments
        difficulty: 1..10, words of an answer.
        reference: "pairs" for the table, "uniform", a model's folder, or an object with
            `log_probs(observation)`.
    """
    length = check_count("difficulty", difficulty, 1, 10, "words of an answer")
    if isinstance(reference, str) and reference == "pairs":
        reference = _pairs()
    reward = SameWord(MODES[:2], length)
    vocabulary = word_vocabulary(MODES, asked=["choose"])
    return diagnostic("TwoModes", vocabulary, "choose", reward=reward, words=length, beta=beta, reference=reference)


def _pairs() -> NGramReference:
    """Return the reference of TwoModes: `FIRST` after the prompt, then each word again with probability `AGAIN`."""
    table = np.zeros((len(MODES) + 1, len(MODES) + 1))
    table[:-1, :-1] = (1.0 - AGAIN) / (len(MODES) - 1)
    np.fill_diagonal(table, AGAIN)
    table[-1] = (*FIRST, 0.0)
    return NGramReference(table)
