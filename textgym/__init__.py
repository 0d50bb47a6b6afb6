"""TextGym: text generation as a Markov decision process, as Gymnasium environments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from textgym.registry import TASKS, Factory, TaskEntry

if TYPE_CHECKING:
    from textgym.env import TokenEnv
    from textgym.prompts import prompt_set
    from textgym.state import Prompt, TokenState
    from textgym.task import Task, make_task, task_names
    from textgym.vector import TokenVectorEnv
    from textgym.vocab import Vocabulary, load_vocabulary

_MODULES = {
    "TokenEnv": "env",
    "TokenVectorEnv": "vector",
    "Prompt": "state",
    "TokenState": "state",
    "Task": "task",
    "make_task": "task",
    "prompt_set": "prompts",
    "task_names": "task",
    "Vocabulary": "vocab",
    "load_vocabulary": "vocab",
}
__all__ = [
    "Prompt",
    "Task",
    "TokenEnv",
    "TokenState",
    "TokenVectorEnv",
    "Vocabulary",
    "load_vocabulary",
    "make_task",
    "prompt_set",
    "register_task",
    "task_names",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'textgym' has no attribute {name!r}")
    return getattr(import_module(f"textgym.{_MODULES[name]}"), name)


def register_task(
    name: str, builder: Factory | str, version: int = 0, family: str = "text", summary: str = ""
) -> TaskEntry:
    """Register a task of your own under a name and an environment id.

    Args:
        name: as in `textgym/NAME-vN`, or NAMESPACE/NAME for the id `NAMESPACE/NAME-vN`.
        builder: a function from the task's options to a `Task`, or "module:function", imported when first needed.
        version: N; increase it when reward, observation or termination changes. The old version can stay registered.
        family, summary: descriptions for people.
    Returns: the entry in the registry.
    Raises: ValueError if name and version are taken by another builder, or the name is not made of letters and digits.
    """
    entry = TASKS.add(TaskEntry(name, builder, summary, version=version, family=family))
    _register(entry)
    return entry


def _register(entry: TaskEntry) -> None:
    """Register the environments of a task with Gymnasium, once."""
    if entry.id not in gym.registry:
        gym.register(
            id=entry.id,
            entry_point="textgym.env:TokenEnv",
            vector_entry_point="textgym.vector:TokenVectorEnv",
            order_enforce=False,  # TokenEnv raises ResetNeeded itself
            disable_env_checker=True,  # it is the same class for every task, and checked by the tests
            kwargs={"task": entry.key},
        )


for _name in TASKS:  # those that come with the package, and those of installed plug-ins
    _register(TASKS.entry(_name))
