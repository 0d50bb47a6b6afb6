"""Memory: answers that depend on the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from textgym.checks import check_count
from textgym.lm.reference import Reference
from textgym.prompts import prompt_set
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.assemble import documented
from textgym.tasks.diagnostics.common import (
    BETA,
    SHARED,
    RightWords,
    diagnostic,
    sequences,
    with_answers,
    word_vocabulary,
)

WORDS: Final = ("a", "b", "c", "d", "e", "f")
"""Of Copy and Reverse; the keys of Recall; the first four of Distractor."""
VALUES: Final = ("0", "1", "2", "3")
PROMPTS: Final = 640
"""Of `train` and `eval` together, at most."""
QUESTIONS: Final = 1600
"""The same for Recall."""
STATES: Final = 1_000_000
"""About as many for the exact solver, at most: long prompts are fewer."""
STOPS: Final = ("<end>", "<halt>")


@documented(SHARED, L="2 * difficulty + 2", T="`difficulty` tokens")
def copy_task(difficulty: int = 3, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Copy.

    ### Description
    The answer repeats the list. Every word of it needs one word of the prompt, always at the same distance.
    A quarter of the prompts is held out for the `eval` split.

    ### Action Space
    `Discrete(8)`: `a` to `f`; `copy` and `:` stand in prompts only and are not allowed.

    ### Rewards
    Paid at the end, in [0, 1]: the share of words that are right.

    ### Starting State
    A prompt as `copy d a b :`, all of a split equally likely. There are 36, 216, 640 or 128 in `train` and
    `eval` together.

    ### Arguments
        difficulty: 2..5, words to copy.
    """
    return _repeating("Copy", difficulty, 1, beta, reference)


