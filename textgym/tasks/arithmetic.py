"""Arithmetic: add two numbers."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import verifiable_prompts as world_prompts
from textgym.tasks.assemble import verifiable_task

SUMMARY: Final = "Add two numbers; only the exact sum pays."


def arithmetic_task(
    reward: Any = "rules",
    *,
    max_new_tokens: int = 24,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Arithmetic.

    ### Description
    A user of the built-in world asks for the sum of two numbers from 1 to 10. The policy answers as it likes;
    what counts is the last number that it writes. The reference model is right about half of the time.
    Prompts of the `eval` split ask for other sums than those of `train`, in other phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode: 1 if the last number of the answer is the sum, else 0. See
    `textgym.rewards.Arithmetic`. The gold reward is the same.

    ### Starting State
    A prompt of the split, all equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", or any reward: a callable, a registered name, or {"name": ..., parameters}.
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    return verifiable_task(
        "Arithmetic",
        SUMMARY,
        world_prompts(["sum"], "answer", lambda prompt: prompt.columns["answer"][0]),
        {"name": "arithmetic"},
        reward,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )
