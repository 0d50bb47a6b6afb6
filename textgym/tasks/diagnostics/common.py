"""Make the diagnostic tasks: word vocabularies, held-out prompts, pay for the right words, documentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, get_args

import numpy as np

from textgym.lm.reference import Reference
from textgym.prompts import PromptSet, Split, prompt_set
from textgym.rewards import RewardSpec
from textgym.rewards.base import NamedReward
from textgym.task import Task
from textgym.tasks.assemble import assemble
from textgym.vocab import Vocabulary, load_vocabulary

FAMILY: Final = "diagnostics"
BETA: Final = 0.1
"""Reward units per nat: with rewards in [0, 1], a certain choice among four words costs 0.14."""
SHARED: Final = """
    ### Action Space
    `Discrete($V)`: $words; the prompt's word `$prompt` is not allowed.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`, padded on the right;
    L = $L.

    ### Starting State
    The prompt `$prompt`, in all splits.

    ### Episode End
    Terminated after $T; there is no stop token. Never truncated.

    ### Arguments
        beta: reward units per nat of KL to the reference.
        reference: "uniform", a model's folder, or an object with `log_probs(observation)`.

    ### Version History
    - v0: first version.
"""
"""Sections and arguments of the docstrings of diagnostic tasks; `documented` fills in the names after $."""


def word_vocabulary(actions: Sequence[str], asked: Sequence[str] = (), stop: str | Sequence[str] = ()) -> Vocabulary:
    """Return a vocabulary of words.

    Args:
        actions: the words that the policy writes; ids from 0 on.
        asked: further words, which appear in prompts only and are not allowed as actions.
        stop: which of the actions end an episode.
    """
    vocabulary = load_vocabulary([*actions, *asked], stop=stop)
    allowed = vocabulary.allowed.copy()
    allowed[len(actions) :] = False
    allowed.flags.writeable = False
    return replace(vocabulary, allowed=allowed)


def diagnostic(
    name: str,
    vocabulary: Vocabulary,
    prompts: str | PromptSet | Mapping[str, PromptSet],
    *,
    reward: RewardSpec,
    words: int,
    beta: float,
    reference: str | Reference,
    gold: RewardSpec | None = None,
) -> Task:
    """Make a diagnostic task.

    Args:
        prompts: the splits; or one prompt or set of prompts for all of them, where there is nothing to generalise to.
        words: the longest completion, tokens.
        beta, reference: see `Task`.
        gold: the reward without its noise; None: the reward itself.
    """
    if isinstance(prompts, str):
        prompts = prompt_set([prompts])
    return assemble(
        name,
        FAMILY,
        prompts if isinstance(prompts, Mapping) else dict.fromkeys(get_args(Split), prompts),
        gold=reward if gold is None else gold,
        vocabulary=vocabulary,
        reward="rules" if gold is None else reward,
        max_new_tokens=words,
        beta=beta,
        reference=reference,
    )


def with_answers(pairs: Sequence[tuple[str, str]], at_most: int, held_out: float = 0.25) -> dict[str, PromptSet]:
    """Return splits with the column `answer`; "train" and "eval" have no prompt in common.

    "tune" has as many prompts as "eval", of those that are left over; where these are too few, it has those of "eval",
    and settings are chosen on other seeds, as in tasks of one prompt.

    Args:
        pairs: prompt and answer, all prompts different, in random order.
        at_most: the number of prompts of "train" and "eval" together.
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
    """Return different sequences of `length` words in a fixed random order: all, or about twice `at_most`."""
    generator = np.random.default_rng([len(words), length])
    if len(words) ** length <= 10 * at_most:
        chosen = generator.permutation([*product(words, repeat=length)])[: 2 * at_most]
    else:
        chosen = generator.choice(words, (2 * at_most, length))
    return list(dict.fromkeys(tuple(map(str, row)) for row in chosen))


class TextReward(NamedReward, ABC):
    """A reward of the text alone."""

    def __call__(self, prompts: list[str], completions: list[str], **columns: object) -> list[float]:
        """Score every completion."""
        return [self._pay(text) for text in completions]

    @abstractmethod
    def _pay(self, text: str) -> float:
        """Return the reward of one text."""


@dataclass(frozen=True)
class RightWords(NamedReward):
    """Pay the share of places that hold the word of the column `answer`, times `scale`. Range [0, scale].

    A prompt without an answer, as one of the caller's own, is not scored.
    """

    scale: float = 1.0
    name = "right_words"
    minimum = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "maximum", self.scale)

    def __call__(
        self, prompts: list[str], completions: list[str], *, answer: list[str | None], **columns: object
    ) -> list[float | None]:
        """Score every completion."""
        return [
            None if right is None else self.scale * share_right(text, right)
            for text, right in zip(completions, answer, strict=True)
        ]


def share_right(text: str, right: str) -> float:
    """Return the share of words of `right` that are at the same place in `text`, in [0, 1]."""
    words, wanted = text.split(), right.split()
    return sum(word == want for word, want in zip(words, wanted, strict=False)) / len(wanted)
