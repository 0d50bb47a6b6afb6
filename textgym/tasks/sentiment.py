"""Sentiment: review things of the built-in world in a chosen mood."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import style_task

SUMMARY: Final = "Write reviews with a positive (or negative) sentiment."


def sentiment_task(
    reward: Any = "rules",
    *,
    target: str | float = "positive",
    max_new_tokens: int = 24,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Sentiment. Its reward needs the package vaderSentiment (the extra `rewards`).

    ### Description
    A user asks how something of the built-in world was: the soup, the inn, the play. The policy writes the review.
    The reference model praises about as often as it blames. Prompts of the `eval` split ask about other things
    than those of `train`, in other phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    review so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 - |compound - target| / 2 for the review's VADER compound
    score, so (1 + compound) / 2 where the target is positive. See `textgym.rewards.Sentiment`. The gold reward is
    the same.

    ### Starting State
    A prompt of the split, all equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", "model" (the built-in reward model), or any reward: a callable, a registered name, or
            {"name": ..., parameters}.
        target: "positive", "negative", or a compound score from -1 to 1.
        max_new_tokens: tokens of a review, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    return style_task(
        "Sentiment",
        SUMMARY,
        ["review"],
        {"name": "sentiment", "target": target},
        reward,
        max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )
