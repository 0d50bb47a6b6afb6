"""Make the built-in tasks: one assembler, the prompts of the built-in world, and shared documentation."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from string import Template
from typing import Final, ParamSpec, TypedDict, Unpack

from textgym.checks import JsonObject
from textgym.grammar import GrammarMask
from textgym.lm.reference import Reference
from textgym.prompts import PromptSet, prompt_set
from textgym.rewards import RewardSpec, make_reward
from textgym.rewards.base import reward_name
from textgym.rewards.registry import spec_name
from textgym.rewards.scorer import OnError
from textgym.task import Task
from textgym.turns import Turns
from textgym.vocab import Vocabulary, load_vocabulary
from textgym.world import REWARD_MODEL_PATH
from textgym.world.prompts import SPLITS, WorldPrompt, prompts

P = ParamSpec("P")


class Options(TypedDict, total=False):
    """The options of every task of the built-in vocabulary; `SHARED` says what they mean."""

    reward: RewardSpec | None
    max_new_tokens: int
    min_new_tokens: int
    max_prompt_tokens: int
    beta: float
    gamma: float
    reference: str | Reference | None
    on_error: OnError
    penalty: float
    timeout: float | None


DEFAULTS: Final = Options(
    reward="rules",
    max_new_tokens=40,
    min_new_tokens=0,
    max_prompt_tokens=0,
    beta=0.05,
    gamma=1.0,
    reference="builtin",
    on_error="raise",
    penalty=-1.0,
    timeout=None,
)
SHARED: Final = """
    ### Action Space
    `Discrete(V)`: the next token, one id of the built-in vocabulary (V = 1024).

    ### Observation Space
    `Dict(input_ids=Box(0, V-1, (L,), int64), attention_mask=Box(0, 1, (L,), int8))`: the prompt and the
    answer so far, padded on the right; L = `max_prompt_tokens` + `max_new_tokens`.

    ### Starting State
    A prompt of the split, all equally likely.

    ### Episode End
    Terminated when the policy takes the stop token `<|end|>`, or after `max_new_tokens` tokens. Never
    truncated.

    ### Arguments
        reward: "rules" (the gold reward), "model" (the built-in reward model; the gold reward stays the rules), or
            any reward: a callable, a registered name, or {"name": ..., parameters}.
        max_new_tokens: tokens of an answer, at least 1.
        min_new_tokens: tokens of an answer before which the stop token is not allowed.
        max_prompt_tokens: tokens; 0: as long as the longest prompt. More leaves room for prompts of your own.
        beta: reward units per nat of KL to the reference.
        gamma: discount per token, in [0, 1].
        reference: "builtin", "uniform" or a model's folder.
        on_error, penalty, timeout: what a failing reward leads to, see `textgym.rewards.Scorer`.

    ### Version History
    - v0: first version.
