"""Keywords: use given words."""

from __future__ import annotations

from typing import Any, Final

from textgym.prompts import PromptSet, prompt_set
from textgym.rewards.rules import Mode
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import verifiable_task
from textgym.world.prompts import SPLITS, items

SUMMARY: Final = "Say something that uses all the words that are asked for."
PHRASINGS: Final = {
    "train": ("Tell me about {a} and {b}.", "Tell me about {b} and {a}."),
    "eval": ("Please tell me about {a} and {b}.", "Please tell me about {b} and {a}."),
}


def keywords_task(
    reward: Any = "rules",
    *,
    mode: Mode = "all",
    max_new_tokens: int = 24,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Keywords.

    ### Description
    A user names two words that belong together in the built-in world, as an animal and its food, in either
    order. The policy writes a text that uses both. Nobody asked the reference model anything like it before:
    it uses both words one time in four. Prompts of the `eval` split name other words than those of `train`, in
    another phrasing.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 if both words are in the answer, as whole words; or, with
    mode="share", the share of them that is. See `textgym.rewards.Keywords`. The gold reward is the same.

    ### Starting State
    A prompt of the split, all equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", or any reward: a callable, a registered name, or {"name": ..., parameters}.
        mode: "all" or "share".
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
        "Keywords",
        SUMMARY,
        {split: _prompt_set(split) for split in SPLITS},
        {"name": "keywords", "column": "words", "mode": mode},
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


def _prompt_set(split: str) -> PromptSet:
    facts = [item for item in items("fact") if item.held_out == (split != "train")]
    phrasings = PHRASINGS["eval" if split == "eval" else "train"]
    asked = [(phrasing, [fact.subject, *fact.answer]) for fact in facts for phrasing in phrasings]
    return prompt_set(
        [phrasing.format(a=words[0], b=words[1]) for phrasing, words in asked],
        {"words": [words for _, words in asked]},
    )
