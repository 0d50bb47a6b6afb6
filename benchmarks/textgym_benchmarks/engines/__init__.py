"""Engines that run the cells of a suite: in this process, in a pool of processes, or on Ray."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Final, TextIO

from textgym.checks import not_one_of
from textgym.interrupts import heeded, sigterm_raises
from textgym.processes import children_seconds, how_it_ended, interrupt
from textgym_benchmarks.engines.jobs import (
    ONE_THREAD,
    RETRIES,
    Engine,
    Event,
    Failure,
    Job,
    call,
    cores,
    died,
    finished,
    fresh_python,
    reply_line,
)

ENGINES: Final = ("serial", "pool", "ray")
"""What `make_engine` takes."""
_START: Final = "from textgym_benchmarks.engines import run_worker; run_worker()"
_READY: Final = "ready\n"  # what a worker says first
_GRACE: Final = 5.0  # seconds that an interrupted worker has to save what it can
_TAIL: Final = 2000  # characters of a dead worker's last words


def make_engine(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine by its name.

    Args:
        name: "serial", one cell after the other in this process; "pool", processes of this machine; or "ray", a Ray
            cluster, or Ray on this machine.
        workers: processes; None for as many as there are cores to use. `serial` has one.
        address: of a Ray cluster, as `ray.init` takes it; None starts Ray on this machine.
    Raises: ValueError for an unknown name, or an argument that the engine does not have; ModuleNotFoundError if Ray is
        asked for and not installed.
    """
    if name not in ENGINES:
        raise ValueError(not_one_of("engine", name, ENGINES))
    if address is not None and name != "ray":
        raise ValueError(f"address={address!r}: engine {name!r} has no address; allowed is engine='ray'")
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 1):
        raise ValueError(f"workers={workers!r}: allowed is None or an integer >= 1")
    if name == "serial" and workers not in (None, 1):
        raise ValueError(f"workers={workers!r}: engine 'serial' has one; allowed is engine='pool'")
    if name == "ray":
        from textgym_benchmarks.engines.ray_engine import Ray

        return Ray(workers, address)
    return Serial() if name == "serial" else Pool(workers)


class Serial:
    """Runs jobs here. A job that kills its process kills this one; what was finished stays."""

    workers = 1
    cpu_seconds = 0.0

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """See `Engine.run`."""
        started = time.process_time()
        try:
            for job in jobs:
                yield Event("started", job.key)
                with heeded():
                    yield finished(job.key, call(job.function, job.arguments), attempts=1)
        finally:
            self.cpu_seconds = time.process_time() - started


