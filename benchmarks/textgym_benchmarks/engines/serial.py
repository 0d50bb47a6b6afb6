"""The serial engine: one job after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from textgym_benchmarks.engines.jobs import Event, Job, call, finished


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
