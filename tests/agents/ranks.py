"""Start ranks of a job as processes of their own, with the variables that a launcher sets.

`python ranks.py JOB FOLDER [WORD ...]` is one rank: it runs the function JOB of `agents.rank_jobs`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOTS = [TESTS, TESTS.parent, TESTS.parent / "agents", TESTS.parent / "benchmarks"]


def start(words: Sequence[str], world: int, **variables: str) -> list[subprocess.Popen[str]]:
    """Start `python WORDS` as so many ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": os.pathsep.join(map(str, ROOTS)), **variables}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(ranks: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[str]:
    """Wait for ranks and return what they printed. Raises: AssertionError if one fails."""
    texts = []
    try:
        for rank in ranks:
            texts.append(rank.communicate(timeout=timeout)[0])
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(texts)[-4000:]
    return texts


def run_job(job: str, folder: Path, *words: str, world: int = 2) -> list[str]:
    """Run a job of `agents.rank_jobs` on so many ranks, and return what they printed."""
    return finish(start([__file__, job, str(folder), *words], world))


if __name__ == "__main__":
    from agents import rank_jobs

    getattr(rank_jobs, sys.argv[1])(Path(sys.argv[2]), *sys.argv[3:])
