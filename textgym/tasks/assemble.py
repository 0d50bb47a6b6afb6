"""What tasks on the built-in world are made of: prompts by shares, a reward, its gold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textgym.grammar import GrammarMask
from textgym.prompts import PromptSet, prompt_set
from textgym.rewards import make_reward
from textgym.rewards.registry import spec_name
from textgym.task import Task
from textgym.vocab import load_vocabulary
from textgym.world import REWARD_MODEL_PATH
from textgym.world.prompts import SPLITS, WorldPrompt, prompts


def world_task(
    name: str,
    summary: str,
    *,
    shares: Mapping[str, float],
    rules: Mapping[str, Any],
    reward: Any,
    **settings: Any,
) -> Task:
    """A task of the built-in world.

    Args:
        name, summary: of the task.
        shares: kind of prompt -> how often it is asked, any scale.
        rules: spec of the gold reward, without `stop_ids`.
        reward: "rules" for the gold reward, "model" for the built-in reward model, or any reward's spec.
        settings: the limits and whatever else `Task` takes.
    """
    vocabulary = load_vocabulary()
    gold = make_reward({**rules, "stop_ids": vocabulary.stop_ids})
    return Task(
        name=name,
        family="alignment",
        description=summary,
        prompts={split: world_prompts(shares, split) for split in SPLITS},
        vocabulary=vocabulary,
        reward=gold if _is(reward, "rules") else make_reward(reward_spec(reward, vocabulary.stop_ids)),
        gold=gold,
        reward_name=spec_name(reward),
        **settings,
    )


def world_prompts(shares: Mapping[str, float], split: str) -> PromptSet:
    """The prompts of some kinds with their columns `kind`, `item` and `answer`, weighted by the shares."""
    asked = prompts(shares, split)
    columns = {name: [prompt.columns[name] for prompt in asked] for name in asked[0].columns}
    return prompt_set([prompt.text for prompt in asked], columns, [prompt.weight for prompt in asked])


def reward_spec(reward: Any, stop_ids: Sequence[int]) -> Any:
    """The spec of the built-in reward model for "model"; any other reward as it is.

    The model is told the stop ids, so that it reads an answer that was cut off as one.
    """
    if not _is(reward, "model"):
        return reward
    return {"name": "reward_model", "model": str(REWARD_MODEL_PATH), "stop_ids": list(stop_ids)}


def _is(reward: Any, name: str) -> bool:
    return isinstance(reward, str) and reward == name


def style_task(
    name: str,
    description: str,
    kinds: Sequence[str],
    gold: Mapping[str, Any],
    reward: Any,
    max_prompt_tokens: int,
    **settings: Any,
) -> Task:
    """Make a task of family "style" on the built-in world.

    Args:
        kinds: of the world's prompts, of equal share.
        gold: spec of the style's reward.
        reward: "rules" for that reward, "model" for the built-in reward model, or any other.
        max_prompt_tokens: tokens; 0: as long as the longest prompt.
        settings: the other fields of `Task`.
    """
    style, vocabulary = make_reward(gold), load_vocabulary()
    rules = isinstance(reward, str) and reward == "rules"
    return Task(
        name=name,
        family="style",
        description=description,
        prompts={split: world_prompts(dict.fromkeys(kinds, 1.0), split) for split in SPLITS},
        vocabulary=vocabulary,
        reward=style if rules else make_reward(reward_spec(reward, vocabulary.stop_ids)),
        gold=style,
        reward_name=str(gold["name"]) if rules else spec_name(reward),
        max_prompt_tokens=max_prompt_tokens,
        **settings,
    )


FAMILY = "verifiable"


def verifiable_task(
    name: str,
    description: str,
    splits: Mapping[str, PromptSet],
    gold: Mapping[str, Any],
    reward: Any,
    *,
    grammar: str | None = None,
    **settings: Any,
) -> Task:
    """Make a task of family "verifiable" with the built-in vocabulary.

    Args:
        splits: "train", "eval" and perhaps "tune" -> prompts.
        gold: spec of the task's own reward.
        reward: "rules" for that reward, or any other.
        grammar: of the mask; None for none.
        settings: the other fields of `Task`.
    """
    vocabulary = load_vocabulary()
    check = make_reward(gold)
    by_rules = isinstance(reward, str) and reward == "rules"
    return Task(
        name=name,
        family=FAMILY,
        description=description,
        prompts=splits,
        vocabulary=vocabulary,
        reward=check if by_rules else make_reward(reward),
        gold=check,
        reward_name=str(gold["name"]) if by_rules else spec_name(reward),
        mask=None if grammar is None else GrammarMask(vocabulary, grammar),
        **settings,
    )


def verifiable_prompts(
    kinds: Sequence[str] | Mapping[str, float], column: str, value: Callable[[WorldPrompt], Any]
) -> dict[str, PromptSet]:
    """The splits of some of the world's prompts, with the column `item` and one that `value` fills."""
    splits: dict[str, PromptSet] = {}
    for split in SPLITS:
        asked = prompts(kinds, split)
        columns = {"item": [prompt.item for prompt in asked], column: [value(prompt) for prompt in asked]}
        splits[split] = prompt_set([p.text for p in asked], columns, [p.weight for p in asked])
    return splits
