"""What the style tasks have in common: prompts of the built-in world, and a reward that is its own gold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textgym.rewards import make_reward
from textgym.rewards.registry import spec_name
from textgym.task import Task
from textgym.vocab import load_vocabulary
from textgym.world.prompts import SPLITS
from textgym.world.tasks import reward_spec, world_prompts


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
