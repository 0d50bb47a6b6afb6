"""What a chat template writes before and after a user's message."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textgym.codecs import rendering

# Letters only, so that a template which trims or escapes its messages leaves it as it is.
_SENTINEL = "TextGymPromptTextGym"
_SECONDS = 60.0  # of wall time, which a busy machine needs more of than the CPU time that is allowed


def split_format(chat: str) -> tuple[str, str]:
    """Split "before{prompt}after". Raises: ValueError unless {prompt} stands in it exactly once."""
    before, *after = chat.split("{prompt}")
    if len(after) != 1:
        raise ValueError(
            f"chat={chat!r}: {{prompt}} must stand in it once, as in '<|user|>{{prompt}}<|end|>'"
        )
    return before, after[0]


def split_rendered(render: Callable[[str], str]) -> tuple[str, str]:
    """Split what `render` makes of a message into the text before and after that message.

    Raises: ValueError if the message does not come out exactly once.
    """
    before, *after = render(_SENTINEL).split(_SENTINEL)
    if len(after) != 1:
        raise ValueError(
            f"chat: the chat template writes the user's message {len(after)} times, allowed is once"
        )
    return before, after[0]


def render_jinja(template: str, variables: Mapping[str, Any]) -> Callable[[str], str]:
    """A function from a user's message to the conversation that asks for an answer to it.

    The template runs in a process of its own, as it may come from anybody: one that takes more than 5 seconds of CPU
    time, or too much memory, is refused.

    Args:
        template: a Jinja chat template as Hugging Face writes them.
        variables: bos_token, eos_token and what else the template may name; JSON values.
    Raises: ModuleNotFoundError without jinja2; the function: ValueError if the template cannot be rendered.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ModuleNotFoundError(
            "chat: reading a chat template needs jinja2 (pip install jinja2); "
            "without it give chat='before{prompt}after'"
        )
    given = json.dumps(dict(variables), sort_keys=True)
    return lambda text: _rendered(template, given, text)


@functools.lru_cache(maxsize=1024)
def _rendered(template: str, variables: str, text: str) -> str:
    request = json.dumps({"template": template, "variables": json.loads(variables), "text": text})
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(Path(rendering.__file__))],
            input=request,
            capture_output=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
            timeout=_SECONDS,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # killed: it left no answer
        answer = {"error": f"it was ended after {rendering.CPU_SECONDS} s"}
    if "error" in answer:
        raise ValueError(f"chat: the chat template cannot be rendered: {answer['error']}")
    return str(answer["text"])
