"""What engines and their workers agree on: a job is a function's name and JSON; so is what comes back."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from textgym.interrupts import with_remedy

RETRIES: Final = 2
"""How often a job is started again whose process died."""
READY: Final = "ready\n"
"""What a worker of the pool says first."""
ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
"""Environment of a worker: a cell has one thread, so that cores are not fought over and numbers do not depend on
their count."""


def search_path() -> list[str]:
    """Where this process finds modules."""
    return [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  ("" is the current folder)


def fresh_python(code: str) -> list[str]:
    """A command line that runs code in a new interpreter, which finds the modules that this process finds.

    That is whatever lies in the current folder (-P), and a list where PYTHONPATH cannot name a folder with a colon.
    """
    start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1])\n{code}"
    return [sys.executable, "-P", "-c", start, json.dumps(search_path())]


@dataclass(frozen=True)
class Job:
    """One call.

    Args:
        key: names it in events; all different.
        function: "module:function", found by the worker.
        arguments: by name, JSON values.
    """

    key: str
    function: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a job has no value.

    Args:
        type: class of the exception, or "WorkerDied".
        message, traceback: of the exception; "" for no traceback.
        attempts: times that the job was started. Ray does not say: there it is 1 for a job that raised, and as many as
            were allowed for one whose process died.
    """

    type: str
    message: str
    traceback: str
    attempts: int


@dataclass(frozen=True)
class Event:
    """Something happened to a job.

    Args:
        kind: "started"; "lost": its process died and it will be started again; "finished": it has a value or failed.
        key: of the job.
        value: what the function returned, JSON.
        failure: why there is none.
    """

    kind: Literal["started", "lost", "finished"]
    key: str
    value: Any = None
    failure: Failure | None = None


class Engine(Protocol):
    """Runs jobs."""

    workers: int
    """Jobs that run at a time, as far as it is known."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Starts the jobs in their order and yields what happens; every job finishes once.

        A function that raises fails its job and no other. Closing the iterator stops what runs.
        """

    def cpu_seconds(self) -> float:
        """CPU time that the jobs of the last `run`, and their workers, have taken; after it has ended."""


def call(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs a job's function here.

    Returns: {"value": ...} or {"error": {"type", "message", "traceback"}}, and "cpu": seconds.
    """
    started = time.process_time()
    try:
        reply: dict[str, Any] = {"value": _find(function)(**arguments)}
    except Exception as error:
        reply = {"error": describe(error)}
    return reply | {"cpu": time.process_time() - started}


def reply_line(reply: dict[str, Any]) -> str:
    """What `call` returned as one line of JSON; an error where the value is no JSON."""
    try:
        return json.dumps(reply, allow_nan=False)
    except (TypeError, ValueError) as error:
        return json.dumps({"error": describe(error), "cpu": reply["cpu"]})


def describe(error: BaseException) -> dict[str, str]:
    """An exception as JSON."""
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": with_remedy(error), "traceback": text}


def finished(key: str, reply: dict[str, Any], attempts: int) -> Event:
    """The last event of a job from what `call` returned."""
    if "error" in reply:
        return Event("finished", key, failure=Failure(attempts=attempts, **reply["error"]))
    return Event("finished", key, value=reply["value"])


def died(key: str, message: str, attempts: int) -> Event:
    """The last event of a job whose process died too often."""
    return Event("finished", key, failure=Failure("WorkerDied", message, "", attempts))


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _find(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
