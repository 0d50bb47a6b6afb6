"""Chat templates, and conversations encoded as one text."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

from textgym.codecs import rendering
from textgym.codecs.protocol import Codec
from textgym.processes import how_it_ended

MASK = "\ue000"
"""Stands for a character that the template did not write; templates leave private-use characters as they are."""
_SECONDS = 60.0  # of wall time, which a busy machine needs more of than the CPU time that is allowed


Message = dict[str, str]


def write_dialogue(messages: object) -> str:
    """Return the prompt that stands for messages: the text of a lone user's message, else all of them as JSON.

    Args:
        messages: dicts with the texts "role" and "content"; a system message may stand first, the last is the user's.
    Raises: ValueError for anything else.
    """
    found: list[Message] = []
    for message in messages if isinstance(messages, list) else []:
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError('there is a message without the texts "role" and "content"')
        found.append({name: message[name] for name in ("role", "content")})
    if not found:
        raise ValueError("there are no messages")
    roles = [message["role"] for message in found]
    if not set(roles[1:]) <= {"user", "assistant"} or roles[0] not in ("system", "user", "assistant"):
        raise ValueError(f"the messages are by: {', '.join(roles):.80}; allowed are user, assistant, system the first")
    if roles[-1] != "user":
        raise ValueError("the last message of a prompt must be the user's")
    return found[0]["content"] if len(found) == 1 else json.dumps(found, ensure_ascii=False)


def read_dialogue(prompt: str) -> list[Message]:
    """Return the messages that a prompt stands for: those that `write_dialogue` wrote, else one of the user."""
    if prompt.startswith('[{"role": "'):
        with contextlib.suppress(ValueError, RecursionError):
            messages: list[Message] = json.loads(prompt)
            if write_dialogue(messages) == prompt:
                return messages
    return [{"role": "user", "content": prompt}]


def as_one_message(text: str) -> str:
    """Return the prompt of one user's message, whose text has a space in front where it reads like a dialogue."""
    return text if len(read_dialogue(text)) == 1 else f" {text}"


def one_message(prompt: str) -> str:
    """Return a prompt of one message. Raises: ValueError for one of several, which only a chat template can write."""
    if len(read_dialogue(prompt)) > 1:
        raise ValueError(
            f"{prompt!r:.80} has several messages, which needs a tokenizer with a chat template of its own"
        )
    return prompt


def _masked_with(pattern: str, prompt: str) -> str:
    """Return a message, or the messages of a dialogue, with `MASK` for every character of what matches."""

    def mask(text: str) -> str:
        return re.sub(pattern, lambda found: MASK * len(found[0]), text)

    turns = read_dialogue(prompt)
    if len(turns) == 1:
        return mask(prompt)
    return json.dumps([turn | {"content": mask(turn["content"])} for turn in turns], ensure_ascii=False)


class Template(Protocol):
    """A writer of conversations; it can be pickled."""

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """Return the conversation that asks for an answer to `prompt`; with `completion` the one that has it."""