"""
"""Sections and arguments of the docstrings of all tasks of the built-in vocabulary."""
SECTIONS: Final = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Version History",
)


def assemble(
    name: str,
    family: str,
    prompts: Mapping[str, PromptSet],
    *,
    gold: RewardSpec | None,
    vocabulary: Vocabulary | None = None,
    grammar: str | None = None,
    turns: Turns | None = None,
    **options: Unpack[Options],
) -> Task:
    """Make a task from its prompts and rewards.

    Args:
        name, family: for people.
        prompts: the splits: "train", "eval" and perhaps "tune".
        gold: spec of the gold reward; None where there is none.
        vocabulary: the action set; None: the built-in one.
        grammar: of the action mask, as `textgym.grammar` makes it; None for no mask.
        turns: how the environment answers; None where an episode is one turn.
        options: see `SHARED`; those left out are as in `DEFAULTS`.
    Raises: ValueError or TypeError for a reward or limit that is not allowed.
    """
    vocabulary = load_vocabulary() if vocabulary is None else vocabulary
    settings: JsonObject = {**DEFAULTS, **options}
    reward = asked = settings.pop("reward")
    gold_reward = None if gold is None else make_reward(gold, "gold")
    if isinstance(asked, str) and asked == "rules" and gold_reward is not None:
        reward = gold_reward
    elif isinstance(asked, str) and asked == "model":
        # Told the stop ids, the model reads an answer that was cut off as one.
        reward = {"name": "reward_model", "model": str(REWARD_MODEL_PATH), "stop_ids": [*vocabulary.stop_ids]}
    return Task(
        name=name,
        family=family,
        prompts=prompts,
        vocabulary=vocabulary,
        reward=make_reward(reward),
        gold=gold_reward,
        reward_name=reward_name(reward) if callable(reward) else spec_name(asked),
        mask=None if grammar is None else GrammarMask(vocabulary, grammar),
        turns=turns,
        **settings,
    )


def world_prompts(
    kinds: Sequence[str] | Mapping[str, float], **columns: Callable[[WorldPrompt], object]
) -> dict[str, PromptSet]:
    """Return every split of some of the built-in world's prompts.

    Args:
        kinds: kinds of equal share, or kind -> how often it is asked, any scale.
        columns: name -> what fills the column, beside `kind`, `item` and `answer`.
    """
    splits: dict[str, PromptSet] = {}
    for split in SPLITS:
        asked = prompts(kinds, split)
        data = {name: [prompt.columns[name] for prompt in asked] for name in asked[0].columns}
        data |= {name: [fill(prompt) for prompt in asked] for name, fill in columns.items()}
        splits[split] = prompt_set([p.text for p in asked], data, [p.weight for p in asked])
    return splits


def with_options(**changed: Unpack[Options]) -> Callable[[Callable[P, Task]], Callable[P, Task]]:
    """Return a decorator that names the `Options` in a builder's signature, with `DEFAULTS` but for those changed."""
    defaults = DEFAULTS | changed

    def complete(builder: Callable[P, Task]) -> Callable[P, Task]:
        @functools.wraps(builder)
        def build(*args: P.args, **kwargs: P.kwargs) -> Task:
            kwargs.update(changed | kwargs)
            return builder(*args, **kwargs)

        own = [*inspect.signature(builder).parameters.values()][:-1]
        named = [Parameter(name, Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()]
        build.__signature__ = inspect.Signature([*own, *named])  # type: ignore[attr-defined]
        return build

    return complete


def documented(shared: str, **places: str) -> Callable[[Callable[P, Task]], Callable[P, Task]]:
    """Return a decorator that completes the docstring of a builder.

    Args:
        shared: sections ("### Title") for those that the builder's docstring lacks, and arguments that it does not
            describe.
        places: name -> text for `$name` in `shared`.
    """

    def complete(builder: Callable[P, Task]) -> Callable[P, Task]:
        if builder.__doc__:  # Python drops docstrings with -OO
            summary, own = _sections(builder.__doc__)
            _, common = _sections(Template(shared).safe_substitute(places))
            arguments = _arguments(own.get("Arguments", ""))
            arguments |= {k: v for k, v in _arguments(common["Arguments"]).items() if k not in arguments}
            every = common | own | {"Arguments": "\n".join(arguments.values())}
            text = [summary, *(f"### {title}\n{every[title]}" for title in SECTIONS)]
            builder.__doc__ = "\n\n".join(text) + "\n"
        return builder

    return complete


def _sections(docstring: str) -> tuple[str, dict[str, str]]:
    """Return what comes before the sections, and title -> text."""
    summary, *parts = re.split(r"^### (.+)\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return summary.strip(), dict(zip(parts[::2], map(str.rstrip, parts[1::2]), strict=True))


def _arguments(section: str) -> dict[str, str]:
    """Return the names of arguments -> their lines."""
    parts = re.split(r"^(?= {4}\S)", section, flags=re.MULTILINE)
    return {part.partition(":")[0].strip(): part.rstrip() for part in parts if part}
