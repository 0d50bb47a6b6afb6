"""Text: bring your own prompts, tokenizer and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textgym.checks import shown
from textgym.prompts import PromptSet, own_splits, prompt_set, read_prompts
from textgym.rewards import make_reward
from textgym.rewards.registry import spec_name
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.vocab import load_vocabulary

PROMPTS = (
    "Hello.",
    "Tell me something.",
    "What is the weather like?",
    "Write one sentence.",
)
REWARD = {"name": "length", "target": 8, "unit": "words"}


def text_task(
    prompts: str | Path | Sequence[str] = PROMPTS,
    eval_prompts: str | Path | Sequence[str] | None = None,
    tune_prompts: str | Path | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    reward: Any = None,
    gold: Any = None,
    max_new_tokens: int = 48,
    max_prompt_tokens: int = 0,
    stop: str | int | Sequence[str | int] | None = None,
    vocab_size: int | None = None,
    chat: bool | str | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    eval_columns: Mapping[str, Sequence[Any]] | None = None,
    tune_columns: Mapping[str, Sequence[Any]] | None = None,
    weights: Sequence[float] | None = None,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str | None = None,
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make a task of your own.

    ### Description
    The policy continues your prompts, in your vocabulary, for your reward.

    ### Action Space
    `Discrete(V)`: the next token, one id of the vocabulary.

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    completion so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Your reward. Without one: 1 for a completion of eight words, less by 1/8 for each word more or fewer.

    ### Starting State
    One of the prompts, drawn by `weights`.

    ### Episode End
    Terminated when the policy takes a stop id, or after `max_new_tokens` tokens. Never truncated.

    ### Arguments
        prompts: a list of texts, or the path of a .txt file (one a line) or a .jsonl file (objects with
            "prompt" and data columns).
        eval_prompts: the same, held out; None: the same prompts.
        tune_prompts: the same, held out to choose settings on; None: the same prompts, where eval_prompts is None too,
            else there is no split "tune".
        tokenizer: as `stop`, `vocab_size` and `chat`, see `textgym.vocab.load_vocabulary`. Without `stop` the
            reference's generation config says what ends an answer, before the tokenizer does.
        reward: a callable, a registered name, or {"name": ..., parameters}.
        gold: the same; None: there is no gold reward.
        max_new_tokens: tokens; the episode ends there.
        max_prompt_tokens: tokens, the chat template included; 0: as many as the longest prompt has.
        columns: data for the reward, name -> one value per prompt; they go before a file's columns.
        eval_columns, tune_columns: the same for `eval_prompts` and `tune_prompts`.
        weights: how often each training prompt is drawn, relative to the others; None: all equally often.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder; None: "builtin" with the built-in tokenizer, else
            "uniform".
        on_error: as `penalty` and `timeout`, what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    named = isinstance(reference, str | Path) and str(reference) not in ("builtin", "uniform")
    model = reference if named else None
    vocabulary = load_vocabulary(tokenizer, stop=stop, vocab_size=vocab_size, chat=chat, model=model)
    train = _split("prompts", prompts, columns, weights)
    held_out = None if eval_prompts is None else _split("eval_prompts", eval_prompts, eval_columns, None)
    tuned_on = None if tune_prompts is None else _split("tune_prompts", tune_prompts, tune_columns, None)
    return Task(
        name="Text",
        family="text",
        description="Your own prompts, tokenizer and reward.",
        prompts=own_splits(train, held_out, tuned_on),
        vocabulary=vocabulary,
        reward=make_reward(REWARD if reward is None else reward),
        gold=None if gold is None else make_reward(gold, "gold"),
        reward_name=spec_name(REWARD if reward is None else reward),
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        reference=("builtin" if tokenizer is None else "uniform") if reference is None else reference,
        beta=beta,
        gamma=gamma,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )


def _split(
    argument: str,
    source: str | Path | Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None,
    weights: Sequence[float] | None,
) -> PromptSet:
    texts, file_columns = read_prompts(source, argument)
    if not isinstance(columns, Mapping | None):
        raise TypeError(
            f"{argument.replace('prompts', 'columns')}={shown(columns)}: allowed is a dict of lists"
        )
    return prompt_set(texts, {**file_columns, **(columns or {})}, weights, argument)
