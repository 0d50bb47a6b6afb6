"""Format: answer in a given template."""

from __future__ import annotations

from typing import Any, Final

from textgym.checks import check_flag
from textgym.grammar import regex_grammar
from textgym.rewards.patterns import template_regex
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import verifiable_prompts as world_prompts
from textgym.tasks.assemble import verifiable_task

SUMMARY: Final = "Answer a question rightly, in a given template."
TEMPLATE: Final = "Of course! {answer} Hope that helps!"


def format_task(
    reward: Any = "rules",
    *,
    template: str = TEMPLATE,
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
    """Make the task Format.

    ### Description
    A user asks for a fact of the built-in world. The policy answers in a template: fixed text with slots for
    its own. The reference model knows the default template's parts, but hardly ever uses both of them.
    Prompts of the `eval` split ask about other towns, people and animals than those of `train`, in other
    phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 0.6 for the template, of which up to half is paid for some
    of its parts; 0.4 for the right answer, anywhere in the text. See `textgym.rewards.Format` and
    `textgym.rewards.Keywords`. The gold reward is the same.

    ### Starting State
    A prompt of the split, all equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", or any reward: a callable, a registered name, or {"name": ..., parameters}.
        template: fixed text with slots in braces, as "<think>{thought}</think><answer>{answer}</answer>".
        constrain: whether the mask leaves only tokens that keep to the template.
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
    return verifiable_task(
        "Format",
        SUMMARY,
        world_prompts(["fact"], "answer", lambda prompt: prompt.columns["answer"]),
        _check(template),
        reward,
        grammar=regex_grammar(template_regex(template)) if constrain else None,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )


def _check(template: str) -> dict[str, Any]:
    return {
        "name": "weighted",
        "rewards": {
            "format": {"name": "format", "template": template, "partial": 0.5},
            "answer": {"name": "keywords", "column": "answer"},
        },
        "weights": {"format": 0.6, "answer": 0.4},
    }
