"""What the tasks of the built-in world have in common: prompts by shares, rules as gold, and a choice of reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textgym.prompts import PromptSet, prompt_set
from textgym.rewards import make_reward
from textgym.rewards.registry import spec_name
from textgym.task import Task
from textgym.vocab import load_vocabulary
from textgym.world import REWARD_MODEL_PATH
from textgym.world.prompts import SPLITS, prompts


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
