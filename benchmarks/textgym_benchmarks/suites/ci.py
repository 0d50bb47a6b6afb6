"""ci: a few cells of every kind, in about a minute."""

from __future__ import annotations

from textgym_benchmarks.suite import Evaluation, Suite
from textgym_benchmarks.suites.rows import rows


def suite() -> Suite:
    """Shows that everything runs, not who is best."""
    return Suite(
        "ci",
        (
            *rows(["Bandit", "Delayed"], ["random", "lm-ppo", "rloo", "q-learning", "sb3-ppo"], 1024),
            *rows(["Bandit"], ["best-of-n"], 1024),
            *rows(["Helpful"], ["lm-ppo"], 512),
        ),
        "A few cells of every kind; shows that everything runs.",
        Evaluation(points=2, per_prompt=1, final_per_prompt=2, optimum_per_prompt=8),
    )
