"""TextGym: text generation as a Markov decision process, as Gymnasium environments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from textgym.registration import register_all, register_task

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


register_all()
