"""Json: answer in JSON that a schema allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from textgym.checks import check_flag
from textgym.grammar import json_grammar
from textgym.prompts import PromptSet, own_splits, prompt_set, read_prompts
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.tasks.assemble import verifiable_prompts as world_prompts
from textgym.tasks.assemble import verifiable_task
from textgym.world.prompts import WorldPrompt

SUMMARY: Final = "Answer in JSON that a schema allows, under a grammar mask."
SHARES: Final = {"fact": 0.25, "howto": 0.25, "sum": 0.25, "greeting": 0.25}
"""Kind of prompt -> how often it is asked."""
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "kind": {"enum": list(SHARES)},
        "numbers": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["kind", "numbers"],
    "additionalProperties": False,
}
"""Of the default task: {"kind":"sum","numbers":2}."""
VALID: Final = 0.2
"""Pay for valid JSON where the values count too."""


def json_task(
    reward: Any = "rules",
    *,
    schema: Mapping[str, Any] = SCHEMA,
    mask: bool = True,
    prompts: str | Path | list[str] | None = None,
    eval_prompts: str | Path | list[str] | None = None,
    tune_prompts: str | Path | list[str] | None = None,
    max_new_tokens: int = 32,
    max_prompt_tokens: int = 0,
    beta: float = 0.05,
    gamma: float = 1.0,
    reference: str = "builtin",
    on_error: OnError = "raise",
    penalty: float = -1.0,
    timeout: float | None = None,
) -> Task:
    """Make the task Json.

    ### Description
    The policy fills in a form about what a user of the built-in world says: what kind of request it is (of a
    fact, how to do something, a sum, a greeting), and how many numbers are in it. Under the mask every answer is valid,
    unless it is cut off; what is to be learnt is what to write into it. The reference model has never read
    JSON, so it guesses; without the mask it writes none at all. Prompts of the `eval` split ask about other
    things than those of `train`, in other phrasings.

    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).
    With `mask` the action mask allows every token that compact JSON of the schema can go on with, and no
    other: no white space outside of strings, keys in the schema's order (`textgym.grammar.json_grammar`).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 0.2 for JSON that is valid (a fifth of it for JSON that is
    not), 0.8 times the share of right values. See `textgym.rewards.JsonSchema` and
    `textgym.rewards.JsonValues`. Prompts without a column `value` pay 1 for valid JSON, 0.2 for other JSON. The
    gold reward is the same.

    ### Starting State
    A prompt of the split: each kind a quarter of the time; within a kind all are equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules", or any reward: a callable, a registered name, or {"name": ..., parameters}.
        schema: JSON Schema, Draft 2020-12; it refers to nothing outside of it.
        mask: whether the mask is on; a schema that cannot be made a grammar needs mask=False.
        prompts: for a schema of your own: a list of texts, or the path of a .txt or .jsonl file, see
            `textgym.prompts.read_prompts`; the column `value` may hold the right object of each. None: the
            world's.
        eval_prompts: the same, held out; None: the same prompts.
        tune_prompts: the same, held out to choose settings on; None: the same prompts, where eval_prompts is None too,
            else there is no split "tune".
        max_new_tokens: tokens of an answer, at least 1.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
    """
    check_flag("mask", mask)
    splits = (
        world_prompts(SHARES, "value", _value)
        if prompts is None
        else _own(prompts, eval_prompts, tune_prompts)
    )
    own_schema = not isinstance(schema, dict) or schema != SCHEMA
    if own_schema and prompts is None:
        splits = {split: _without_values(asked) for split, asked in splits.items()}
    return verifiable_task(
        "Json",
        SUMMARY,
        splits,
        _check(schema, values="value" in splits["train"].columns),
        reward,
        grammar=json_grammar(schema) if mask else None,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        beta=beta,
        gamma=gamma,
        reference=reference,
        on_error=on_error,
        penalty=penalty,
        timeout=timeout,
    )


def _value(prompt: WorldPrompt) -> dict[str, Any]:
    words = prompt.text.rstrip(".!?").split()
    return {"kind": prompt.kind, "numbers": sum(word.isdigit() for word in words)}


def _own(
    prompts: str | Path | list[str],
    eval_prompts: str | Path | list[str] | None,
    tune_prompts: str | Path | list[str] | None,
) -> dict[str, PromptSet]:
    held_out = [
        None if own is None else prompt_set(*read_prompts(own, name), argument=name)
        for name, own in (("eval_prompts", eval_prompts), ("tune_prompts", tune_prompts))
    ]
    return own_splits(prompt_set(*read_prompts(prompts)), *held_out)


def _without_values(asked: PromptSet) -> PromptSet:
    columns = {name: values for name, values in asked.columns.items() if name != "value"}
    return prompt_set(asked.texts, columns, asked.weights)


def _check(schema: Mapping[str, Any], values: bool) -> dict[str, Any]:
    valid = {"name": "json_schema", "schema": schema}
    if not values:
        return valid
    rewards = {"schema": valid, "values": {"name": "json_values"}}
    return {"name": "weighted", "rewards": rewards, "weights": {"schema": VALID, "values": 1.0 - VALID}}
