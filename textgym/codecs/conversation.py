"""The ids of a whole conversation: those of its text, in which only the template writes control tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from textgym.codecs.chat import MASK, JinjaTemplate, Template, around
from textgym.codecs.protocol import Codec


@dataclass(frozen=True, eq=False)
class Conversation:
    """A chat template with its tokenizer.

    The ids are those of `apply_chat_template(..., tokenize=True)`. Where a message holds a control token's text,
    the template's control tokens are kept and the message's are encoded as any other text. Control tokens are the
    special ones, and of the other added tokens those that the template writes with and without an answer.

    Args:
        codec: the tokenizer.
        template: writes the text.
    """

    codec: Codec = field(repr=False)
    template: Template = field(repr=False)

    def encode(self, *messages: str, ended: bool = True) -> list[int]:
        """The ids of a prompt's conversation, or of a prompt's and a completion's.

        Args:
            messages: the prompt, and the completion where there is one.
            ended: False leaves out what the template writes after the completion.
        Raises: ValueError if the template refuses the messages, a control token cannot be written as text, or the
            template changes a message so that its control tokens cannot be told from the template's own.
        """
        whole = self._render(messages, ended)
        ids = self.codec.encode_control(whole)
        control = self._control(ids)
        names = [name for i in dict.fromkeys(control) if (name := self.codec.token(i))]
        held = [name for name in names if any(name in message for message in messages)]
        if not held and control == self._frame(len(messages), ended):
            return ids
        masked = self._masked(messages, whole, held, ended)
        if masked is None or control == self._control(self.codec.encode_control(masked)):
            return ids
        return self._apart(whole, masked)

    @cached_property
    def ending(self) -> str | None:
        """What the template writes after a completion; None if it takes no completion, or writes it twice."""
        try:
            return around(self.template("a", MASK))[1]
        except ValueError:
            return None

    @property
    def takes_completions(self) -> bool:
        """Whether the template says how an answer is written and ends; one of a prompt's format alone does not."""
        return isinstance(self.template, JinjaTemplate)

    @property
    def ending_ids(self) -> list[int]:
        """The ids of `ending`."""
        return self.codec.encode_control(self.ending) if self.ending else []

    def _render(self, messages: Iterable[str], ended: bool) -> str:
        text = self.template(*messages)
        return text if ended else text.removesuffix(self.ending or "")

    def _control(self, ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._control_ids]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        # Marks of turns stand in a question's conversation and in an answer's, marks of reasoning in one of them.
        written = self.codec.added_ids.intersection(self.codec.encode_control(self.template(MASK)))
        with contextlib.suppress(ValueError):  # templates may take no answers
            written = written.intersection(self.codec.encode_control(self.template(MASK, MASK)))
        return self.codec.control_ids | written

    @cached_property
    def _frames(self) -> dict[tuple[int, bool], list[int]]:
        return {}

    def _frame(self, messages: int, ended: bool) -> list[int]:
        """The control tokens around messages without any."""
        key = (messages, ended)
        if key not in self._frames:
            text = self._render([MASK] * messages, ended)
            self._frames[key] = self._control(self.codec.encode_control(text))
        return self._frames[key]

    def _masked(self, messages: tuple[str, ...], whole: str, held: list[str], ended: bool) -> str | None:
        """`whole` with `MASK` for the messages' own characters; None where the messages hold no control token.

        A template may look at a message, so that it writes something else around a masked one; then the text of
        control tokens alone is masked.
        """
        patterns = [r"\S"]
        if held:
            patterns.append("|".join(map(re.escape, sorted(held, key=len, reverse=True))))
        for pattern in patterns:
            masks = [re.sub(pattern, lambda found: MASK * len(found[0]), message) for message in messages]
            masked = self._render(masks, ended)
            if len(masked) == len(whole) and all(
                mask in (own, MASK) for mask, own in zip(masked, whole, strict=True)
            ):
                return masked
        if held:
            raise ValueError(
                f"prompt: it holds the control token {held[0]!r} and the chat template changes its text, so that "
                "the template's own control tokens cannot be told from the prompt's; allowed is a prompt without"
            )
        return None

    def _apart(self, whole: str, masked: str) -> list[int]:
        """The ids of `whole` with the control tokens that stand in `masked` and no others."""
        control = self._control(self.codec.encode_control(masked))
        parts: list[str | int] = []
        start = 0
        for token_id in control:
            name = self.codec.token(token_id) or ""
            place = masked.find(name, start)
            parts += [whole[start:place], token_id]
            start = place + len(name)
        parts.append(whole[start:])
        ids = self.codec.encode_parts(parts)
        if self._control(ids) != control:
            raise ValueError("prompt: this tokenizer cannot write the control tokens that are in it as text")
        return ids
