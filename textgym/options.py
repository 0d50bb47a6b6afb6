"""Reading the arguments that environments take: tasks, prompts chosen in reset, actions."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

from gymnasium.error import InvalidAction

from textgym.messages import did_you_mean
from textgym.state import Prompt
from textgym.task import Task, make_task

RESET_OPTIONS = ("prompt", "prompt_index")


def find_task(task: str | Task, options: dict[str, Any]) -> Task:
    """The task itself, or the one of this name built with these options.

    Raises: TypeError for options beside a task object, or of no use to the named task; ValueError for an
    unknown name.
    """
    if isinstance(task, str):
        return make_task(task, **options)
    if not isinstance(task, Task):
        raise TypeError(f"task={task!r:.80}: allowed are a task's name and a textgym.task.Task")
    if options:
        raise TypeError(
            f"{next(iter(options))!r}: a Task object takes no further options, a task's name does"
        )
    return task


def check_options(options: Any, allowed: Collection[str] = RESET_OPTIONS) -> dict[str, Any]:
    """A copy of the options of `reset`.

    Raises: TypeError if they are no dict; ValueError for an unknown one, or a prompt chosen twice.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise TypeError(f"options={options!r:.80}: allowed are None and a dict with {', '.join(allowed)}")
    for name in options:
        if name not in allowed:
            raise ValueError(
                f"option {name!r}: not one of {', '.join(allowed)}.{did_you_mean(name, allowed)}"
            )
    if "prompt" in options and "prompt_index" in options:
        raise ValueError("options: 'prompt' and 'prompt_index' both choose a prompt, allowed is one of them")
    return dict(options)


def chosen_prompt(task: Task, split: str, option: str, value: Any) -> Prompt:
    """The prompt that an option of `reset` asks for. Raises: TypeError or ValueError, naming the option."""
    if option == "prompt":
        return task.prompt(value, split)
    prompts = task.encoded(split)
    try:
        index = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        index = -1
    if not 0 <= index < len(prompts):
        raise ValueError(
            f"option prompt_index={value!r}: not an int in 0..{len(prompts) - 1} "
            f"(the {split} split has {len(prompts)} prompts)"
        )
    return prompts[index]


def invalid_action(action: Any, size: int) -> InvalidAction:
    """The error for an action that is no token id."""
    return InvalidAction(
        f"action {action!r:.80}: not a token id in 0..{size - 1} (the vocabulary has {size} tokens)"
    )
