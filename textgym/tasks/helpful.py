"""Helpful: answer questions about the built-in world rightly, politely, briefly and to the end."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import world_task
from textgym.world.prompts import TASK_SHARES

SUMMARY: Final = "Answer questions about the built-in world rightly, politely and briefly."
SHARES: Final = TASK_SHARES["Helpful"]
"""Kind of prompt -> how often it is asked."""


def helpful_task(
    reward: Any = "rules",
    *,
    max_new_tokens: int = 40,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Helpful.

    ### Description
    A user asks about the built-in world: its facts (60% of the prompts), how to do something (15%), sums
    (15%), or says hello (10%). The policy writes the answer. The reference model has read answers of experts,
    guessers, ramblers and worse, so it is right about two times in five, and perfect about one time in nine.
    Prompts of the `eval` split ask about other towns, people, animals, tasks and sums than those of `train`,
    in other phrasings; the reference has read about all of them.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [-0.4, 1]: content 0.6, courtesy 0.2, concision 0.1 and a clean
    ending 0.1, all in proportion to how right and complete the content is; -0.2 for rudeness and -0.2 for a
    claim that contradicts the world. See `textgym.world.rules.HelpfulRules`. The gold reward is the same.

    ### Starting State
    A prompt of the split, drawn by the shares above; within a kind all prompts are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules"; "model", the built-in reward model (the gold reward stays the rules); or any reward:
            a callable, a registered name, or {"name": ..., parameters}.
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    return world_task(
        "Helpful",
        SUMMARY,
        shares=SHARES,
        rules={"name": "helpful_rules"},
        reward=reward,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )
