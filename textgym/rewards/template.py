"""Format: pays for completions that keep to an answer template."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any, NamedTuple

from textgym.messages import shown
from textgym.rewards.base import NamedReward
from textgym.rewards.extras import Rebuilt
from textgym.rewards.regex import Regex
from textgym.rewards.scripts import composed


class Piece(NamedTuple):
    """A fixed part of a template, and the name of the slot after it; None at the end."""

    text: str
    slot: str | None


def read_template(template: Any) -> list[Piece]:
    """The pieces of a template such as "<answer>{answer}</answer>", composed; `{{` and `}}` stand for braces.

    Raises: ValueError if it is no text, has no slot, or one that is not a plain name, or twice the same.
    """
    if not isinstance(template, str):
        raise ValueError(
            f"template={shown(template)}: a text with slots, as 'Answer: {{answer}}', is allowed"
        )
    try:
        parsed = list(Formatter().parse(composed(template)))
    except ValueError as error:
        raise ValueError(
            f"template={shown(template)}: {error}; a slot is {{name}}, a brace itself is {{{{ or }}}}"
        ) from error
    slots = [slot for _, slot, _, _ in parsed if slot is not None]
    if not slots or len(set(slots)) < len(slots):
        raise ValueError(
            f"template={shown(template)}: its slots are {slots}; at least one, each only once, is allowed"
        )
    for _, slot, form, conversion in parsed:
        if slot is not None and (not slot.isidentifier() or form or conversion):
            raise ValueError(
                f"template={shown(template)}: the slot {slot!r} is not a plain name, as {{answer}} is"
            )
    return [Piece(text, slot) for text, slot, _, _ in parsed]


def template_regex(template: str) -> str:
    """The regular expression of a template: its fixed parts, and at least one character for every slot.

    Only what has a meaning of its own is escaped, so that every dialect reads it alike.
    """
    pieces = [
        (re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", text), slot) for text, slot in read_template(template)
    ]
    return "".join(text if slot is None else f"{text}(?s:.+)" for text, slot in pieces)


@dataclass(frozen=True)
class Format(Rebuilt, NamedReward):
    """Pays 1 for a completion that is the template with its slots filled in, nothing before or after it.

    Args:
        template: fixed text with slots in braces, as "<think>{thought}</think><answer>{answer}</answer>"; a
            slot takes any text of at least one character. `{{` and `}}` stand for braces.
        partial: a share, from 0 to below 1, that is paid for what is kept of the template by a completion
            that does not match: partial times the share of the fixed parts that stand in it in order, the
            first one at the start and the last one at the end where the template has them there.
    """

    template: str
    partial: float = 0.0
    name = "format"
    maximum = 1.0

    def __post_init__(self) -> None:
        if (
            isinstance(self.partial, bool)
            or not isinstance(self.partial, int | float)
            or not 0 <= self.partial < 1
        ):
            raise ValueError(f"partial={self.partial!r:.80}: a share from 0 to below 1 is allowed")
        assert self._regex  # a bad template is refused now, not when it is first used

    @cached_property
    def _regex(self) -> Regex:
        return Regex(template_regex(self.template), argument="template", reward=self.name)

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """The fixed parts; the last one is empty where the template ends in a slot."""
        pieces = read_template(self.template)
        return (*(piece.text for piece in pieces), *([""] if pieces[-1].slot is not None else []))

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Score every completion."""
        completions = [composed(text) for text in completions]
        found = self._regex.matches(completions)
        if not self.partial:
            return [*map(float, found)]
        return [
            1.0 if whole else self.partial * self._share(text)
            for whole, text in zip(found, completions, strict=True)
        ]

    def _share(self, text: str) -> float:
        """The share of the fixed parts that stand in the text in order, in [0, 1]."""
        first, *inner, last = self._parts
        fixed = [part for part in self._parts if part]
        if not fixed:
            return 0.0
        kept, place = 0, 0
        if first and text.startswith(first):
            kept, place = 1, len(first)
        end = len(text)
        if last and text.endswith(last) and end - len(last) >= place:
            kept, end = kept + 1, end - len(last)
        for part in inner:
            at = text.find(part, place, end) if part else -1
            if at >= 0:
                kept, place = kept + 1, at + len(part)
        return kept / len(fixed)
