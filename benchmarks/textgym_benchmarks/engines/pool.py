"""Engines on one machine: one job after another, or a pool of processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from textgym_benchmarks.engines.jobs import (
    ONE_THREAD,
    READY,
    RETRIES,
    Event,
    Job,
    call,
    cores,
    died,
    finished,
    fresh_python,
)


class Serial:
    """Runs jobs here. A job that kills its process kills this one; what was finished stays."""

    workers = 1

    def __init__(self) -> None:
        self._seconds = 0.0

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """See `Engine.run`."""
        self._seconds = 0.0
        started = time.process_time()
        try:
            for job in jobs:
                yield Event("started", job.key)
                yield finished(job.key, call(job.function, job.arguments), attempts=1)
        finally:
            self._seconds = time.process_time() - started

    def cpu_seconds(self) -> float:
        """See `Engine.cpu_seconds`."""
        return self._seconds


_START = "from textgym_benchmarks.engines.worker import start; start()"
_GRACE = 5.0  # seconds that an interrupted worker has to save what it can
_TAIL = 2000  # characters of a dead worker's last words


@dataclass(frozen=True)
class _Attempt:
    job: Job
    number: int


class Pool:
    """Runs jobs in processes, each a fresh interpreter with one thread that imports what it needs once.

    Args:
        workers: processes; None for the cores that this process may use.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = cores() if workers is None else workers
        self._seconds = 0.0

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """See `Engine.run`. A job whose process died is started again up to `RETRIES` times.

        Raises: RuntimeError where processes end before they are ready for a job: then no job is to blame.
        """
        waiting = deque(_Attempt(job, 1) for job in jobs)
        replies: queue.Queue[tuple[_Worker, str]] = queue.Queue()
        running: dict[_Worker, _Attempt] = {}
        idle: list[_Worker] = []
        before = _children_seconds()
        complete, never_ready = False, 0
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    attempt = waiting.popleft()
                    worker = idle.pop() if idle else _Worker(replies)
                    running[worker] = attempt
                    worker.start(attempt.job)
                    yield Event("started", attempt.job.key)
                worker, line = _next(replies)
                if worker not in running:
                    idle = [
                        other for other in idle if other is not worker
                    ]  # it died while it had nothing to do
                    continue
                attempt = running.pop(worker)
                never_ready = 0 if worker.ready else never_ready + 1
                if line:
                    idle.append(worker)
                    yield finished(attempt.job.key, json.loads(line), attempt.number)
                    continue
                message = worker.last_words()
                if not worker.ready:
                    if never_ready > RETRIES:
                        raise RuntimeError(f"workers cannot start: {message}")
                    waiting.appendleft(attempt)
                    yield Event("lost", attempt.job.key, value=message)
                elif attempt.number > RETRIES:
                    yield died(attempt.job.key, message, attempt.number)
                else:
                    waiting.appendleft(_Attempt(attempt.job, attempt.number + 1))
                    yield Event("lost", attempt.job.key, value=message)
            complete = True
        finally:
            _stop([*running, *idle], kindly=complete)
            self._seconds = _children_seconds() - before

    def cpu_seconds(self) -> float:
        """See `Engine.cpu_seconds`: of all processes, from their start to their end."""
        return self._seconds


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
            # Ctrl-C goes to the whole group of a terminal; workers are told by whoever runs the pool.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(replies,), daemon=True).start()

    def start(self, job: Job) -> None:
        """Sends a job; of a process that has died, the thread tells."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asdict(job), allow_nan=False) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def last_words(self) -> str:
        """How the process ended, and the end of what it printed."""
        code = self.process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", by which the system ends what takes too much memory: fewer workers take less"
        self._errors.seek(0)
        printed = self._errors.read().decode("utf-8", "replace")[-_TAIL:].strip()
        self.close()
        return f"the worker process ended: {how}" + (f"; it printed last: {printed}" if printed else "")

    def close(self) -> None:
        """Lets go of what belongs to a process that has ended."""
        _close(self.process.stdin)
        self._errors.close()

    def _listen(self, replies: queue.Queue[tuple[_Worker, str]]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers:
            self.ready = answers.readline() == READY
            for line in answers:
                if not line.endswith("\n"):
                    break
                replies.put((self, line))
        replies.put((self, ""))


def _next(replies: queue.Queue[tuple[_Worker, str]]) -> tuple[_Worker, str]:
    while True:
        try:
            # Without a timeout, Ctrl-C would wait for the queue on some systems.
            return replies.get(timeout=1.0)
        except queue.Empty:
            continue


def _stop(workers: Sequence[_Worker], kindly: bool) -> None:
    """Ends processes: those without a job when their input ends, others by an interrupt and then by force."""
    for worker in workers:
        if not kindly and worker.process.poll() is None:
            worker.process.send_signal(signal.SIGINT)
        elif kindly:
            _close(worker.process.stdin)
    until = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(until - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.close()


def _close(stream: IO[Any] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except BrokenPipeError:
        pass


def _children_seconds() -> float:
    used = os.times()
    return used.children_user + used.children_system