@documented(SHARED, L="2 * difficulty + 2", T="`difficulty` tokens")
def reverse_task(difficulty: int = 3, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Reverse.

    ### Description
    The answer is the list read backwards. The distance to the word that is needed grows with every word.
    A quarter of the prompts is held out for the `eval` split.

    ### Action Space
    `Discrete(8)`: `a` to `f`; `reverse` and `:` stand in prompts only and are not allowed.

    ### Rewards
    Paid at the end, in [0, 1]: the share of words that are right.

    ### Starting State
    A prompt as `reverse d a b :`, all of a split equally likely. There are 36, 216, 640 or 128 in `train` and
    `eval` together.

    ### Arguments
        difficulty: 2..5, words to reverse.
    """
    return _repeating("Reverse", difficulty, -1, beta, reference)


def _repeating(name: str, difficulty: int, step: int, beta: float, reference: str | Reference) -> Task:
    """Make a task whose answer is the list of the prompt, read forwards (`step` 1) or backwards (-1)."""
    verb = name.lower()
    length = check_count("difficulty", difficulty, 2, 5, f"words to {verb}")
    at_most = min(PROMPTS, STATES // len(WORDS) ** length)
    chosen = sequences(WORDS, length, at_most)
    pairs = [(f"{verb} {' '.join(words)} :", " ".join(words[::step])) for words in chosen]
    vocabulary, prompts = word_vocabulary(WORDS, asked=[verb, ":"]), with_answers(pairs, at_most)
    return diagnostic(name, vocabulary, prompts, reward=RightWords(), words=length, beta=beta, reference=reference)


@documented(SHARED, L="difficulty + 2", T="one token")
def distractor_task(difficulty: int = 8, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Distractor.

    ### Description
    The prompt's first word is the answer; the tail behind it is made of the same words and says nothing.
    A fifth of the prompts is held out for the `eval` split, so a policy that reads meaning into tails fails there.

    ### Action Space
    `Discrete(4)`: `a`, `b`, `c`, `d`.

    ### Rewards
    Paid at the end: 1 for the right word, else 0.

    ### Starting State
    A prompt of `difficulty` + 1 words, all of a split equally likely.

    ### Arguments
        difficulty: 2..24, words in the tail.
    """
    tail = check_count("difficulty", difficulty, 2, 24, "irrelevant words in the prompt")
    chosen = sequences(WORDS[:4], tail + 1, PROMPTS)
    pairs = [(" ".join(words), words[0]) for words in chosen]
    vocabulary, prompts = word_vocabulary(WORDS[:4]), with_answers(pairs, PROMPTS, held_out=0.2)
    return diagnostic("Distractor", vocabulary, prompts, reward=RightWords(), words=1, beta=beta, reference=reference)


@documented(SHARED, L="2 * difficulty + 4", T="one token")
def recall_task(difficulty: int = 2, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Recall.

    ### Description
    The prompt lists keys with their values and ends with one of the keys; the answer is its value, as `3` after
    `recall a 3 c 0 : a`. A fifth of the prompts is held out for the `eval` split.

    ### Action Space
    `Discrete(12)`: the values `0`..`3`; the keys `a`..`f`, `recall` and `:` stand in prompts only and are
    not allowed.

    ### Rewards
    Paid at the end: 1 for the right value, else 0.

    ### Starting State
    A prompt with `difficulty` pairs and different keys, all of a split equally likely.

    ### Arguments
        difficulty: 1..6, pairs in the prompt.
    """
    pairs = check_count("difficulty", difficulty, 1, len(WORDS), "pairs in the prompt")
    vocabulary = word_vocabulary(VALUES, asked=["recall", ":", *WORDS])
    prompts = with_answers(_questions(pairs), QUESTIONS, held_out=0.2)
    return diagnostic("Recall", vocabulary, prompts, reward=RightWords(), words=1, beta=beta, reference=reference)


def _questions(pairs: int) -> list[tuple[str, str]]:
    """Return different prompts with their answers, drawn by a fixed generator."""
    generator = np.random.default_rng(pairs)
    draws = 3 * QUESTIONS
    keys = generator.permuted(np.tile(WORDS, (draws, 1)), axis=1)[:, :pairs]
    values = generator.choice(VALUES, (draws, pairs))
    asked = generator.integers(pairs, size=draws)
    found: dict[str, str] = {}
    for row, at in enumerate(asked):
        listed = " ".join(f"{key} {value}" for key, value in zip(keys[row], values[row], strict=True))
        found[f"recall {listed} : {keys[row, at]}"] = str(values[row, at])
    return list(found.items())


@dataclass(frozen=True)
class WordCount(NamedReward):
    """Pay 1 - |words - asked| / `most` for a text that was stopped, 0 for one that ran out. Range [0, 1].

    Args:
        most: the greatest number of words that is asked for.
        stop_ids: the ids that end a text.
    """

    most: int
    stop_ids: tuple[int, ...]
    name = "word_count"
    maximum = 1.0
    minimum = 0.0

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        *,
        count: list[int | None],
        completion_ids: list[list[int]],
        **columns: object,
    ) -> list[float | None]:
        """Score every completion; None for a prompt that asks for no number of words."""
        return [
            None if asked is None else self._pay(len(text.split()), asked, ids[-1] in self.stop_ids)
            for text, asked, ids in zip(completions, count, completion_ids, strict=True)
        ]

    def _pay(self, words: int, asked: int, stopped: bool) -> float:
        return max(0.0, 1.0 - abs(words - asked) / self.most) if stopped else 0.0


@documented(SHARED, L="difficulty + 3", T="`difficulty` + 2 tokens")
def stop_task(difficulty: int = 4, *, beta: float = BETA, reference: str | Reference = "uniform") -> Task:
    """Make the task Stop.

    ### Description
    Stop handling: the prompt is a number, and the answer has to be ended after as many words. There are two stop
    tokens, worth the same; a text that runs into its limit earns nothing.

    ### Action Space
    `Discrete(difficulty + 3)`: `word`, `<end>`, `<halt>`; the numbers stand in prompts only and are not allowed.

    ### Rewards
    Paid at the end, in [0, 1]: 1 - |words written - words asked for| / difficulty after a stop token, else 0.

    ### Starting State
    A number from 1 to `difficulty`, all equally likely, the same in all splits.

    ### Episode End
    Terminated when the policy takes one of the stop tokens `<end>` and `<halt>`, or after `difficulty` + 2 tokens.
    Never truncated.

    ### Arguments
        difficulty: 1..8, the largest number.
    """
    most = check_count("difficulty", difficulty, 1, 8, "words asked for, at most")
    counts = [*range(1, most + 1)]
    vocabulary = word_vocabulary(["word", *STOPS], asked=[str(count) for count in counts], stop=STOPS)
    prompts = prompt_set([str(count) for count in counts], {"count": counts})
    reward = WordCount(most, vocabulary.stop_ids)
    return diagnostic("Stop", vocabulary, prompts, reward=reward, words=most + 2, beta=beta, reference=reference)
