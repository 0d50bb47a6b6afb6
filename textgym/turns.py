"""Turns: after each turn of the policy the environment writes tokens, and the episode goes on.

What the environment writes may depend on something hidden, which is drawn when an episode begins: then the policy faces
chance. Where it can be one of a few things, what the policy can know of it is exact (`Turns.beliefs`), and so is the
solver (`textgym.solver`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, Protocol, overload

import numpy as np

from textgym.checks import Floats, check_count, shown
from textgym.codecs.chat import MASK, Conversation, around, as_one_message, common_start, read_dialogue, write_dialogue
from textgym.state import Prompt, TokenState
from textgym.vocab import Vocabulary

SEEDS: Final = 2**63


class Reply(NamedTuple):
    """What the environment writes after a turn of the policy.

    Attributes:
        tokens: ids; at least one, except in the reply that ends an episode.
        ends: whether the episode ends here.
    """

    tokens: tuple[int, ...] = ()
    ends: bool = False


class Responder(Protocol):
    """Answers turns. It keeps nothing: what it says is a function of a state, which holds what is hidden."""

    def weights(self, prompt: Prompt) -> Sequence[float] | None:
        """Return how likely each thing is that may be hidden, (K,), summing to 1; (1.0,) where nothing is.

        None says that what is hidden is a seed, one of 2^63; nothing can then be solved or searched.
        """

    def replies(self, states: Sequence[TokenState]) -> Sequence[Reply]:
        """Return the reply to each state in which a turn has just ended.

        `state.hidden` is an index below K, or the seed.
        """


@dataclass(frozen=True, eq=False)
class Turns:
    """How the turns of a task go.

    Args:
        responder: answers every turn.
        most: turns of the policy; the episode ends with the reply to the last one, whatever it is.
        tokens: budget of a turn, tokens.
        reply_tokens: the most tokens of a reply.
        ends: ids that end a turn beside its budget, as the closing tag of a tool call; a task adds its stop ids.
        close: what the environment writes first where the budget has cut a turn off, as the end-of-turn id of a chat
            template.
        farewell: whether the last turn is answered, too.
    Raises: ValueError for a number out of range.
    """

    responder: Responder
    most: int
    tokens: int
    reply_tokens: int
    ends: tuple[int, ...] = ()
    close: tuple[int, ...] = ()
    farewell: bool = True

    def __post_init__(self) -> None:
        for name, least in (("most", 1), ("tokens", 1), ("reply_tokens", 1)):
            check_count(name, getattr(self, name), least)

    @property
    def room(self) -> int:
        """The most tokens that an episode can write, replies included; the task's `max_new_tokens`."""
        return self.most * (self.tokens + len(self.close) + self.reply_tokens)

    def random(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether chance has a say in what the environment writes to some of these prompts."""
        weights = [self.responder.weights(prompt) for prompt in prompts]
        return any(each is None or np.count_nonzero(each) > 1 for each in weights)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError for weights that are none."""
        for prompt in prompts:
            weights = self.responder.weights(prompt)
            if weights is None:
                continue
            array = np.asarray(weights, dtype=np.float64)
            if array.ndim != 1 or not (array >= 0).all() or not np.isclose(array.sum(), 1.0):
                raise ValueError(
                    f"responder: weights {shown(weights)} for the prompt {prompt.text!r:.80}; allowed are numbers >= 0 "
                    "whose sum is 1, or None"
                )

    def draw(self, prompt: Prompt, generator: np.random.Generator) -> int:
        """Return what is hidden in an episode, by one draw."""
        weights = self.responder.weights(prompt)
        if weights is None:
            return int(generator.integers(SEEDS))
        return _choose(weights, generator)

    def last(self, state: TokenState) -> bool:
        """Return whether the turn of a state is the last one, whatever the reply to it."""
        return state.replies == self.most - 1

    def answers(self, states: Sequence[TokenState]) -> list[Reply]:
        """Return the reply to each state in which a turn has just ended.

        Raises: ValueError for a reply that is none, too long, or empty without ending the episode.
        """
        asked = [state for state in states if self.farewell or not self.last(state)]
        found = list(self.responder.replies(asked)) if asked else []
        if len(found) != len(asked):
            raise ValueError(f"responder: {len(found)} replies to {len(asked)} states, allowed is one to each")
        for state, reply in zip(asked, found, strict=True):
            if not isinstance(reply, Reply):
                raise ValueError(f"responder: {shown(reply)}: allowed is a textgym.turns.Reply")
            count = len(reply.tokens)
            if count > self.reply_tokens or not (count or reply.ends or self.last(state)):
                least = 0 if reply.ends or self.last(state) else 1
                raise ValueError(
                    f"responder: a reply of {count} tokens, allowed are {least} to reply_tokens={self.reply_tokens}"
                )
        if self.close:
            found = [
                reply if state.completion[-1] in self.ends else Reply((*self.close, *reply.tokens), reply.ends)
                for state, reply in zip(asked, found, strict=True)
            ]
        if len(asked) == len(states):
            return found
        replies = iter(found)
        return [Reply() if self.last(state) else next(replies) for state in states]

    def beliefs(self, state: TokenState) -> Floats:
        """Return how likely each thing is that may be hidden, given the tokens seen, (K,): Bayes' rule.

        Raises: ValueError where what is hidden is a seed, or where nothing explains the tokens.
        """
        weights = self.responder.weights(state.prompt)
        if weights is None:
            raise ValueError(
                "responder: what is hidden is a seed, so what it is given the tokens is not known; search and exact "
                "answers are for responders with weights"
            )
        found = np.array(weights, dtype=np.float64)
        for asked, written in _replied(state):
            possible = np.flatnonzero(found)
            answers = self.answers([replace(asked, hidden=int(k), finish_reason=None) for k in possible])
            over = asked.finish_reason is not None  # else the episode went on behind this reply
            found[possible] *= [reply.tokens == written and (over or not reply.ends) for reply in answers]
        if not found.any():
            raise ValueError(f"state: the environment does not write what stands in its completion {state.completion}")
        return np.asarray(found / found.sum())

    def over(self, state: TokenState) -> bool:
        """Return whether the episode has ended in a state of which the tokens alone are known. Raises: as `beliefs`."""
        if state.replies == self.most:
            return True
        if state.turn:
            return state.turn[-1] in self.ends or len(state.turn) == self.tokens
        try:
            self.beliefs(replace(state, finish_reason=None))
        except ValueError:
            self.beliefs(replace(state, finish_reason="stop"))
            return True
        return False

    def redraw(self, state: TokenState, generator: np.random.Generator) -> TokenState:
        """Return a state that looks the same, with what is hidden drawn anew given the tokens seen, by one draw.

        A search must go on from such states, or it would know what the policy cannot. Raises: as `beliefs`.
        """
        return replace(state, hidden=_choose(self.beliefs(state).tolist(), generator))


ReplyFunction = Callable[..., Sequence[str | None]]
"""Called with B conversations, and `hidden=` where something is hidden: see `TextResponder`."""
Messages = list[dict[str, str]]
"""A conversation: dicts with the texts "role" and "content"; the last is the policy's, of role "assistant"."""


class TextResponder:
    """A user made of a function of texts.

    With a chat template of the tokenizer's own, a reply is the tail of the conversation that the template writes, from
    the end of the policy's turn to where the next one begins. With a template "before{prompt}after" it is a stop id,
    unless the policy has written one, and a prompt. Without any it is the text alone. What the policy wrote is never
    encoded again.

    Args:
        vocabulary: of the task.
        reply: from B conversations to B replies, texts; None ends the episode. Its attribute `weights`, if it has one,
            says how likely each thing is that may be hidden; then it is called with `hidden=`, B integers, too.
            Its attribute `asks` names what else of a `TokenState` it is called with, as ("replies",). Where `cuts` is
            true, what is too long is cut.
        reply_tokens: the most tokens of a reply.
    Raises: ValueError for a chat template that writes earlier turns anew.
    """

    def __init__(self, vocabulary: Vocabulary, reply: ReplyFunction, reply_tokens: int) -> None:
        self._vocabulary, self._reply = vocabulary, reply
        self._room = reply_tokens if getattr(reply, "cuts", False) else None
        chat = vocabulary.conversation
        self._chat = chat if chat is not None and chat.takes_completions else None
        if self._chat is not None:
            self._check_template(self._chat)

    def weights(self, prompt: Prompt) -> Sequence[float] | None:
        """See `Responder.weights`."""
        found: Sequence[float] | None = getattr(self._reply, "weights", (1.0,))
        return found

    def replies(self, states: Sequence[TokenState]) -> list[Reply]:
        """See `Responder.replies`."""
        names = {*getattr(self._reply, "asks", ()), *(("hidden",) if hasattr(self._reply, "weights") else ())}
        options = {name: [getattr(state, name) for state in states] for name in names}
        said: object = self._reply(self._messages(states), **options)
        found = list(said) if isinstance(said, Iterable) and not isinstance(said, str) else []
        if len(found) != len(states) or not all(text is None or isinstance(text, str) for text in found):
            raise ValueError(
                f"responder: {shown(found or said)} for {len(states)} conversations; allowed is a text or None for each"
            )
        return [self._written(state, text) for state, text in zip(states, found, strict=True)]

    def _messages(self, states: Sequence[TokenState]) -> list[Messages]:
        """Return the conversations so far; what a template wrote around a user's message is left out of them."""
        pieces = [written_by(state.completion, state.environment) for state in states]
        texts = iter(self._vocabulary.decode([self.content(*piece) for each in pieces for piece in each]))
        return [
            read_dialogue(state.prompt.text)
            + [{"role": _ROLES[author], "content": next(texts).strip()} for author, _ in each]
            for state, each in zip(states, pieces, strict=True)
        ]

    def content(self, author: str, ids: Sequence[int]) -> Sequence[int]:
        """Return what was said in a piece of ids, without what a template wrote around; author: see `written_by`."""
        if author == "policy" or self._vocabulary.conversation is None:
            return ids
        before, after = self._around
        start = max(common_start(before, ids), common_start(before[1:], ids))  # the policy may have written the first
        return ids[start : len(ids) - common_start(after[::-1], ids[start:][::-1])]

    def _written(self, state: TokenState, text: str | None) -> Reply:
        if text is None:
            return Reply((), ends=True)
        ids = self._ids(state, text)
        while self._room is not None and len(ids) > self._room and len(text) > 1:
            text = text[: max(1, len(text) - (len(ids) - self._room))]
            ids = self._ids(state, text)
        return Reply(ids)

    def _ids(self, state: TokenState, text: str) -> tuple[int, ...]:
        if self._vocabulary.conversation is None:
            return tuple(self._vocabulary.codec.encode(text))
        vocabulary, one = self._vocabulary, as_one_message(text)
        ids = self._tail(text) if self._chat else (*vocabulary.stop_ids[:1], *vocabulary.encode_prompt(one))
        # The policy's turn is ended; where the policy has done so itself, once is enough.
        ends = ids[:1] if self._chat else self._vocabulary.stop_ids
        return ids[1:] if state.completion[-1:] and state.completion[-1] in ends else ids

    def _tail(self, text: str) -> tuple[int, ...]:
        """Return the ids from the end of an answer to where the next one begins, with a user's message between."""
        before, after = self._around
        return (*before, *self._vocabulary.codec.encode(text), *after)

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the template writes before and behind a user's message that follows an answer."""
        known, encode = self._vocabulary, self._vocabulary.codec.encode_control
        if self._chat is None:
            return (*known.stop_ids[:1], *known.before_ids), known.after_ids
        messages = _dialogue(_ANSWER, MASK)
        before, after = around(self._chat.template(write_dialogue(messages)).partition(_ANSWER)[2])
        return tuple(encode(before)), tuple(encode(after))

    @staticmethod
    def _check_template(chat: Conversation) -> None:
        first = chat.template("a")
        said = "b" if "</think>" in first else "<think>\nb\n</think>\n\nd"  # some cut reasoning in earlier turns
        second = chat.template(write_dialogue(_dialogue(said, "c")))
        if not (second.startswith(first) and said in second):
            raise ValueError(
                "chat: the chat template writes earlier turns anew, so that what was sampled would stand there no "
                "more; allowed is one that keeps them, as the model's without the branch that drops earlier reasoning"
            )


_ROLES: Final = {"policy": "assistant", "environment": "user"}
_ANSWER: Final = "\ue001"  # stands for an answer in a conversation that is rendered for what comes behind it


def _dialogue(answer: str, last: str) -> list[dict[str, str]]:
    said = ("user", "a"), ("assistant", answer), ("user", last)
    return [{"role": role, "content": text} for role, text in said]


def _choose(weights: Sequence[float], generator: np.random.Generator) -> int:
    """Return a place by its weight, by one draw; the only one without a draw."""
    if len(weights) == 1:
        return 0
    cumulative = list(accumulate(weights))
    return min(bisect_right(cumulative, generator.random() * cumulative[-1]), len(weights) - 1)


Said = tuple[tuple[str, str], ...]
"""("policy" or "environment", text) for each piece of a completion, in order."""


class Spoken(Sequence[Said]):
    """Who said what in B completions, the column `turns` of rewards; decoded when it is first looked at.

    Args:
        completion_ids: B lists of ids. environment: B, the places of the environment's tokens, ascending.
        vocabulary: decodes.
        responder: where it has a method `content`, as a `TextResponder`, that says what of a piece was said.
    """

    def __init__(
        self,
        completion_ids: Sequence[Sequence[int]],
        environment: Sequence[tuple[int, ...]],
        vocabulary: Vocabulary,
        responder: Responder,
    ) -> None:
        self._ids, self._environment, self._vocabulary = completion_ids, environment, vocabulary
        self._content = getattr(responder, "content", lambda author, ids: ids)

    @cached_property
    def _pieces(self) -> list[Said]:
        written = [written_by(ids, places) for ids, places in zip(self._ids, self._environment, strict=True)]
        texts = iter(self._vocabulary.decode([self._content(*piece) for pieces in written for piece in pieces]))
        return [tuple((author, next(texts)) for author, _ in pieces) for pieces in written]

    @overload
    def __getitem__(self, index: int) -> Said: ...

    @overload
    def __getitem__(self, index: slice) -> list[Said]: ...

    def __getitem__(self, index: int | slice) -> Said | list[Said]:
        return self._pieces[index]

    def __len__(self) -> int:
        return len(self._ids)

    def __reduce__(self) -> tuple[type[list[Said]], tuple[list[Said]]]:
        return list, (self._pieces,)


def written_by(ids: Sequence[int], environment: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
    """Cut a completion into the pieces that the policy and the environment wrote.

    Args:
        environment: the places of the environment's tokens, ascending.
    Returns: ("policy" or "environment", ids) for each piece, in order.
    """
    pieces: list[tuple[str, Sequence[int]]] = []
    end = 0
    for first, last in _runs(environment):
        pieces += [("policy", ids[end:first]), ("environment", ids[first : last + 1])]
        end = last + 1
    return [piece for piece in (*pieces, ("policy", ids[end:])) if piece[1]]


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of consecutive places."""
    first = None
    for place, after in pairwise([*places, -1]):
        first = place if first is None else first
        if after != place + 1:
            yield first, place
            first = None


def _replied(state: TokenState) -> Iterator[tuple[TokenState, tuple[int, ...]]]:
    """Yield each state on the way to this one in which a turn had just ended, and what the environment wrote there.

    Where the episode ended with what it wrote, the state has the reason.
    """
    end = 0
    for author, written in written_by(state.completion, state.environment):
        if author == "environment":
            before = tuple(place for place in state.environment if place < end)
            last = end + len(written) == len(state.completion)
            reason = state.finish_reason if last else None
            asked = replace(state, completion=state.completion[:end], environment=before, finish_reason=reason)
            yield asked, tuple(written)
        end += len(written)
