"""Pay for code that a model writes: it runs in a process of its own, within limits, and is asked some questions.

This is no sandbox. The limits keep an accident small (memory, time, files, processes); they keep out nobody who wants
to do harm: the code can read what you can read, and reach the network. Run it in a container or a virtual machine
that holds nothing of worth.

    textgym train Text-v0 --env reward=code_reward:CodeReward prompts=tasks.jsonl timeout=600
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence

SECONDS, MEMORY, FILE, PROCESSES = 5, 2**29, 2**20, 64  # per completion: CPU time, bytes, bytes of a file
MOST = 10_000  # characters of output that are read
# The last line of the output is what the answers are taken from; what the code prints itself stands before it.
ASK = "\nimport json as _json\nprint()\nprint(_json.dumps([eval(_each) for _each in {questions!r}]))\n"


def limits() -> None:
    """Limit what this process may take, just before it becomes the code's; macOS does not limit its memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answers(code: str, questions: Sequence[str]) -> list[object]:
    """Return what expressions come to after the code has run; [] where it fails, or takes too much."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", code + ASK.format(questions=list(questions))],
                capture_output=True,
                cwd=folder,
                env={},
                preexec_fn=limits,
                timeout=4 * SECONDS,
                check=True,
            )
            last = done.stdout[-MOST:].decode().splitlines()[-1]
            found = json.loads(last)
        except (subprocess.SubprocessError, ValueError, IndexError, OSError):
            return []
    return found if isinstance(found, list) else []


class CodeReward:
    """Pays the share of a prompt's `tests` that the code passes: pairs of an expression and its value, as JSON."""

    name, maximum = "code", 1.0

    def __call__(
        self, prompts: list[str], completions: list[str], tests: Sequence[Sequence[tuple[str, object]]], **_: object
    ) -> list[float]:
        """Return B shares."""
        rows = []
        for text, pairs in zip(completions, tests, strict=True):
            found = answers(text, [question for question, _ in pairs])
            right = sum(mine == value for mine, (_, value) in zip(found, pairs, strict=False))
            rows.append(right / max(len(pairs), 1))
        return rows
