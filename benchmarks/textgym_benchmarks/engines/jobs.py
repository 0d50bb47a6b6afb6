"""The protocol of engines and their workers: a job is a function's name and JSON; so is what comes back."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from textgym.checks import JsonObject, users_line
from textgym.interrupts import with_remedy
from textgym.registry import load_target

RETRIES: Final = 2
"""How often a job is started again whose process died."""
ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
"""Environment of a worker: a cell has one thread, so that workers do not compete for cores and numbers do not depend on
how many there are."""


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
    arguments: JsonObject


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
        value: what the function returned, JSON; of a lost job, why.
        failure: why there is no value.
    """

    kind: Literal["started", "lost", "finished"]
    key: str
    value: object = None
    failure: Failure | None = None


class Engine(Protocol):
    """Runs jobs."""

    workers: int
    """Jobs that run at a time, as far as it is known."""
    cpu_seconds: float
    """CPU time of the last `run` that has ended, that of its processes included."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Start the jobs in their order and yield what happens; every job finishes once.

        A job is taken from `jobs` when a worker is free for it: an iterator can choose it by what has finished until
        then. A function that raises fails its job and no other. Closing the iterator stops what runs.
        """


def search_path() -> list[str]:
    """Return the folders in which this process finds modules."""
    return [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  ("" is the current folder)


def fresh_python(code: str) -> list[str]:
    """Return a command line that runs code in a new interpreter, which finds the modules that this process finds.

    It does so whatever lies in the current folder (-P). The folders are passed as a list, since PYTHONPATH cannot name
    one with a colon.
    """
    start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1])\n{code}"
    return [sys.executable, "-P", "-c", start, json.dumps(search_path())]


def call(function: str, arguments: JsonObject) -> JsonObject:
    """Run a job's function in this process.

    Returns: {"value": ...} or {"error": {"type", "message", "traceback"}}, and "cpu": seconds.
    """
    started = time.process_time()
    try:
        reply: JsonObject = {"value": load_target(function, "function")(**arguments)}
    except Exception as error:
        reply = {"error": _described(error)}
    return reply | {"cpu": time.process_time() - started}


def reply_line(reply: JsonObject) -> str:
    """Return a reply of `call` as one line of JSON; an error where the value is no JSON."""
    try:
        return json.dumps(reply, allow_nan=False)
    except (TypeError, ValueError) as error:
        return json.dumps({"error": _described(error), "cpu": reply["cpu"]})


def _described(error: Exception) -> dict[str, str]:
    text, message, place = "".join(traceback.format_exception(error)), with_remedy(error), users_line(error)
    message += "" if place in message else place
    return {"type": type(error).__name__, "message": message, "traceback": text}


def finished(key: str, reply: JsonObject, attempts: int) -> Event:
    """Return the last event of a job from a reply of `call`."""
    if "error" in reply:
        return Event("finished", key, failure=Failure(attempts=attempts, **reply["error"]))
    return Event("finished", key, value=reply["value"])


def died(key: str, message: str, attempts: int) -> Event:
    """Return the last event of a job whose process died too often."""
    return Event("finished", key, failure=Failure("WorkerDied", message, "", attempts))


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
