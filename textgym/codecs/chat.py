"""Chat templates: the text of a conversation, in which the user's words stand within the template's."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from textgym.codecs import rendering

MASK = "\ue000"
"""Stands for a character that the template did not write; templates leave private-use characters as they are."""
_SECONDS = 60.0  # of wall time, which a busy machine needs more of than the CPU time that is allowed


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
        """See `Template`. The template runs in a process of its own, as it may come from anybody.

        Raises: ValueError for a template that cannot be read, refuses the conversation, or takes more than 5 seconds
            of CPU time or 1 GiB; ModuleNotFoundError without jinja2.
        """
        messages = [{"role": "user", "content": prompt}]
        if completion is not None:
            messages.append({"role": "assistant", "content": completion})
        variables = {**self.variables, "add_generation_prompt": completion is None}
        request = {"template": self.source, "messages": messages, "variables": variables}
        answer = _rendered(json.dumps(request))  # keys in their order, which templates may write
        if "error" in answer:
            raise ValueError(f"chat: the chat template cannot be rendered: {answer['error']}")
        return answer["text"]


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


class _Renderer:
    """The process that renders chat templates, as those may come from anybody; a template may end it.

    It starts when it is needed, and again after it was ended.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, request: str) -> dict[str, str]:
        """Return the answer to a line of JSON, see `rendering`."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            process = self._process
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request + "\n")
                process.stdin.flush()
                if os.name == "posix" and not select.select([process.stdout], [], [], _SECONDS)[0]:
                    process.kill()
                answer: dict[str, str] = json.loads(process.stdout.readline())
            except (OSError, ValueError):  # it was ended and left no answer
                self.close()
                return {"error": f"it was ended after {rendering.CPU_SECONDS} s"}
            except (
                BaseException
            ):  # an interrupt: the answer that is still to come would be read as the next one's
                self.close()
                raise
            return answer

    def close(self) -> None:
        """End the process, where there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

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


_renderer = _Renderer()


def _after_fork() -> None:
    """A child process starts a renderer of its own: two that write to one would read each other's answers."""
    global _renderer
    _renderer = _Renderer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _renderer.close())


@functools.lru_cache(maxsize=1024)
def _rendered(request: str) -> Mapping[str, str]:
    return _renderer(request)
