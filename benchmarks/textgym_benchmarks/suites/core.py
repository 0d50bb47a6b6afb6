"""core: a cut across every family of tasks and of agents; its results are committed."""

from __future__ import annotations

from textgym_benchmarks.suite import Evaluation, Suite
from textgym_benchmarks.suites.rows import ALIGNMENT, DIAGNOSTICS, MEMORY, STYLE, VERIFIABLE, rows

SEEDS = 3
LONG = (*MEMORY, "DeepSea")
# One agent for each idea.
EVERYWHERE = ("random", "best-of-n", "lm-ppo", "rloo", "grpo", "a2c", "soft-q", "q-learning")
ELSEWHERE = ("dpo", "rejection", "mcts", "sb3-ppo", "sb3-dqn")


def suite() -> Suite:
    """Three seeds, under two hours on two cores."""
    short = tuple(task for task in DIAGNOSTICS if task not in LONG)
    return Suite(
        "core",
        (
            *rows(short, EVERYWHERE, 4_096, SEEDS),
            *rows(LONG, EVERYWHERE, 16_384, SEEDS),
            *rows(["Bandit", "Delayed", "Stop", "Deceptive"], ELSEWHERE, 4_096, SEEDS),
            *rows(["Bandit"], ["sb3-sac"], 4_096, SEEDS),
            *rows(["Copy"], ["dpo", "rejection", "sb3-ppo", "sb3-dqn"], 16_384, SEEDS),
            *rows(["Helpful"], EVERYWHERE, 4_096, SEEDS),
            *rows(
                ["Helpful"],
                ["reinforce", "rejection", "dpo", "behaviour-cloning", "sb3-ppo"],
                4_096,
                SEEDS,
            ),
            *rows([*ALIGNMENT[1:], *VERIFIABLE, *STYLE], ["lm-ppo"], 4_096, SEEDS),
            *rows(["Honest", "Arithmetic", "Sentiment"], ["rloo", "dpo"], 4_096, SEEDS),
            *rows(["Arithmetic", "Sentiment"], ["best-of-n"], 4_096, SEEDS),
        ),
        "A cut across every family of tasks and of agents, three seeds.",
        Evaluation(points=5, per_prompt=2, final_per_prompt=8, optimum_per_prompt=256),
    )
