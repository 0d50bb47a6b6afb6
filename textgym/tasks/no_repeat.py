"""NoRepeat: long answers without repetition."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.rewards.words import Unit
from textgym.task import Task
from textgym.tasks.assemble import style_task

SUMMARY: Final = "Write at length and repeat no pair of words."


def no_repeat_task(
    reward: Any = "rules",
    *,
    n: int = 2,
    unit: Unit = "words",
    least: int = 12,
    max_new_tokens: int = 40,
    max_prompt_tokens: int = 0,
    beta: float = 0.1,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task NoRepeat.

    ### Description
    A user asks how to do something, or how something was, in the built-in world. The policy writes an answer with
    many pairs of words, none of them twice. The reference model's answers are mostly too short, and its long ones
    ramble in circles. Prompts of the `eval` split ask about other things than those of `train`, in other
    phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: the number of different n-grams, divided by that of all n-grams
    or by `least`, whichever is more. See `textgym.rewards.NoRepeat`. The gold reward is the same.

    ### Starting State
    A prompt of the split: a how-to or a review, each half of the time; within a kind all are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", "model" (the built-in reward model), or any reward: a callable, a registered name, or
            {"name": ..., parameters}.
        n: units of an n-gram, 1 or more.
        unit: "words" (separated by white space), "tokens" (the stop token included) or "characters".
        least: n-grams that a text needs for the full reward, 0 or more; at 0 silence earns 1.
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
        "NoRepeat",
        SUMMARY,
        ["howto", "review"],
        {"name": "no_repeat", "n": n, "unit": unit, "least": least},
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
