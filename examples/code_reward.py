"""Pay for code that a model writes: it runs in a process of its own, within limits, and is asked some questions.

This is no sandbox. The limits keep an accident small (memory, time, files, and processes unless you are root, whom the
system does not limit); they keep out nobody who wants to do harm: the code can read what you can read, and reach the
network. Run it in a container or a virtual machine that holds nothing of worth, as a user other than root, with a limit
of its own on processes (Docker's --pids-limit).

    textgym train Text-v0 --env reward=code_reward:CodeReward prompts=tasks.jsonl timeout=600
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile

# Per completion: CPU time, bytes, bytes of a file or of output; the bytes of output that are read, up to its last line.
SECONDS, MEMORY, FILE, PROCESSES, MOST = 5, 2**29, 2**20, 64, 10_000
ASK = "\nimport json as _json\nprint()\nprint(_json.dumps([eval(_each) for _each in {questions!r}]))\n"


def limits() -> None:
    """Limit what this process may take, just before it becomes the code's; macOS does not limit its memory."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answers(code: str, questions: list[str]) -> list[object]:
    """Return what expressions come to after the code has run; [] where it fails, or takes too much."""
    command = [sys.executable, "-I", "-c", code + ASK.format(questions=questions)]
    options = {"stderr": subprocess.DEVNULL, "env": {}, "preexec_fn": limits, "start_new_session": True}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(command, stdout=output, cwd=folder, **options)
        except (subprocess.SubprocessError, ValueError, OSError):  # no text that a system takes for a command
            return []
        try:
            failed = child.wait(timeout=4 * SECONDS)
        except subprocess.TimeoutExpired:
            failed = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and what it has started, unless that left its group
            child.wait()
        output.seek(0)
        try:
            found = [] if failed else json.loads(output.read()[-MOST:].decode().splitlines()[-1])
        except (ValueError, IndexError):
            return []
    return found if isinstance(found, list) else []


class CodeReward:
    """Pays the share of a prompt's `tests` that the code passes: pairs of an expression and its value, as JSON."""

    name, maximum = "code", 1.0

    def __call__(self, completions: list[str], tests: list[list[tuple[str, object]]], **_: object) -> list[float]:
        """Return B shares."""
        rows = []
        for text, pairs in zip(completions, tests, strict=True):
            found = answers(text, [question for question, _ in pairs])
            right = sum(mine == value for mine, (_, value) in zip(found, pairs, strict=False))
            rows.append(right / max(len(pairs), 1))
        return rows
