"""What a chat template writes before and after a user's message."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

# Letters only, so that a template which trims or escapes its messages leaves it as it is.
_SENTINEL = "TextGymPromptTextGym"


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

    Args:
        template: a Jinja chat template as Hugging Face writes them.
        variables: bos_token, eos_token and what else the template may name.
    Raises: ModuleNotFoundError without jinja2.
    """
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "chat: reading a chat template needs jinja2 (pip install jinja2); "
            "without it give chat='before{prompt}after'"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=_refuse, strftime_now=datetime.datetime.now().strftime)
    compiled = environment.from_string(template)

    def render(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return compiled.render(messages=messages, add_generation_prompt=True, **variables)

    return render


def _refuse(message: str) -> str:
    raise ValueError(f"chat: the chat template refuses a conversation of one user message: {message}")