@dataclass(frozen=True)
class FormatTemplate:
    """The template "before{prompt}after"; the completion stands behind it.

    Raises: ValueError unless {prompt} stands in it exactly once.
    """

    chat: str

    def __post_init__(self) -> None:
        if self.chat.count("{prompt}") != 1:
            raise ValueError(f"chat={self.chat!r}: {{prompt}} must stand in it once, as in '<|user|>{{prompt}}<|end|>'")

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """Return the conversation, see `Template`."""
        return self.chat.replace("{prompt}", one_message(prompt)) + (completion or "")


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja chat template of Hugging Face; `variables` are what it may name, such as bos_token."""

    source: str
    variables: Mapping[str, object]

    def __call__(self, prompt: str, completion: str | None = None) -> str:
        """Return the conversation, see `Template`; rendered in a process of its own, as it may come from anybody.

        Raises: ValueError for a template that cannot be read, refuses the conversation, or takes more than 5 seconds
            of CPU time or 1 GiB, where the system has such limits; ModuleNotFoundError without jinja2.
        """
        messages = read_dialogue(prompt)
        if completion is not None:
            messages.append({"role": "assistant", "content": completion})
        variables = {**self.variables, "add_generation_prompt": completion is None}
        request = {"template": self.source, "messages": messages, "variables": variables}
        answer = _rendered(json.dumps(request))  # keys in their order, which templates may write
        if "error" in answer:
            raise ValueError(f"chat: the chat template cannot be rendered: {answer['error']}")
        return answer["text"]


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of equal tokens that two rows start with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def around(rendered: str) -> tuple[str, str]:
    """Split the conversation rendered for the message `MASK` into the text before and after that message.

    Raises: ValueError if the message does not come out exactly once.
    """
    before, *after = rendered.split(MASK)
    if len(after) != 1:
        raise ValueError(f"chat: the chat template writes the user's message {len(after)} times, allowed is once")
    return before, after[0]


class _Renderer:
    """The process that renders chat templates; started when it is needed, and again after a template ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, request: str) -> dict[str, str]:
        """Return the answer to a line of JSON, see `rendering`."""
        with self._lock:
            started = time.monotonic()
            while True:
                old = self._process is not None and self._process.poll() is None
                self._process = process = self._process if old and self._process else self._start()
                try:
                    return _answer(process, request)
                except BaseException as error:
                    code = self.close()  # after an interrupt, too: the answer to come would be read as the next one's
                    if not isinstance(error, OSError | ValueError):
                        raise
                    if code == -getattr(signal, "SIGPROF", 0):
                        return {"error": f"it was ended after {rendering.CPU_SECONDS} s of CPU time"}
                    late = time.monotonic() - started >= _SECONDS
                    if late or not old:  # an old one may have died before it was asked
                        how = f"it was ended after {_SECONDS:g} s" if late else f"it died, {how_it_ended(code)}"
                        raise ValueError(f"chat: the chat template cannot be rendered: {how}") from None

    def close(self) -> int:
        """End the process, if there is one. Returns: how it ended, as `how_it_ended` takes it."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        process.communicate()
        return process.returncode

    def _start(self) -> subprocess.Popen[str]:
        if importlib.util.find_spec("jinja2") is None:
            raise ModuleNotFoundError(
                "chat: reading a chat template needs jinja2 (pip install jinja2); "
                "without it give chat='before{prompt}after'"
            )
        return subprocess.Popen(
            [sys.executable, "-P", str(Path(rendering.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
        )


def _answer(process: subprocess.Popen[str], request: str) -> dict[str, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request + "\n")
    process.stdin.flush()
    answer: dict[str, str] = json.loads(_next_line(process, process.stdout))
    return answer


def _next_line(process: subprocess.Popen[str], output: IO[str]) -> str:
    """Return the next line that a process writes; kill it where that takes longer than `_SECONDS`."""
    if os.name == "posix":
        if not select.select([output], [], [], _SECONDS)[0]:
            process.kill()
        return output.readline()
    patience = threading.Timer(_SECONDS, process.kill)  # select knows no pipes there
    patience.daemon = True
    patience.start()
    try:
        return output.readline()
    finally:
        patience.cancel()
        patience.join()


_renderer = _Renderer()
if hasattr(os, "register_at_fork"):
    # Two processes that write to one renderer would read each other's answers.
    os.register_at_fork(after_in_child=lambda: _Renderer.__init__(_renderer))
atexit.register(_renderer.close)


@functools.lru_cache(maxsize=1024)
def _rendered(request: str) -> Mapping[str, str]:
    return _renderer(request)


@dataclass(frozen=True, eq=False)
class Conversation:
    """A chat template with its tokenizer.

    The ids are those of `apply_chat_template(..., tokenize=True)`. Where a message holds a control token's text,
    the template's control tokens are kept and the message's are encoded as any other text. Control tokens are the
    special ones, and of the other added tokens those that the template writes with and without an answer.
    """

    codec: Codec = field(repr=False)
    template: Template = field(repr=False)
    _frames: dict[tuple[int, bool], list[int]] = field(default_factory=dict, init=False, repr=False)

    def encode(self, *messages: str, ended: bool = True) -> list[int]:
        """Return the ids of a prompt's conversation, or of a prompt's and a completion's.

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
        contents = [turn["content"] for message in messages for turn in read_dialogue(message)]
        held = [name for name in names if any(name in text for text in contents)]
        if not held and control == self._frame(len(messages), ended):
            return ids
        masked = self._masked(messages, whole, held, ended)
        meant = control if masked is None else self._control(self.codec.encode_control(masked))
        return ids if masked is None or control == meant else self._apart(whole, masked, meant)

    @cached_property
    def ending(self) -> str | None:
        """Text that the template writes after a completion; None if it takes no completion, or writes it twice."""
        try:
            return around(self.template("a", MASK))[1]
        except ValueError:
            return None

    @cached_property
    def _around(self) -> tuple[str, str] | None:
        """What the template writes around a prompt; None if it does not write the prompt once."""
        try:
            return around(self.template(MASK))
        except ValueError:
            return None

    @property
    def takes_completions(self) -> bool:
        """Whether the template says how an answer is written and ends; a `FormatTemplate` does not."""
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

    def _frame(self, messages: int, ended: bool) -> list[int]:
        """Return the control tokens around messages that hold none."""
        if (messages, ended) not in self._frames:
            text = self._render([MASK] * messages, ended)
            self._frames[messages, ended] = self._control(self.codec.encode_control(text))
        return self._frames[messages, ended]

    def _masked(self, messages: tuple[str, ...], whole: str, held: list[str], ended: bool) -> str | None:
        """Return `whole` with `MASK` for the messages' own characters; None where they hold no control token.

        What the template wrote around the prompt as around any other is not rendered again. A template may look at a
        message, so that it writes something else around a masked one; then the text of control tokens alone is masked.
        """
        patterns = [r"\S"]
        if held:
            patterns.append("|".join(map(re.escape, sorted(held, key=len, reverse=True))))
        for pattern in patterns:
            masks = [_masked_with(pattern, message) for message in messages]
            if len(messages) == 1 and self._around is not None and whole == messages[0].join(self._around):
                return masks[0].join(self._around)
            masked = self._render(masks, ended)
            if len(masked) == len(whole) and all(mask in (own, MASK) for mask, own in zip(masked, whole, strict=True)):
                return masked
        if held:
            raise ValueError(
                f"prompt: it holds the control token {held[0]!r} and the chat template changes its text, so that "
                "the template's own control tokens cannot be told from the prompt's; allowed is a prompt without"
            )
        return None

    def _apart(self, whole: str, masked: str, control: list[int]) -> list[int]:
        """Return the ids of `whole` with the control tokens that stand in `masked` and no others."""
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
