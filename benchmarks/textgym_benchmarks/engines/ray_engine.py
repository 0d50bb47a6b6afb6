"""The engine on Ray: a cluster, or Ray on this machine."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from textgym_benchmarks.engines.jobs import ONE_THREAD, RETRIES, Event, Job, cores, died, finished, search_path

_NO_NETWORK = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Ray:
    """Runs jobs as Ray tasks of one core each.

    Args:
        workers: jobs at a time on this machine; None for its cores. A cluster knows its own.
        address: of a cluster; None starts Ray here, and ends it after the run.
    Raises: ModuleNotFoundError if Ray is not installed.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            message = 'engine "ray" needs ray, which is not installed: pip install "textgym[dist]"'
            raise ModuleNotFoundError(message, name="ray") from error
        self.workers = cores() if workers is None else workers
        self.cpu_seconds = 0.0  # of the jobs alone
        self._address = address

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """See `Engine.run`. Ray starts a job again, up to `RETRIES` times, whose process or machine died.

        Ray does not say what it has started: a job is handed over when there is a worker for it.

        Raises: RuntimeError where Ray itself is lost, or cannot start workers: then no job is to blame.
        """
        import ray

        self.cpu_seconds = 0.0
        self._connect()
        try:
            remote = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)
            task = remote(_task(search_path()))
            source = iter(jobs)
            running: dict[object, str] = {}
            while True:
                for job in islice(source, self.workers - len(running)):
                    running[task.remote(job.function, json.dumps(job.arguments))] = job.key
                    yield Event("started", job.key)
                if not running:
                    return
                (reference,), _ = ray.wait(list(running), num_returns=1)
                yield self._ending(reference, running.pop(reference))
        except (ray.exceptions.RayError, ConnectionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"Ray was lost, or cannot run jobs, and no job is to blame: {what}") from error
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        os.environ.update(_NO_NETWORK)
        import ray

        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        environment = {"env_vars": ONE_THREAD}
        if self._address is None:
            ray.init("local", num_cpus=self.workers, include_dashboard=False, runtime_env=environment, **quiet)
        else:
            ray.init(self._address, runtime_env=environment, **quiet)
            self.workers = max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def _ending(self, reference: object, key: str) -> Event:
        """Return the last event of a job that has ended. Raises: RayError for what is no job's fault."""
        import ray

        errors = ray.exceptions
        try:
            reply = json.loads(ray.get(reference))
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            return died(key, f"{type(error).__name__}: {error}", RETRIES + 1)
        self.cpu_seconds += reply["cpu"]
        return finished(key, reply, attempts=1)


def _task(paths: list[str]) -> Callable[[str, str], str]:
    """Return what Ray runs, with modules from `paths` and, on a machine that lacks those, from the worker's own.

    A function made here travels as a whole: by name, it would be the one that a worker finds.
    """

    def run(function: str, arguments: str) -> str:
        import sys

        if sys.path[: len(paths)] != paths:
            # Ray's workers put the folder that Ray was started in before Python's own folders.
            sys.path[:0] = paths
        import json

        from textgym_benchmarks.engines.jobs import call, reply_line

        return reply_line(call(function, json.loads(arguments)))

    return run
