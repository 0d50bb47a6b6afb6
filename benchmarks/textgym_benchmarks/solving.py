"""How fast the exact solver is, and how much memory it takes: `python -m textgym_benchmarks.solving`."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass

import tyro

from textgym import make_task
from textgym.solver import prefix_tree, solve

SECONDS, GIGABYTES = 10.0, 2.0


@dataclass(frozen=True)
class Solving:
    """What to solve: every text of so many letters, with a stop token."""

    letters: int = 10
    """Letters in the vocabulary."""
    length: int = 6
    """Tokens of the longest completion. 10 letters and 6 tokens make 1,222,222 states."""


@dataclass(frozen=True)
class SolvingRow:
    """One measurement.

    Attributes:
        growing: seconds to build the tree and to score every finished text. solving: seconds of backward induction and
            of everything that the command prints. gigabytes: most memory the process has held, its imports included.
        reached: whether a million states take less than 10 s and 2 GB.
    """

    states: int
    growing: float
    solving: float
    gigabytes: float
    reached: bool


def measure(settings: Solving) -> SolvingRow:
    """Solves one tree. Memory is that of the whole process: measure in a fresh one."""
    words = [chr(ord("a") + i) for i in range(settings.letters)]
    task = make_task(
        "Text",
        prompts=["a"],
        tokenizer=[*words, "<end>"],
        stop="<end>",
        reward=_count_a,
        max_new_tokens=settings.length,
        beta=0.3,
    )
    start = time.perf_counter()
    tree = prefix_tree(task, max_states=10**9)
    grown = time.perf_counter()
    solution = solve(tree)
    solution.likeliest(0)
    assert solution.reference_objective < solution.objective
    solved = time.perf_counter()
    unit = 2**30 if sys.platform == "darwin" else 2**20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    scale = 1_000_000 / tree.states
    reached = (solved - start) * scale < SECONDS and memory * min(scale, 1.0) < GIGABYTES
    return SolvingRow(tree.states, grown - start, solved - grown, memory, reached)


def _count_a(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("a")) for text in completions]


if __name__ == "__main__":
    print(json.dumps(asdict(measure(tyro.cli(Solving))), indent=2))
