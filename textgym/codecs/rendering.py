"""Render conversations with chat templates, as a program: a template may loop forever, or use up all memory.

It reads lines from the standard input, each a JSON object with `template`, `messages` and `variables`, and answers
each with a line, a JSON object with `text` or `error`. It imports nothing of TextGym, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.parser import Parser

CPU_SECONDS = 5  # of one conversation
MEMORY = 2**30  # bytes of address space
CHARACTERS = 2**20


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        _limit()
        try:
            answer = {"text": _rendered(**json.loads(line))}
        except MemoryError:
            answer = {"error": f"it needs more than {MEMORY >> 20} MiB"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _limit() -> None:
    """Let the system end this process where the next conversation takes too much."""
    try:
        import resource
    except ModuleNotFoundError:  # no POSIX: whoever waits has a limit, too
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    for kind, most in {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CORE: 0}.items():
        with contextlib.suppress(ValueError):  # macOS limits no address space, and a lower hard limit stays
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _rendered(template: str, messages: list[dict[str, str]], variables: dict[str, str]) -> str:
    text = _compiled(template).render(messages=messages, tools=None, documents=None, **variables)
    if len(text) > CHARACTERS:
        raise ValueError(f"it writes {len(text)} characters; at most {CHARACTERS} are allowed")
    return text


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: marks what the assistant wrote, which changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals.update(
        raise_exception=_refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )
    return environment.from_string(template)


def _refuse(message: str) -> str:
    raise ValueError(f"it refuses the conversation: {message}")


if __name__ == "__main__":
    main()
