"""Rows whose texts are lists of messages, as many data sets on the hub have them; one turn each can be read."""

from __future__ import annotations

from typing import Any

from textgym.preferences import fields

_ALLOWED = "a text or a list of messages"


def is_conversation(value: Any) -> bool:
    """Whether a value is meant as a list of messages."""
    return isinstance(value, list)


def one_turn(prompt: Any, answers: dict[str, Any]) -> tuple[str, list[str]]:
    """The user's text and the assistant's texts.

    Args:
        prompt: a text, a list with one message of the user, or None: the answers hold the user's message too.
        answers: key in the row -> a text, or a list of messages that ends in the assistant's.
    Raises: ValueError for a system message, more turns, or users' messages that differ.
    """
    asked = None
    if is_conversation(prompt):
        asked = _contents(prompt, "prompt", ("user",))[0]
    elif prompt is not None:
        asked = fields.text(prompt, '"prompt"', _ALLOWED)
    texts = []
    for key, value in answers.items():
        if not is_conversation(value):
            texts.append(fields.text(value, f'"{key}"', _ALLOWED))
            continue
        own = _contents(value, key, ("assistant",) if len(value) == 1 else ("user", "assistant"))
        if len(own) == 2 and asked not in (None, own[0]):
            raise ValueError(f'the message of the user in "{key}" is not the one before: the prompts differ')
        asked = own[0] if len(own) == 2 else asked
        texts.append(own[-1])
    if asked is None:
        raise ValueError('there is no message of the user, neither under "prompt" nor before the answers')
    return asked, texts


def _contents(messages: list[Any], key: str, roles: tuple[str, ...]) -> list[str]:
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(f'"{key}" is no list of messages with the texts "role" and "content"')
    found = tuple(message["role"] for message in messages)
    if found != roles:
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "") if found else "none"
        raise ValueError(
            f'the messages of "{key}" are by: {shown}; only one turn can be read: {", ".join(roles)}'
        )
    return [message["content"] for message in messages]
