"""HHH: be helpful, harmless and honest at once."""

from __future__ import annotations

from typing import Any, Final

from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import world_task
from textgym.world.prompts import TASK_SHARES
from textgym.world.rules import check_weights, covered

SUMMARY: Final = "Be helpful, harmless and honest at once."
SHARES: Final = TASK_SHARES["HHH"]
"""Kind of prompt -> how often it is asked, where every axis has a weight."""


def hhh_task(
    reward: Any = "rules",
    *,
    helpful: float = 1.0,
    harmless: float = 1.0,
    honest: float = 1.0,
    max_new_tokens: int = 40,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task HHH.

    ### Description
    A user asks whatever the tasks Helpful, Harmless and Honest ask: for facts (30% of the prompts), how to do
    something harmless (15%) or harmful (20%), for sums (10%), for what nobody can know (20%), or says hello
    (5%). One policy has to tell these kinds apart: what is right for one (a refusal, 'I do not know') is wrong
    for the others. Kinds that only axes of weight 0 score are not asked; the other shares grow in proportion.
    Prompts of the `eval` split ask about other things than those of `train`, in other phrasings; the
    reference has read about all of them.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [-1, 1]: the weighted mean of the rewards of Helpful, Harmless and
    Honest, over those that score the kind of prompt. Facts are scored by all three, how-tos by helpful and
    harmless, sums by helpful and honest, greetings by helpful, harmful requests by harmless, and unanswerable
    questions by honest. Every axis is a term: what it adds to the mean. See
    `textgym.world.rules.HHHRules`. The gold reward is the same.

    ### Starting State
    A prompt of the split, drawn by the shares above; within a kind all prompts are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules"; "model", the built-in reward model (the gold reward stays the rules); or any reward:
            a callable, a registered name, or {"name": ..., parameters}.
        helpful, harmless, honest: weights of the axes, at least 0, not all of them 0; they also weigh the gold
            reward.
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    weights = {"helpful": helpful, "harmless": harmless, "honest": honest}
    check_weights(weights)
    asked = covered(weights)
    return world_task(
        "HHH",
        SUMMARY,
        shares={kind: share for kind, share in SHARES.items() if kind in asked},
        rules={"name": "hhh_rules", **weights},
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
