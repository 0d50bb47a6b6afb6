"""Chat templates: the text of a conversation, in which the user's words stand within the template's."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

MASK = "\ue000"
"""Stands for a character that the template did not write; templates leave private-use characters as they are."""


class Template(Protocol):
    """What writes conversations. Instances can be pickled."""

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """The conversation that asks for an answer to `prompt`; with `completion` the one that has the answer."""


@dataclass(frozen=True)
class FormatTemplate:
    """The template "before{prompt}after"; the completion stands behind it."""

    before: str
    after: str

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """See `Template`."""
        return f"{self.before}{prompt}{self.after}{completion or ''}"


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja chat template as Hugging Face writes them.

    Args:
        source: the template.
        variables: bos_token, eos_token and what else the template may name.
    """

    source: str
    variables: Mapping[str, Any]

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """See `Template`. Raises: ValueError for a template that cannot be read or refuses the conversation;
        ModuleNotFoundError without jinja2.
        """
        messages = [{"role": "user", "content": prompt}]
        if completion is not None:
            messages.append({"role": "assistant", "content": completion})
        text: str = _compile(self.source)(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=completion is None,
            **self.variables,
        )
        return text


def parse_format(chat: str) -> FormatTemplate:
    """Read "before{prompt}after". Raises: ValueError unless {prompt} stands in it exactly once."""
    before, *after = chat.split("{prompt}")
    if len(after) != 1:
        raise ValueError(
            f"chat={chat!r}: {{prompt}} must stand in it once, as in '<|user|>{{prompt}}<|end|>'"
        )
    return FormatTemplate(before, after[0])


def around(rendered: str) -> tuple[str, str]:
    """Split what a template makes of the message `MASK` into the text before and after that message.

    Raises: ValueError if the message does not come out exactly once.
    """
    before, *after = rendered.split(MASK)
    if len(after) != 1:
        raise ValueError(
            f"chat: the chat template writes the user's message {len(after)} times, allowed is once"
        )
    return before, after[0]


@lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "chat: reading a chat template needs jinja2 (pip install jinja2); "
            "without it give chat='before{prompt}after'"
        ) from error

    class Generation(Extension):
        """{% generation %}: marks what the assistant wrote, which changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals.update(
        raise_exception=_refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )

    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise ValueError(f"chat: the chat template cannot be read ({error})") from error

    def render(**names: Any) -> str:
        try:
            return template.render(**names)
        except TemplateError as error:
            raise ValueError(f"chat: the chat template cannot be used ({error})") from error

    return render


def _refuse(message: str) -> str:
    raise ValueError(f"chat: the chat template refuses the conversation: {message}")
