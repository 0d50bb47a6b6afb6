"""What the rows of the suites are made of: groups of tasks and agents, which fit, settings known to work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from textgym_benchmarks.suite import Cell

EXPLORATION: Final = ("Bandit", "DeepSea", "Deceptive", "BigVocab")
CREDIT: Final = ("Delayed", "Stop", "Distractor")
MEMORY: Final = ("Copy", "Reverse", "Recall")
VALUES: Final = ("Scale", "Noisy", "BetaSweep", "TwoModes")
DIAGNOSTICS: Final = (*EXPLORATION, *CREDIT, *MEMORY, *VALUES)
ALIGNMENT: Final = ("Helpful", "Harmless", "Honest", "HHH")
VERIFIABLE: Final = ("Arithmetic", "Json", "Keywords", "Format", "Pattern")
STYLE: Final = ("Sentiment", "Brief", "NoRepeat")
TASKS: Final = (*DIAGNOSTICS, *ALIGNMENT, *VERIFIABLE, *STYLE)

FIXED: Final = ("random", "best-of-n")
ON_POLICY: Final = ("lm-ppo", "rloo", "grpo", "reinforce", "a2c")
OTHER_LM: Final = ("rejection", "soft-q", "dpo", "behaviour-cloning")
TABULAR: Final = ("q-learning", "sarsa", "monte-carlo")
SEARCH: Final = ("mcts", "alphazero")
SB3_ON_POLICY: Final = ("sb3-ppo", "sb3-maskable-ppo", "sb3-recurrent-ppo", "sb3-a2c", "sb3-trpo")
SB3_VALUES: Final = ("sb3-dqn", "sb3-qrdqn")
SB3_POINTS: Final = ("sb3-ddpg", "sb3-td3", "sb3-sac")
SB3: Final = (*SB3_ON_POLICY, *SB3_VALUES, *SB3_POINTS)
AGENTS: Final = (*FIXED, *ON_POLICY, *OTHER_LM, *TABULAR, *SEARCH, *SB3)

# Of networks that start from nothing on a real vocabulary: ranks among the reference's likeliest tokens, and its
# features (docs/sb3.md).
_NEAR_REFERENCE: Final = {"top_k": 4, "lm_features": True, "reference_reward": False, "learning_rate": 0.003}
_COOLING: Final = {"temperature": 1.0, "temperature_end": 0.1}


def rows(
    tasks: Iterable[str],
    agents: Iterable[str],
    episodes: int,
    seeds: int = 1,
    **more: Any,
) -> tuple[Cell, ...]:
    """The product of tasks, agents and seeds, without the pairs that do not fit.

    Args:
        tasks: names, as in textgym/NAME-v0.
        agents: registered names.
        episodes: the budget of each cell.
        seeds: how many, from 0.
        more: other fields of every cell; `config` goes over the agent's known settings.
    """
    config = dict(more.pop("config", {}))
    agents = tuple(agents)
    return tuple(
        Cell(task_id(task), agent, episodes, seed, config={**settings(agent, task), **config}, **more)
        for task in tasks
        for agent in agents
        if fits(agent, task)
        for seed in range(seeds)
    )


def task_id(name: str) -> str:
    """The id of a task's first version."""
    return f"textgym/{name}-v0"


def fits(agent: str, task: str) -> bool:
    """Whether an agent can learn a task at all: tables need few states, imitation needs somebody to imitate."""
    if agent in TABULAR or agent in SEARCH:
        return task in DIAGNOSTICS
    if agent == "behaviour-cloning":
        return task in ALIGNMENT
    if agent == "dpo":
        return task != "Json"  # it has a grammar mask
    return True


def settings(agent: str, task: str) -> Mapping[str, Any]:
    """What differs from an agent's defaults on a task, because it is known to be better."""
    if agent in TABULAR:
        return _COOLING
    if agent == "mcts":
        return {"simulations": 16}
    if agent == "alphazero":
        return {"simulations": 16, "batch": 64}
    if agent.startswith("sb3-") and task not in DIAGNOSTICS:
        near = dict(_NEAR_REFERENCE)
        if agent in SB3_POINTS:  # a point stands for a token by itself
            near.pop("top_k")
        return near
    return {}
