"""Verifiable: answers that a program can check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Unpack

from textgym.checks import check_flag, shown
from textgym.grammar import json_grammar, regex_grammar
from textgym.prompts import PromptSet, PromptSource, own_splits, prompt_set, refuse_held_out
from textgym.rewards.patterns import Mode as Matching
from textgym.rewards.patterns import template_regex
from textgym.rewards.rules import Mode as Counting
from textgym.task import Task
from textgym.tasks.assemble import SHARED, Options, assemble, documented, with_options, world_prompts
from textgym.world.prompts import SPLITS, WorldPrompt, items

FAMILY: Final = "verifiable"
TEMPLATE: Final = "Of course! {answer} Hope that helps!"
POLITE_END: Final = r".+[.!] (Hope that helps|Have a nice day)!"
"""A sentence, and a polite end."""
PHRASINGS: Final = {
    "train": ("Tell me about {a} and {b}.", "Tell me about {b} and {a}."),
    "eval": ("Please tell me about {a} and {b}.", "Please tell me about {b} and {a}."),
}
"""Of the prompts of Keywords."""
SHARES: Final = {"fact": 0.25, "howto": 0.25, "sum": 0.25, "greeting": 0.25}
"""Kind of prompt -> how often Json asks it."""
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "kind": {"enum": list(SHARES)},
        "numbers": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["kind", "numbers"],
    "additionalProperties": False,
}
"""Of Json by default: {"kind":"sum","numbers":2}."""
VALID: Final = 0.2
"""Pay of Json for valid JSON where the values count too."""


@documented(SHARED)
@with_options(max_new_tokens=24)
def arithmetic_task(**options: Unpack[Options]) -> Task:
    """Make the task Arithmetic.

    ### Description
    A user of the built-in world asks for the sum of two numbers from 1 to 10. The policy answers as it likes;
    what counts is the last number that it writes. The reference model is right about half of the time.
    Prompts of the `eval` split ask for other sums than those of `train`, in other phrasings.

    ### Rewards
    Paid once, at the end of the episode: 1 if the last number of the answer is the sum, else 0. See
    `textgym.rewards.Arithmetic`. The gold reward is the same.
    """
    prompts = world_prompts(["sum"], answer=lambda prompt: prompt.columns["answer"][0])
    return assemble("Arithmetic", FAMILY, prompts, gold="arithmetic", **options)


@documented(SHARED)
@with_options(max_new_tokens=24)
def keywords_task(*, mode: Counting = "all", **options: Unpack[Options]) -> Task:
    """Make the task Keywords.

    ### Description
    A user names two words that belong together in the built-in world, as an animal and its food, in either
    order. The policy writes a text that uses both. Nobody asked the reference model anything like it before:
    it uses both words one time in four. Prompts of the `eval` split name other words than those of `train`, in
    another phrasing.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 1 if both words are in the answer, as whole words; or, with
    mode="share", the share of them that is. See `textgym.rewards.Keywords`. The gold reward is the same.

    ### Arguments
        mode: "all" or "share".
    """
    gold = {"name": "keywords", "column": "words", "mode": mode}
    prompts: dict[str, PromptSet] = {split: _pairs(split) for split in SPLITS}
    return assemble("Keywords", FAMILY, prompts, gold=gold, **options)


def _pairs(split: str) -> PromptSet:
    """Return the prompts of Keywords, with the column `words`."""
    facts = [item for item in items("fact") if item.held_out == (split != "train")]
    phrasings = PHRASINGS["eval" if split == "eval" else "train"]
    asked = [(phrasing, [fact.subject, *fact.answer]) for fact in facts for phrasing in phrasings]
    texts = [phrasing.format(a=words[0], b=words[1]) for phrasing, words in asked]
    return prompt_set(texts, {"words": [words for _, words in asked]})


@documented(SHARED)
@with_options(max_new_tokens=32)
def format_task(*, template: str = TEMPLATE, constrain: bool = False, **options: Unpack[Options]) -> Task:
    """Make the task Format.

    ### Description
    A user asks for a fact of the built-in world. The policy answers in a template: fixed text with slots for
    its own. The reference model knows the default template's parts, but hardly ever uses both of them.
    Prompts of the `eval` split ask about other towns, people and animals than those of `train`, in other
    phrasings.

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 0.6 for the template, of which up to half is paid for some
    of its parts; 0.4 for the right answer, anywhere in the text. See `textgym.rewards.Format` and
    `textgym.rewards.Keywords`. The gold reward is the same.

    ### Arguments
        template: fixed text with slots in braces, as "<think>{thought}</think><answer>{answer}</answer>".
        constrain: whether the mask leaves only tokens that keep to the template.
    """
    check_flag("constrain", constrain)
    rewards = {
        "format": {"name": "format", "template": template, "partial": 0.5},
        "answer": {"name": "keywords", "column": "answer"},
    }
    return assemble(
        "Format",
        FAMILY,
        world_prompts(["fact"]),
        gold={"name": "weighted", "rewards": rewards, "weights": {"format": 0.6, "answer": 0.4}},
        grammar=regex_grammar(template_regex(template)) if constrain else None,
        **options,
    )


@documented(SHARED)
@with_options(max_new_tokens=32)
def pattern_task(
    *, pattern: str = POLITE_END, mode: Matching = "full", constrain: bool = False, **options: Unpack[Options]
) -> Task:
    """Make the task Pattern.

    ### Description
    A user asks about a fact of the built-in world, or how to do something. The policy answers so that the answer
    matches a regular expression; the default one asks for a polite end, with which the reference model ends
    one answer in fifty. Prompts of the `eval` split ask about other things than those of `train`, in other
    phrasings.

    ### Rewards
    Paid once, at the end of the episode: 1 for an answer that matches, else 0. See `textgym.rewards.Pattern`. The
    gold reward is the same.

    ### Starting State
    A prompt of the split: a fact or a how-to, each half of the time; within a kind all are equally likely.

    ### Arguments
        pattern: a regular expression of re2.
        mode: "full": the whole answer has to match; "search": some part of it.
        constrain: whether the mask leaves only tokens with which the whole answer can still match (mode
            "full", a pattern without anchors and word boundaries).
    """
    check_flag("constrain", constrain)
    if constrain and not (isinstance(mode, str) and mode == "full"):
        raise ValueError(f"constrain={constrain}: with mode='full' only, got mode={shown(mode)}")
    return assemble(
        "Pattern",
        FAMILY,
        world_prompts(["fact", "howto"]),
        gold={"name": "pattern", "pattern": pattern, "mode": mode},
        grammar=regex_grammar(pattern) if constrain else None,
        **options,
    )


@documented(SHARED)
@with_options(max_new_tokens=32)
def json_task(
    *,
    schema: Mapping[str, Any] = SCHEMA,
    mask: bool = True,
    prompts: PromptSource | None = None,
    eval_prompts: PromptSource | None = None,
    tune_prompts: PromptSource | None = None,
    **options: Unpack[Options],
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

    ### Rewards
    Paid once, at the end of the episode, in [0, 1]: 0.2 for JSON that is valid (a fifth of it for JSON that is
    not), 0.8 times the share of right values. See `textgym.rewards.JsonSchema` and
    `textgym.rewards.JsonValues`. Prompts without a column `value` pay 1 for valid JSON, 0.2 for other JSON. The
    gold reward is the same.

    ### Starting State
    A prompt of the split: each kind a quarter of the time; within a kind all are equally likely.

    ### Arguments
        schema: JSON Schema, Draft 2020-12; it refers to nothing outside of it.
        mask: whether the mask is on; a schema that cannot be made a grammar needs mask=False.
        prompts: for a schema of your own: a list of texts, or the path of a .txt or .jsonl file, see
            `textgym.prompts.read_prompts`; the column `value` may hold the right object of each. None: the world's.
        eval_prompts: the same, held out; None: the same prompts.
        tune_prompts: the same, held out to choose settings on; None: the same prompts, where eval_prompts is None too,
            else there is no split "tune".
    """
    check_flag("mask", mask)
    if prompts is not None:
        splits = own_splits(prompts, eval_prompts, tune_prompts)
    else:
        refuse_held_out(eval_prompts=eval_prompts, tune_prompts=tune_prompts)
        own = isinstance(schema, dict) and schema == SCHEMA
        splits = world_prompts(SHARES, value=_value) if own else world_prompts(SHARES)
    gold: dict[str, Any] = {"name": "json_schema", "schema": schema}
    valued = [split for split in splits if "value" in splits[split].columns]
    if len(valued) not in (0, len(splits)):
        without = next(split for split in splits if split not in valued)
        raise ValueError(f"prompts: those of {valued[0]} have the column 'value', those of {without} do not")
    if valued:
        rewards = {"schema": gold, "values": {"name": "json_values"}}
        gold = {"name": "weighted", "rewards": rewards, "weights": {"schema": VALID, "values": 1.0 - VALID}}
    return assemble("Json", FAMILY, splits, gold=gold, grammar=json_grammar(schema) if mask else None, **options)


def _value(prompt: WorldPrompt) -> dict[str, object]:
    """Return the object that the default schema asks for."""
    words = prompt.text.rstrip(".!?").split()
    return {"kind": prompt.kind, "numbers": sum(word.isdigit() for word in words)}
