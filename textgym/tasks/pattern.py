"""Pattern: answer so that a regular expression matches."""

from __future__ import annotations

from typing import Any, Final

from textgym.checks import check_flag, shown
from textgym.grammar import regex_grammar
from textgym.rewards.patterns import Mode
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import verifiable_prompts as world_prompts
from textgym.tasks.assemble import verifiable_task

SUMMARY: Final = "Write an answer that a regular expression matches."
PATTERN: Final = r".+[.!] (Hope that helps|Have a nice day)!"
"""A sentence, and a polite end."""


def pattern_task(
    reward: Any = "rules",
    *,
    pattern: str = PATTERN,
    mode: Mode = "full",
    constrain: bool = False,
    max_new_tokens: int = 32,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Pattern.

    ### Description
    A user asks about a fact of the built-in world, or how to do something. The policy answers so that the answer
    matches a regular expression; the default one asks for a polite end, with which the reference model ends
    one answer in fifty. Prompts of the `eval` split ask about other things than those of `train`, in other
    phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode: 1 for an answer that matches, else 0. See `textgym.rewards.Pattern`. The
    gold reward is the same.

    ### Starting State
    A prompt of the split: a fact or a how-to, each half of the time; within a kind all are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", or any reward: a callable, a registered name, or {"name": ..., parameters}.
        pattern: a regular expression of re2.
        mode: "full": the whole answer has to match; "search": some part of it.
        constrain: whether the mask leaves only tokens with which the whole answer can still match (mode
            "full", a pattern without anchors and word boundaries).
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    check_flag("constrain", constrain)
    if constrain and not (isinstance(mode, str) and mode == "full"):
        raise ValueError(f"constrain={constrain}: with mode='full' only, got mode={shown(mode)}")
    return verifiable_task(
        "Pattern",
        SUMMARY,
        world_prompts(["fact", "howto"], "kind", lambda prompt: prompt.kind),
        {"name": "pattern", "pattern": pattern, "mode": mode},
        reward,
        grammar=regex_grammar(pattern) if constrain else None,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )
