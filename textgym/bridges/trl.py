"""Tasks in TRL: the prompts as columns of a data set, and turns as an environment of its GRPOTrainer.

A task's reward needs no bridge: `FromMessages(task.reward)` is one of TRL's reward functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from textgym.bridges.spoken import SpokenEpisodes
from textgym.checks import check_count, check_number
from textgym.codecs.chat import read_dialogue
from textgym.env import TokenEnv
from textgym.task import Task


def trl_columns(task: Task, split: str = "train") -> dict[str, list[object]]:
    """Return the prompts of a split as columns, for `datasets.Dataset.from_dict`.

    Args:
        task: the task. split: one of its splits.
    Returns: "prompt", texts, or lists of messages where the task has a chat template or turns; "prompt_index", the
        prompt's place in the split; and the split's data columns.
    Raises: ValueError for an unknown split.
    """
    prompts = task.prompt_set(split)
    messages = task.turns is not None or task.vocabulary.conversation is not None
    columns: dict[str, list[object]] = {
        "prompt": [read_dialogue(text) if messages else text for text in prompts.texts],
        "prompt_index": list(range(len(prompts.texts))),
    }
    return columns | {name: list(values) for name, values in prompts.columns.items()}


class TurnsEnvironment:
    """A task with turns as TRL's trainers know an environment: its method `say` is a tool that the model calls.

    Args:
        task: the task. split: of the prompts. seed: of what is hidden, and of noise.
        unfinished: reward units of an episode that the model leaves before its end.
    Raises: ValueError for a task without turns.
    """

    def __init__(self, task: Task, split: str, seed: int, unfinished: float = 0.0) -> None:
        if task.turns is None:
            raise ValueError(
                f"task {task.name!r}: it has no turns; allowed is one with turns, for any other give its prompts and "
                "FromMessages(task.reward) to the trainer"
            )
        self._episodes = SpokenEpisodes(TokenEnv(task, split=split))
        self._seed: int | None = seed
        self._unfinished = unfinished

    def reset(self, prompt_index: int, **row: object) -> None:
        """Start an episode; the prompt stands in the data set.

        Args:
            prompt_index: the prompt's place in the split. row: the other columns of the data set, left alone.
        Raises: ValueError for a place that is not there.
        """
        self._episodes.begin(self._seed, {"prompt_index": prompt_index})
        self._seed = None

    def say(self, text: str) -> str:
        """Say something to the user, and hear the answer.

        Args:
            text: What you say.

        Returns:
            The answer of the user.
        """
        self._episodes.say(text)
        return self._episodes.text

    def get_reward(self) -> float:
        """Return the reward of the episode, reward units."""
        return self._episodes.reward if self._episodes.ended else self._unfinished


def environment_factory(
    task: Task, split: str = "train", seed: int = 0, unfinished: float = 0.0
) -> Callable[[], TurnsEnvironment]:
    """Return what TRL's GRPOTrainer takes as `environment_factory`, for a task with turns.

    Args:
        task: the task. split: the split that the data set has, see `trl_columns`.
        seed: of what the environments hide; each environment draws a seed of its own from it.
        unfinished: reward units of an episode that the model leaves before its end.
    Returns: a function that makes an environment.
    Raises: ValueError for an unknown split or a number that is not allowed.
    """
    task.prompt_set(split)
    unfinished = check_number("unfinished", unfinished, unit="reward units")
    seeds = np.random.default_rng(check_count("seed", seed, 0))
    return lambda: TurnsEnvironment(task, split, int(seeds.integers(2**31)), unfinished)
