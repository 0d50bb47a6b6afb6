"""Which rows of a suite run, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from textgym_agents.registry import agent_class, agent_names

from textgym.checks import not_one_of
from textgym_benchmarks.suite import Cell, Suite, check_integer
from textgym_benchmarks.suite_folder import family_of

# CPU seconds on one core of a Xeon: of the evaluations of a cell,
_EVALUATIONS: Final = {"diagnostics": 2.0}
_EVALUATIONS_REAL: Final = 22.0
_MANY_PROMPTS: Final = {"textgym/Copy-v0": 6.0, "textgym/Reverse-v0": 6.0, "textgym/Recall-v0": 6.0}
# and of 1,000 episodes: on the small vocabularies of the diagnostics, and on a language model.
_SMALL: Final = {"mcts": 2.0, "alphazero": 8.0}
_SMALL_TABLE, _SMALL_LM, _SMALL_SB3 = 0.15, 0.9, 4.0
_LARGE: Final = 7.0
_NO_LEARNING: Final = ("best-of-n", "random", "reference")
_TABLES: Final = ("q-learning", "sarsa", "monte-carlo")
_BEST_OF: Final = 4.0
"""best-of-n writes many completions for each that is evaluated: so much longer are its evaluations."""


def cost(cell: Cell) -> float:
    """CPU seconds that a cell takes, within a factor of about three."""
    family = family_of(cell.id)
    evaluations = _MANY_PROMPTS.get(cell.id, _EVALUATIONS.get(family, _EVALUATIONS_REAL))
    if cell.agent in _NO_LEARNING:
        return evaluations * (_BEST_OF if cell.agent == "best-of-n" else 1.0)
    per_thousand = _small(cell.agent) if family == "diagnostics" else _LARGE
    return evaluations + per_thousand * cell.episodes / 1000


def _small(agent: str) -> float:
    if agent in _TABLES:
        return _SMALL_TABLE
    return _SMALL.get(agent, _SMALL_SB3 if agent.startswith("sb3-") else _SMALL_LM)


def select(suite: Suite, agents: Sequence[str] | None = None, seeds: int | None = None) -> Suite:
    """A suite of the same name and settings with other rows.

    Args:
        suite: where the rows come from.
        agents: registered names, labels of the suite, or "module:Class"; None for all of the suite. One that the
            suite has no rows for gets those of its main agent, without that agent's settings: the same tasks,
            budgets and seeds.
        seeds: how many, from 0; None for the suite's own.
    Raises: ValueError for an unknown name, a class that is no agent, or a name given twice; ImportError if a class
        cannot be imported.
    """
    cells = suite.cells
    if agents is not None:
        _check_agents(suite, agents)
        cells = tuple(cell for agent in agents for cell in _cells_of(suite, agent))
    if seeds is not None:
        check_integer("seeds", seeds, 1)
        distinct = dict.fromkeys(replace(cell, seed=0).key for cell in cells)
        first = {replace(cell, seed=0).key: cell for cell in reversed(cells)}
        cells = tuple(replace(first[key], seed=seed) for key in distinct for seed in range(seeds))
    return replace(suite, cells=cells)


def main_agent(suite: Suite) -> str:
    """The agent with the most rows; of several the first that learns on a language model, if there is one."""
    counts = Counter(cell.agent for cell in suite.cells)
    most = max(counts.values())
    leading = [agent for agent in counts if counts[agent] == most]
    return "lm-ppo" if "lm-ppo" in leading else leading[0]


def _cells_of(suite: Suite, agent: str) -> list[Cell]:
    own = [cell for cell in suite.cells if agent in (cell.agent, cell.name)]
    if own:
        return own
    leader = main_agent(suite)
    rows = [cell for cell in suite.cells if cell.agent == leader]
    made = [replace(cell, agent=agent, label="", config={}) for cell in rows]
    return list({cell.key: cell for cell in made}.values())  # variants of the leader differ in settings alone


def _check_agents(suite: Suite, agents: Sequence[str]) -> None:
    known = {*agent_names(), *(cell.name for cell in suite.cells)}
    if not agents:
        raise ValueError("agents=(): allowed is at least one, or None for those of the suite")
    for agent in agents:
        if agents.count(agent) > 1:
            raise ValueError(f"agents: {agent!r} stands there twice")
        if ":" in agent:
            agent_class(agent)
        elif agent not in known:
            raise ValueError(f"{not_one_of('agent', agent, known)} A class of your own is module:Class")
