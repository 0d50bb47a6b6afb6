"""What the diagnostic tasks share: word vocabularies, held-out prompts, and pay for the right words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final, get_args

import numpy as np

from textgym.checks import shown
from textgym.lm.reference import Reference
from textgym.prompts import PromptSet, Split, prompt_set
from textgym.rewards.base import NamedReward, reward_name
from textgym.task import Task
from textgym.vocab import Vocabulary, load_vocabulary

FAMILY: Final = "diagnostics"
BETA: Final = 0.1
"""Reward units per nat: with rewards in [0, 1], a certain choice among four words costs 0.14."""


def read_difficulty(difficulty: int, low: int, high: int, meaning: str) -> int:
    """The difficulty itself. Raises: ValueError unless it is an int in low..high."""
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | np.integer):
        raise ValueError(f"difficulty={shown(difficulty)}: allowed is an int in {low}..{high} ({meaning})")
    if not low <= difficulty <= high:
        raise ValueError(f"difficulty={shown(difficulty)}: allowed is {low}..{high} ({meaning})")
    return int(difficulty)


def word_vocabulary(
    actions: Sequence[str], asked: Sequence[str] = (), stop: str | Sequence[str] = ()
) -> Vocabulary:
    """A vocabulary of words.

    Args:
        actions: the words that the policy writes; ids from 0 on.
        asked: further words, that stand in prompts only and are not allowed as actions.
        stop: which of the actions end an episode.
    """
    vocabulary = load_vocabulary([*actions, *asked], stop=stop)
    allowed = vocabulary.allowed.copy()
    allowed[len(actions) :] = False
    allowed.flags.writeable = False
    return replace(vocabulary, allowed=allowed)


def diagnostic(
    name: str,
    summary: str,
    *,
    vocabulary: Vocabulary,
    prompts: PromptSet | Mapping[str, PromptSet],
    reward: Any,
    words: int,
    beta: float,
    reference: str | Reference,
    gold: Any = None,
) -> Task:
    """A diagnostic task.

    Args:
        prompts: the splits, or one prompt set for all, where there is nothing to generalise to.
        words: the longest completion, tokens.
        gold: the reward without its noise; None: the reward itself.
        beta, reference: see `Task`.
    """
    return Task(
        name=name,
        family=FAMILY,
        description=summary,
        prompts=prompts if isinstance(prompts, Mapping) else dict.fromkeys(get_args(Split), prompts),
        vocabulary=vocabulary,
        reward=reward,
        gold=reward if gold is None else gold,
        reward_name=reward_name(reward),
        max_new_tokens=words,
        reference=reference,
        beta=beta,
    )


def one_prompt(text: str) -> PromptSet:
    """A prompt set with a single prompt."""
    return prompt_set([text])


def with_answers(
    pairs: Sequence[tuple[str, str]], at_most: int, held_out: float = 0.25
) -> dict[str, PromptSet]:
    """Prompts with the column `answer`, different ones in "train" and "eval".

    "tune" has as many as "eval", of those that are left over; where there are too few, those of "eval": then it is
    other seeds that settings are chosen on, as in tasks of one prompt.

    Args:
        pairs: prompt and answer, all prompts different, in an order that is random already.
        at_most: so many go to "train" and "eval".
        held_out: the share of these that goes to "eval", from the front.
    """
    used, spare = pairs[:at_most], pairs[at_most:]
    count = max(1, round(held_out * len(used)))
    splits = {"train": used[count:], "eval": used[:count]}
    splits["tune"] = spare[:count] if len(spare) >= count else splits["eval"]
    return {
        split: prompt_set([prompt for prompt, _ in part], {"answer": [answer for _, answer in part]})
        for split, part in splits.items()
    }


def sequences(words: Sequence[str], length: int, at_most: int) -> list[tuple[str, ...]]:
    """Different sequences of `length` words in a random but fixed order: all of them, or about twice `at_most`."""
    generator = np.random.default_rng([len(words), length])
    if len(words) ** length <= 10 * at_most:
        chosen = generator.permutation([*product(words, repeat=length)])[: 2 * at_most]
    else:
        chosen = generator.choice(words, (2 * at_most, length))
    return list(dict.fromkeys(tuple(map(str, row)) for row in chosen))


@dataclass(frozen=True)
class RightWords(NamedReward):
    """Pays the share of places that hold the word of the column `answer`, times `scale`. Range [0, scale].

    A prompt without an answer, as one of the caller's own, is not scored.
    """

    scale: float = 1.0
    name = "right_words"

    def __post_init__(self) -> None:
        object.__setattr__(self, "maximum", self.scale)

    def __call__(
        self, prompts: list[str], completions: list[str], *, answer: list[str | None], **columns: Any
    ) -> list[float | None]:
        """Score every completion."""
        return [
            None if right is None else self.scale * share_right(text, right)
            for text, right in zip(completions, answer, strict=True)
        ]


def share_right(text: str, right: str) -> float:
    """The share of words of `right` that stand at the same place in `text`, in [0, 1]."""
    words, wanted = text.split(), right.split()
    return sum(word == want for word, want in zip(words, wanted, strict=False)) / len(wanted)
