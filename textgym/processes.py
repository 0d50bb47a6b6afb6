"""What systems do in different ways about processes: their memory, their time, and how they are ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the most bytes that this process has held, since it began or since the peak began anew; 0: not known."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def children_seconds() -> float:
    """Return the CPU seconds of the processes that this one has started and that have ended; 0 on Windows."""
    if sys.platform == "win32":
        return 0.0
    import resource

    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ask a process to end: as Ctrl-C does; on Windows, where a process without a console cannot be asked, end it."""
    if sys.platform == "win32":
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that has a session of its own, and those that it has started; on Windows it alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """Return how a process ended, in words. Args: code: its `returncode`; a negative one is a signal, on POSIX."""
    if code >= 0:
        return f"exit code {code}"
    name = {each.value: each.name for each in signal.Signals}.get(-code, str(-code))  # some have none
    why = ", by which the system ends what takes too much memory: fewer workers take less"
    return f"signal {name}{why if name == 'SIGKILL' else ''}"
