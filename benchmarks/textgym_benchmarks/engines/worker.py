"""A worker of the pool: reads jobs as lines of JSON, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import TextIO

from textgym.interrupts import sigterm_raises
from textgym_benchmarks.engines.jobs import READY, call, reply_line


def start() -> None:
    """Works until its standard input ends, or whoever runs the pool interrupts it."""
    # A pool in the background ignores Ctrl-C; its workers, which no terminal reaches, take it from the pool.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with sigterm_raises():
            _work()
    except KeyboardInterrupt:
        sys.exit(130)


def _work() -> None:
    # The answers have the standard output for themselves; whatever else is printed goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answers.write(READY)
    answers.flush()
    jobs: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(sys.stdin, jobs, busy), daemon=True).start()
    while (line := jobs.get()) is not None:
        busy.set()
        answers.write(_answer(line) + "\n")
        answers.flush()
        busy.clear()


def _answer(line: str) -> str:
    job = json.loads(line)
    return reply_line(call(job["function"], job["arguments"]))


def _read(source: TextIO, jobs: queue.Queue[str | None], busy: threading.Event) -> None:
    for line in source:
        jobs.put(line)
    if busy.is_set():
        # Whoever asked is gone: the job is left as a killed one would be, for the next run to go on with.
        os._exit(1)
    jobs.put(None)
