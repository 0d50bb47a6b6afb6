"""A part of a suite, or more than it: only some agents, agents of one's own, another number of seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from textgym_agents.registry import agent_class, agent_names

from textgym.messages import not_one_of
from textgym_benchmarks.suite import Cell, Suite, check_integer


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
