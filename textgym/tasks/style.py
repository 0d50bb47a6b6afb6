"""Style: how an answer is written, whatever it says."""

from __future__ import annotations

from typing import Final, Unpack

from textgym.rewards.words import Unit
from textgym.task import Task
from textgym.tasks.assemble import SHARED, Options, assemble, documented, with_options, world_prompts

FAMILY: Final = "style"


@documented(SHARED)
@with_options(max_new_tokens=32, beta=0.1)
def brief_task(*, target: int = 6, unit: Unit = "words", **options: Unpack[Options]) -> Task:
    """Make the task Brief.

    ### Description
    A user asks how to do something, or how something was, in the built-in world. The policy writes an answer of
    `target` words, whatever it says. The reference model writes from 4 words to more than 30. Prompts of the
    `eval` split ask about other things than those of `train`, in other phrasings.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 at `target` units, and 1 / `target` less for each unit more or
    fewer. See `textgym.rewards.Length`. The gold reward is the same.

    ### Starting State
    A prompt of the split: a how-to or a review, each half of the time; within a kind all are equally likely.

    ### Arguments
        target: units, 0 or more.
        unit: "words" (separated by white space), "tokens" (the stop token included) or "characters".
    """
    gold = {"name": "length", "target": target, "unit": unit}
    return assemble("Brief", FAMILY, world_prompts(["howto", "review"]), gold=gold, **options)


@documented(SHARED)
@with_options(beta=0.1)
def no_repeat_task(*, n: int = 2, unit: Unit = "words", least: int = 12, **options: Unpack[Options]) -> Task:
    """Make the task NoRepeat.

    ### Description
    A user asks how to do something, or how something was, in the built-in world. The policy writes an answer with
    many pairs of words, none of them twice. The reference model's answers are mostly too short, and its long ones
    ramble in circles. Prompts of the `eval` split ask about other things than those of `train`, in other
    phrasings.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: the number of different n-grams, divided by that of all n-grams
    or by `least`, whichever is more. See `textgym.rewards.NoRepeat`. The gold reward is the same.

    ### Starting State
    A prompt of the split: a how-to or a review, each half of the time; within a kind all are equally likely.

    ### Arguments
        n: units of an n-gram, 1 or more.
        unit: "words" (separated by white space), "tokens" (the stop token included) or "characters".
        least: n-grams that a text needs for the full reward, 0 or more; at 0 silence earns 1.
    """
    gold = {"name": "no_repeat", "n": n, "unit": unit, "least": least}
    return assemble("NoRepeat", FAMILY, world_prompts(["howto", "review"]), gold=gold, **options)


@documented(SHARED)
@with_options(max_new_tokens=24)
def sentiment_task(*, target: str | float = "positive", **options: Unpack[Options]) -> Task:
    """Make the task Sentiment. Its reward needs the package vaderSentiment (the extra `rewards`).

    ### Description
    A user asks how something of the built-in world was: the soup, the inn, the play. The policy writes the review.
    The reference model praises about as often as it blames. Prompts of the `eval` split ask about other things
    than those of `train`, in other phrasings.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 - |compound - target| / 2 for the review's VADER compound
    score, so (1 + compound) / 2 where the target is positive. See `textgym.rewards.Sentiment`. The gold reward is
    the same.

    ### Arguments
        target: "positive", "negative", or a compound score from -1 to 1.
    """
    gold = {"name": "sentiment", "target": target}
    return assemble("Sentiment", FAMILY, world_prompts(["review"]), gold=gold, **options)
