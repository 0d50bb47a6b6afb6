"""Helpful: answer questions about the built-in world rightly, politely, briefly and to the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from textgym.prompts import PromptSet, prompt_set
from textgym.rewards import make_reward, register_reward
from textgym.rewards.scorer import OnError
from textgym.task import Task, register_task
from textgym.vocab import load_vocabulary
from textgym.world.prompts import prompts

SUMMARY: Final = "Answer questions about the built-in world rightly, politely and briefly."
SHARES: Final = {"fact": 0.60, "howto": 0.15, "sum": 0.15, "greeting": 0.10}
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
    claim that contradicts the world. See `textgym.world.grading.HelpfulRules`. The gold reward is the same.

    ### Starting State
    A prompt of the split, drawn by the shares above; within a kind all prompts are equally likely.

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
    vocabulary = load_vocabulary()
    gold = make_reward({"name": "helpful_rules", "stop_ids": vocabulary.stop_ids})
    splits = {split: _prompt_set(split) for split in ("train", "eval")}
    texts = [text for split in splits.values() for text in split.texts]
    return Task(
        name="Helpful",
        family="alignment",
        description=SUMMARY,
        prompts=splits,
        vocabulary=vocabulary,
        reward=gold if reward == "rules" else make_reward(reward),
        gold=gold,
        reward_name=_reward_name(reward),
        max_prompt_tokens=max_prompt_tokens or max(len(vocabulary.encode_prompt(text)) for text in texts),
        max_new_tokens=max_new_tokens,
        reference=reference,
        beta=beta,
        gamma=gamma,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )


def _prompt_set(split: str) -> PromptSet:
    asked = prompts(SHARES, split)
    columns = {name: [prompt.columns[name] for prompt in asked] for name in asked[0].columns}
    return prompt_set([prompt.text for prompt in asked], columns, [prompt.weight for prompt in asked])


def _reward_name(reward: Any) -> str:
    if isinstance(reward, str):
        return reward
    return str(reward["name"]) if isinstance(reward, Mapping) and "name" in reward else type(reward).__name__


register_reward("helpful_rules", "textgym.world.grading:HelpfulRules")
register_task("Helpful", helpful_task, family="alignment", summary=SUMMARY)