class Pool:
    """Runs jobs in processes, each a fresh interpreter with one thread that imports what it needs once."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = cores() if workers is None else workers
        self.cpu_seconds = 0.0

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """See `Engine.run`. A job whose process died is started again up to `RETRIES` times.

        Raises: RuntimeError where processes end before they are ready for a job: then no job is to blame.
        """
        source = iter(jobs)
        again: deque[tuple[Job, int]] = deque()  # and the number of the attempt
        replies: queue.Queue[tuple[_Worker, str]] = queue.Queue()
        running: dict[_Worker, tuple[Job, int]] = {}
        idle: list[_Worker] = []
        before = children_seconds()
        complete, never_ready = False, 0
        try:
            while True:
                while len(running) < self.workers:
                    job, attempt = again.popleft() if again else (next(source, None), 1)
                    if job is None:
                        break
                    worker = idle.pop() if idle else _Worker(replies)
                    running[worker] = job, attempt
                    worker.start(job)
                    yield Event("started", job.key)
                if not running:
                    break
                worker, line = _next(replies)
                if worker not in running:  # it died while it had nothing to do
                    idle = [other for other in idle if other is not worker]
                    continue
                job, attempt = running.pop(worker)
                never_ready = 0 if worker.ready else never_ready + 1
                if line:
                    idle.append(worker)
                    yield finished(job.key, json.loads(line), attempt)
                    continue
                message = worker.last_words()
                if never_ready > RETRIES:
                    raise RuntimeError(f"workers cannot start: {message}")
                if worker.ready and attempt > RETRIES:
                    yield died(job.key, message, attempt)
                else:
                    again.append((job, attempt + int(worker.ready)))
                    yield Event("lost", job.key, value=message)
            complete = True
        finally:
            _stop([*running, *idle], kindly=complete)
            self.cpu_seconds = children_seconds() - before  # of all processes, from their start to their end


class _Worker:
    """One process, and a thread that waits for its answers."""

    def __init__(self, replies: queue.Queue[tuple[_Worker, str]]) -> None:
        self.ready = False
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115  (closed by `close`)
        self.process = subprocess.Popen(
            fresh_python(_START),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | ONE_THREAD,
            text=True,
            encoding="utf-8",
            # A terminal sends Ctrl-C to its whole group; the pool itself tells its workers.
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._jobs, self._answers = self.process.stdin, self.process.stdout
        threading.Thread(target=self._listen, args=(replies,), daemon=True).start()

    def start(self, job: Job) -> None:
        """Send a job; if the process has died, the thread reports it."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.write(json.dumps(asdict(job), allow_nan=False) + "\n")
            self._jobs.flush()

    def last_words(self) -> str:
        """Return how the process ended, and the end of what it printed."""
        how = how_it_ended(self.process.wait())
        self._errors.seek(0)
        printed = self._errors.read().decode("utf-8", "replace")[-_TAIL:].strip()
        self.close()
        return f"the worker process ended: {how}" + (f"; it printed last: {printed}" if printed else "")

    def close_input(self) -> None:
        """Tell the process that there are no more jobs: it ends when it has none."""
        with contextlib.suppress(BrokenPipeError):
            self._jobs.close()

    def close(self) -> None:
        """Release what belongs to a process that has ended."""
        self.close_input()
        self._errors.close()

    def _listen(self, replies: queue.Queue[tuple[_Worker, str]]) -> None:
        with self._answers as answers:
            self.ready = answers.readline() == _READY
            for line in answers:
                if not line.endswith("\n"):
                    break
                replies.put((self, line))
        replies.put((self, ""))


def _next(replies: queue.Queue[tuple[_Worker, str]]) -> tuple[_Worker, str]:
    while True:
        # Without a timeout, Ctrl-C would wait for the queue on some systems.
        with contextlib.suppress(queue.Empty):
            return replies.get(timeout=1.0)


def _stop(workers: Sequence[_Worker], kindly: bool) -> None:
    """End processes: those without a job by the end of their input, others by an interrupt and then by force."""
    for worker in workers:
        if kindly:
            worker.close_input()
        elif worker.process.poll() is None:
            interrupt(worker.process)
    until = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.close()


def run_worker() -> None:
    """Answer the jobs of standard input until it ends, or until the pool interrupts."""
    # A pool in the background ignores Ctrl-C; its workers, which no terminal reaches, take it from the pool.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with sigterm_raises():
            _answer_jobs()
    except KeyboardInterrupt:
        sys.exit(130)


def _answer_jobs() -> None:
    # The answers have the standard output for themselves; whatever else is printed goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # line by line, so that what a job printed before its process was killed is there
    answers.write(_READY)
    answers.flush()
    jobs: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(sys.stdin, jobs, busy), daemon=True).start()
    while (line := jobs.get()) is not None:
        busy.set()
        job = json.loads(line)
        with heeded():
            answers.write(reply_line(call(job["function"], job["arguments"])) + "\n")
            answers.flush()
        busy.clear()


def _read(source: TextIO, jobs: queue.Queue[str | None], busy: threading.Event) -> None:
    for line in source:
        jobs.put(line)
    if busy.is_set():
        # The pool is gone: the job is left as a killed one would be, for the next run to go on with.
        os._exit(1)
    jobs.put(None)


__all__ = ["ENGINES", "Engine", "Event", "Failure", "Job", "make_engine"]
