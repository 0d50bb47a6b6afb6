"""Where the cells of a suite run: in this process, in a pool of processes, or on Ray; all by the same protocol."""

from __future__ import annotations

from typing import Final

from textgym.checks import not_one_of
from textgym_benchmarks.engines.jobs import Engine, Event, Failure, Job

ENGINES: Final = ("serial", "pool", "ray")


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
    from textgym_benchmarks.engines.pool import Pool, Serial

    return Serial() if name == "serial" else Pool(workers)


__all__ = ["ENGINES", "Engine", "Event", "Failure", "Job", "make_engine"]
