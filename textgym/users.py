"""Users for `Text-v0`: one of the built-in world, and any causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from textgym.checks import check_count, check_number
from textgym.codecs.chat import as_one_message, write_dialogue
from textgym.lm.reference import Reference
from textgym.play import draw
from textgym.rewards.base import Rebuilt
from textgym.sampling import CachedPolicy
from textgym.task import make_reference, make_task
from textgym.turns import Messages
from textgym.vocab import Vocabulary
from textgym.world.answers import fact_sentence, read, sum_sentence
from textgym.world.facts import FACTS
from textgym.world.prompts import PHRASINGS, Item, find_item, items, phrase
from textgym.world.rules import content

_KINDS: Final = ("fact", "sum")
INSTRUCTION: Final = "You are the user of an assistant. Ask it for what you want, one short message at a time."
"""What a language model is told that plays the user."""


def _weights(users: int) -> Sequence[float] | None:
    return [1 / users] * users if users else None


@dataclass(frozen=True)
class WorldUser(Rebuilt):
    """A user of the built-in world, who asks for a fact or a sum and goes on until the answer is right.

    A wrong claim is corrected, and what answers nothing is asked again in other words. What is hidden is a seed: it
    says whether, when and to which question the user changes their mind. A user whose prompt is none of these two
    kinds begins with another question at once, and stays with it.

    Args:
        changes: how likely a user is to change their mind, once, in [0, 1].
        users: how many users there are, equally likely; then what is hidden is one of them, and an episode can be
            solved and searched. 0: one for each of 2^63 seeds.
    Raises: ValueError for a number out of range.
    """

    changes: float = 0.3
    users: int = 0
    asks: ClassVar = ("replies",)

    def __post_init__(self) -> None:
        check_number("changes", self.changes, 0, 1)
        check_count("users", self.users, 0)

    @property
    def weights(self) -> Sequence[float] | None:
        """How likely each user is, (K,); None for seeds."""
        return _weights(self.users)

    def __call__(
        self, conversations: Sequence[Messages], replies: Sequence[int], hidden: Sequence[int]
    ) -> list[str | None]:
        """Return what the user says to each answer, None where it is right.

        Args:
            conversations, replies, hidden: B, see `textgym.turns.TextResponder`.
        """
        return [self._reply(*each) for each in zip(conversations, replies, hidden, strict=True)]

    def _reply(self, messages: Messages, said: int, seed: int) -> str | None:
        generator = np.random.default_rng(seed)
        when = int(generator.integers(2)) if generator.random() < self.changes else -1
        other = _ITEMS[int(generator.integers(len(_ITEMS)))]
        asked = messages[-2 - 2 * said]["content"]
        item = _BY_KEY.get(find_item(asked) or "")
        if item is None or item == other:  # there is nothing to change from, or to
            when = -1
        changed = other if item is None or 0 <= when < said else item
        if said == when or (item is None and not said):
            return phrase(other, 0)
        reading = read(messages[-1]["content"])
        if content(reading, changed.kind, changed.key) > 0:
            return None
        ways = [phrase(changed, number) for number in range(len(PHRASINGS[changed.group]))]
        again = ways[((ways.index(asked) if asked in ways else 0) + said + 1) % len(ways)]
        return f"No. {_true(changed)} {again}" if reading.wrong else again


_ITEMS: Final = tuple(item for kind in _KINDS for item in items(kind))
_BY_KEY: Final = {item.key: item for item in _ITEMS}
_FACTS: Final = {fact.key: fact for fact in FACTS}


def _true(item: Item) -> str:
    """Return a sentence that answers an item rightly."""
    if item.kind == "fact":
        return fact_sentence(_FACTS[item.key], item.answer[0], 0)
    one, two = (int(term) for term in item.subject.split(" plus "))
    return sum_sentence(one, two, one + two, 0)


@dataclass(frozen=True)
class LMUser(Rebuilt):
    """A causal language model as the user.

    With a chat template of its own it reads the conversation with the roles exchanged, behind an instruction; without
    one the policy's last message. It writes one conversation at a time, so that what it says does not depend on the
    others. What is hidden is the seed of its sampling.

    Args:
        model: "builtin", a model's folder or hub id, or a `Reference` over the vocabulary of `tokenizer`.
        tokenizer: as of `Text-v0`.
        tokens: the most that it writes at a time.
        context: tokens that it reads; the oldest are left out.
        temperature: 0, or >= 1e-6; at 0 it writes the likeliest tokens, and nothing is hidden.
        users: how many seeds there are, equally likely, 0 for 2^63; see `WorldUser`.
        instruction: the first message that it reads.
    Raises: ValueError for a number out of range, and as `Text-v0` for a model that cannot be loaded.
    """

    model: str | Path | Reference = "builtin"
    tokenizer: object = None
    tokens: int = 24
    context: int = 200
    temperature: float = 1.0
    users: int = 0
    instruction: str = INSTRUCTION
    _read: tuple[Vocabulary, Reference] = field(init=False, repr=False, compare=False)
    asks: ClassVar = ("replies",)
    cuts: ClassVar = True

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("context", 1), ("users", 0)):
            check_count(name, getattr(self, name), least)
        check_number("temperature", self.temperature, 0)
        object.__setattr__(self, "_read", self._load())

    @property
    def weights(self) -> Sequence[float] | None:
        """How likely each seed is, (K,); None for 2^63 of them, (1.0,) where the likeliest tokens are written."""
        return _weights(self.users) if self.temperature else (1.0,)

    def __call__(self, conversations: Sequence[Messages], replies: Sequence[int], hidden: Sequence[int]) -> list[str]:
        """Return what the model says in each conversation.

        Args:
            conversations, replies, hidden: B, see `textgym.turns.TextResponder`.
        """
        each = zip(conversations, replies, hidden, strict=True)
        return [self._reply(messages, np.random.default_rng([seed, said])) for messages, said, seed in each]

    def _load(self) -> tuple[Vocabulary, Reference]:
        tokens = {"max_prompt_tokens": self.context, "max_new_tokens": self.tokens}
        task = make_task("Text", reference=self.model, tokenizer=self.tokenizer, **tokens)
        return task.vocabulary, make_reference(task, self.temperature or 1.0)

    def _reply(self, messages: Messages, generator: np.random.Generator) -> str:
        (vocabulary, reference), room = self._read, self.context + self.tokens
        chat = vocabulary.conversation
        text = as_one_message(messages[-1]["content"] or ".")
        if chat is not None and chat.takes_completions:
            other = {"user": "assistant", "assistant": "user"}
            turned = [message | {"role": other[message["role"]]} for message in messages if message["role"] in other]
            text = write_dialogue([{"role": "user", "content": self.instruction}, *turned])
        ids = vocabulary.encode_prompt(text)[-self.context :]
        if isinstance(reference, CachedPolicy):
            reference.forget()  # what was read before must not change the last digits
        row, start = np.full((1, room), vocabulary.pad_id), len(ids)
        row[0, :start] = ids
        for end in range(start, start + self.tokens):
            observation = {"input_ids": row, "attention_mask": (np.arange(room) < end)[None].astype(np.int8)}
            log_probs = reference.log_probs(observation)
            likeliest = not self.temperature
            row[0, end] = log_probs.argmax() if likeliest else draw(np.exp(log_probs), generator.random(1))[0]
            if row[0, end] in vocabulary.stop_ids:
                break
        written = vocabulary.decode([row[0, start : end + 1].tolist()])[0].strip()
        return written or "..."
