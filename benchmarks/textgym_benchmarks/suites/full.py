"""full: every agent on every task that it can learn, for a cluster."""

from __future__ import annotations

from textgym_benchmarks.suite import Suite
from textgym_benchmarks.suites.rows import AGENTS, DIAGNOSTICS, TASKS, rows

SEEDS = 5


def suite() -> Suite:
    """Five seeds."""
    real = [task for task in TASKS if task not in DIAGNOSTICS]
    return Suite(
        "full",
        (*rows(DIAGNOSTICS, AGENTS, 40_960, SEEDS), *rows(real, AGENTS, 20_480, SEEDS)),
        "Every agent on every task that it can learn, five seeds; for a cluster.",
    )
