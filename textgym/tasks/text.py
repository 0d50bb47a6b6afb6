"""Text: bring your own prompts, tokenizer and reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from textgym.prompts import Columns, PromptSource, own_splits
from textgym.rewards import RewardSpec
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import assemble
from textgym.vocab import load_vocabulary

PROMPTS: Final = ("Hello.", "Tell me something.", "What is the weather like?", "Write one sentence.")
REWARD: Final = {"name": "length", "target": 8, "unit": "words"}


def text_task(
    prompts: PromptSource = PROMPTS,
    eval_prompts: PromptSource | None = None,
    tune_prompts: PromptSource | None = None,
    *,
    tokenizer: Any = None,
    reward: RewardSpec | None = None,
    gold: RewardSpec | None = None,
    max_new_tokens: int = 48,
    max_prompt_tokens: int = 0,
    stop: str | int | Sequence[str | int] | None = None,
    vocab_size: int | None = None,
    chat: bool | str | None = None,
    columns: Columns | None = None,
    eval_columns: Columns | None = None,
    tune_columns: Columns | None = None,
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
    if reference is None:
        reference = "builtin" if tokenizer is None else "uniform"
    return assemble(
        "Text",
        "text",
        own_splits(prompts, eval_prompts, tune_prompts, columns, eval_columns, tune_columns, weights),
        gold=gold,
        vocabulary=load_vocabulary(tokenizer, stop=stop, vocab_size=vocab_size, chat=chat, model=model),
        reward=REWARD if reward is None else reward,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )
