"""Brief: answers of a given length."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.rewards.words import Unit
from textgym.task import Task
from textgym.tasks.assemble import style_task

SUMMARY: Final = "Answer in a given number of words (or tokens)."


def brief_task(
    reward: Any = "rules",
    *,
    target: int = 6,
    unit: Unit = "words",
    max_new_tokens: int = 32,
    max_prompt_tokens: int = 0,
    beta: float = 0.1,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Brief.

    ### Description
    A user asks how to do something, or how something was, in the built-in world. The policy writes an answer of
    `target` words, whatever it says. The reference model writes from 4 words to more than 30. Prompts of the
    `eval` split ask about other things than those of `train`, in other phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 at `target` units, and 1 / `target` less for each unit more or
    fewer. See `textgym.rewards.Length`. The gold reward is the same.

    ### Starting State
    A prompt of the split: a how-to or a review, each half of the time; within a kind all are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", "model" (the built-in reward model), or any reward: a callable, a registered name, or
            {"name": ..., parameters}.
        target: units, 0 or more.
        unit: "words" (separated by white space), "tokens" (the stop token included) or "characters".
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    return style_task(
        "Brief",
        SUMMARY,
        ["howto", "review"],
        {"name": "length", "target": target, "unit": unit},
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
