"""Renders one conversation with a chat template. Run as a program: a template may loop for ever, or eat all memory.

Reads a JSON object with `template`, `variables` and `text` from the standard input, and writes one with `text` or
`error`. It imports nothing of TextGym, so that it starts fast.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

CPU_SECONDS = 5
MEMORY = 2**30  # bytes of address space
CHARACTERS = 2**20


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    _limit()
    try:
        answer = {"text": _rendered(**request)}
    except MemoryError:
        answer = {"error": f"it needs more than {MEMORY >> 20} MiB"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)


def _limit() -> None:
    try:
        import resource
    except ModuleNotFoundError:  # no POSIX: whoever waits has a limit, too
        return
    limits = {resource.RLIMIT_CPU: CPU_SECONDS, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CORE: 0}
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _rendered(template: str, variables: dict[str, Any], text: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals.update(raise_exception=_refuse, strftime_now=datetime.datetime.now().strftime)
    compiled = environment.from_string(template)
    messages = [{"role": "user", "content": text}]
    given = {"tools": None, "documents": None, "add_generation_prompt": True}
    found = compiled.render(messages=messages, **given, **variables)
    if len(found) > CHARACTERS:
        raise ValueError(f"it writes {len(found)} characters; at most {CHARACTERS} are allowed")
    return found


def _refuse(message: str) -> str:
    raise ValueError(f"the chat template refuses a conversation of one user message: {message}")


if __name__ == "__main__":
    main()
