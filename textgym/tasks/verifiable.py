"""What the verifiable tasks have in common: prompts of the built-in world, and a check that is its own gold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textgym.grammar import GrammarMask
from textgym.prompts import PromptSet, prompt_set
from textgym.rewards import make_reward
from textgym.rewards.registry import spec_name
from textgym.task import Task
from textgym.vocab import load_vocabulary
from textgym.world.prompts import SPLITS, WorldPrompt, prompts

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


def world_prompts(
    kinds: Sequence[str] | Mapping[str, float], column: str, value: Callable[[WorldPrompt], Any]
) -> dict[str, PromptSet]:
    """The splits of some of the world's prompts, with the column `item` and one that `value` fills."""
    splits: dict[str, PromptSet] = {}
    for split in SPLITS:
        asked = prompts(kinds, split)
        columns = {"item": [prompt.item for prompt in asked], column: [value(prompt) for prompt in asked]}
        splits[split] = prompt_set([p.text for p in asked], columns, [p.weight for p in asked])
    return splits
