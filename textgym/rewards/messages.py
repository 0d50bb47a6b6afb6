"""Chat messages: TRL hands rewards lists of messages where its data set is conversational; here they are texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from textgym.rewards.base import NamedReward, Values
from textgym.rewards.compose import Inner
from textgym.rewards.registry import RewardSpec


def as_text(message: Any, role: str) -> str:
    """Return the text of a prompt or a completion, whichever of TRL's two forms it has.

    Args:
        message: a text; or a list of messages {"role": ..., "content": a text or a list of parts with "text"}.
        role: "user": the last message of that role (a prompt is what is answered); "assistant": all of them,
            one a line (a completion may be interrupted by tools).

    Raises: ValueError for anything else.
    """
    if isinstance(message, str):
        return message
    if not isinstance(message, list) or not all(isinstance(m, Mapping) and "role" in m for m in message):
        raise ValueError(f"{message!r:.80} is neither a text nor a list of messages with role and content")
    found = [_content(one.get("content")) for one in message if one["role"] == role]
    return (found[-1] if found else "") if role == "user" else "\n".join(found)


class _Converted(NamedReward):
    """Another reward, asked in another form."""

    outer: ClassVar[str]

    def __init__(self, reward: RewardSpec) -> None:
        self.inner = Inner(reward, self.outer)
        self.name = self.inner.name

    def state_dict(self) -> Any:
        """Return the other reward's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go back to what `state_dict` returned."""
        self.inner.load_state_dict(state)


class FromMessages(_Converted):
    """A reward of texts, for TRL's conversational data: messages are turned into texts first.

    Texts pass as they are, so one object serves both kinds of data.

    Args:
        reward: a reward, or the spec of one.
    """

    outer = "from_messages"

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> Values:
        """Score every completion, read as `as_text` does."""
        texts = [as_text(completion, "assistant") for completion in completions]
        return self.inner.values([as_text(prompt, "user") for prompt in prompts], texts, columns)


class ToMessages(_Converted):
    """A reward of messages, written for TRL's conversational data: texts are wrapped into messages for it.

    Args:
        reward: a reward of lists of messages, or the spec of one.
    """

    outer = "to_messages"

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Values:
        """Score every completion, as an assistant's only message that answers a user's only one."""
        asked: list[Any] = [[{"role": "user", "content": text}] for text in prompts]
        answered: list[Any] = [[{"role": "assistant", "content": text}] for text in completions]
        return self.inner.values(asked, answered, columns)


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):  # None: a message that only calls tools
        return content or ""
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError(f"content={content!r:.80}: a text or a list of parts is allowed")
