"""quick: who learns what, in under 10 minutes on two cores."""

from __future__ import annotations

from textgym_benchmarks.suite import Evaluation, Suite
from textgym_benchmarks.suites.rows import rows

AGENTS = ("random", "best-of-n", "lm-ppo", "rloo", "dpo")


def suite() -> Suite:
    """One seed."""
    return Suite(
        "quick",
        (
            *rows(["Bandit", "Deceptive", "Delayed", "Stop"], [*AGENTS, "q-learning", "mcts"], 4_096),
            *rows(["Bandit", "Delayed"], ["sb3-ppo"], 4_096),
            *rows(["Copy"], ["random", "lm-ppo", "rloo", "q-learning"], 16_384),
            *rows(["Helpful"], [*AGENTS, "behaviour-cloning"], 4_096),
            *rows(["Keywords", "Sentiment"], ["lm-ppo", "rloo"], 2_048),
        ),
        "Every family of tasks, the main agents, one seed.",
        Evaluation(points=4, per_prompt=2, final_per_prompt=8, optimum_per_prompt=64),
    )
