"""Text: bring your own prompts, tokenizer and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Unpack

from textgym.checks import check_count, shown
from textgym.codecs.sources import model_tokenizer
from textgym.prompts import Columns, Overlong, PromptSource, fit_prompts, own_splits
from textgym.registry import RESPONDERS
from textgym.rewards import RewardSpec
from textgym.rewards.registry import make
from textgym.task import Task
from textgym.tasks.assemble import SHARED, Options, assemble, documented, with_options
from textgym.turns import ReplyFunction, TextResponder, Turns
from textgym.vocab import Vocabulary, load_vocabulary

PROMPTS: Final = ("Hello.", "Tell me something.", "What is the weather like?", "Write one sentence.")
REWARD: Final = {"name": "length", "target": 8, "unit": "words"}


@documented(SHARED)
@with_options(reward=None, max_new_tokens=48, reference=None)
def text_task(
    prompts: PromptSource = PROMPTS,
    eval_prompts: PromptSource | None = None,
    tune_prompts: PromptSource | None = None,
    *,
    tokenizer: Any = None,
    gold: RewardSpec | None = None,
    stop: str | int | Sequence[str | int] | None = None,
    vocab_size: int | None = None,
    chat: bool | str | None = None,
    columns: Columns | None = None,
    eval_columns: Columns | None = None,
    tune_columns: Columns | None = None,
    weights: Sequence[float] | None = None,
    overlong: Overlong = "refuse",
    responder: str | Mapping[str, object] | ReplyFunction | None = None,
    turns: int = 2,
    turn_tokens: int = 48,
    reply_tokens: int = 64,
    **options: Unpack[Options],
) -> Task:
    """Make a task of your own.

    ### Description
    The policy continues your prompts, in your vocabulary, for your reward.

    ### Action Space
    `Discrete(V)`: the next token, one id of the vocabulary.

    ### Rewards
    Your reward. Without one: 1 for a completion of eight words, less by 1/8 for each word more or fewer.

    ### Starting State
    One of the prompts, drawn by `weights`.

    ### Episode End
    Terminated when the policy takes a stop id, or after `max_new_tokens` tokens. Never truncated.

    ### Arguments
        prompts: a list of texts or of lists of messages, the path of a .txt file (one a line), or rows with "prompt", a
            text or a list of messages, and data columns: a .jsonl, .csv, .tsv or .parquet file, a folder of `datasets`
            or a hub id, see `textgym.rows`.
        eval_prompts: the same, held out; None: the same prompts.
        tune_prompts: the same, held out to choose settings on; None: the same prompts, where eval_prompts is None too,
            else there is no split "tune".
        tokenizer: as `stop`, `vocab_size` and `chat`, see `textgym.vocab.load_vocabulary`; None: the reference's,
            where that is a model with one, else the built-in one. Without `stop` the reference's generation config
            says what ends an answer, before the tokenizer does; without `vocab_size` its config the number of tokens.
        reward: a callable, a registered name, or {"name": ..., parameters}.
        gold: the same; None: there is no gold reward.
        max_prompt_tokens: tokens, the chat template included; 0: as many as the longest prompt has.
        columns: data for the reward, name -> one value per prompt; they go before a file's columns.
        eval_columns, tune_columns: the same for `eval_prompts` and `tune_prompts`.
        weights: how often each training prompt is drawn, relative to the others; None: all equally often.
        overlong: what becomes of prompts of more than max_prompt_tokens: "refuse" is an error, "drop" leaves them out,
            "cut" leaves out their first turns and characters.
        responder: a function that answers the policy's turns, from B conversations (lists of messages) to B texts, None
            where the episode ends, see `textgym.turns.TextResponder`; or, as of a reward, a registered name,
            "module:function" or {"name": ..., parameters}. None: an episode is one turn.
        turns: with a responder: turns of the policy.
        turn_tokens: with a responder: the budget of a turn, in the place of `max_new_tokens`.
        reply_tokens: with a responder: the most tokens of a reply, what a chat template writes around it included.
        reference: "builtin", "uniform" or a model's folder; None: "builtin" with the built-in tokenizer, else
            "uniform".
    """
    reference, model = options["reference"], None
    if isinstance(reference, str | Path) and str(reference) not in ("builtin", "uniform"):
        model = reference
        try:
            tokenizer = model_tokenizer(model) if tokenizer is None else tokenizer
        except FileNotFoundError as error:
            raise FileNotFoundError(f"reference={shown(str(model), 300)}: {error}") from error
    if options["reward"] is None:
        options["reward"] = REWARD
    if reference is None:
        options["reference"] = "builtin" if tokenizer is None else "uniform"
    vocabulary = load_vocabulary(tokenizer, stop=stop, vocab_size=vocab_size, chat=chat, model=model)
    spoken = None
    if responder is not None:
        spoken = _turns(vocabulary, responder, turns, turn_tokens, reply_tokens)
        options["max_new_tokens"] = spoken.room
    splits = own_splits(prompts, eval_prompts, tune_prompts, columns, eval_columns, tune_columns, weights)
    return assemble(
        "Text",
        "text",
        fit_prompts(
            splits, lambda text: len(vocabulary.encode_prompt(text)), options.get("max_prompt_tokens", 0), overlong
        ),
        gold=gold,
        vocabulary=vocabulary,
        turns=spoken,
        **options,
    )


def _turns(
    vocabulary: Vocabulary,
    responder: str | Mapping[str, object] | ReplyFunction,
    turns: int,
    turn_tokens: int,
    reply_tokens: int,
) -> Turns:
    function: ReplyFunction = make(RESPONDERS, responder, "responder")
    check_count("turns", turns)
    check_count("turn_tokens", turn_tokens)
    return Turns(
        TextResponder(vocabulary, function, reply_tokens),
        turns,
        turn_tokens,
        reply_tokens,
        _closing(vocabulary, getattr(function, "closing", ())),
        farewell=False,
    )


def _closing(vocabulary: Vocabulary, tags: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of the tags that are one ordinary token, and so end a turn."""
    codec = vocabulary.codec
    ids = [codec.token_id(tag) for tag in tags]
    return tuple(i for i in ids if i is not None and i not in codec.special_ids)
