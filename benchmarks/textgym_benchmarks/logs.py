"""What is learned from logs: the fixed points of the losses on solvable tasks, and agents on one log of Helpful.

    python -m textgym_benchmarks.logs --exact

It prints, for each solvable task, how far the learned values of a table are from the exact fixed points, and how far
those are from the hard maximum over logged tokens as the expectile goes to 1 and alpha to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import numpy as np
import torch
import tyro
from rich.console import Console
from textgym_agents.lm.logged import LoggedAgent, ValueAgent
from textgym_agents.lm.sequences import Sequences
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.checks import Floats
from textgym.commands.console import number, table
from textgym.solver import PrefixTree, edge_log_probs, policy_values, prefix_tree
from textgym.task import make_reference

SOLVABLE: Final = ("Bandit", "Stop", "Scale", "BetaSweep", "TwoModes", "Deceptive", "BigVocab", "Distractor")
EXPECTILES: Final = (0.5, 0.7, 0.9, 0.99)
ALPHAS: Final = (0.1, 0.01, 0.001)
"""Of CQL, in units of the spread of returns."""
Backup = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""From r + what follows (n, A) and the policy that logged (n, A) in n states, to Q (n, A) and what a state hands on."""

# The exact fixed points


def fixed_point(tree: PrefixTree, log_data: tuple[Floats, ...], backup: Backup) -> tuple[Floats, ...]:
    """Return Q of every edge of a tree without a mask, reward units at time 0, by backward induction.

    Args: log_data: of the policy that logged, per edge, nats.
    """
    found: list[Floats] = []
    worth = np.zeros(len(tree.levels[-1].parent))
    for depth in range(len(tree.levels) - 2, -1, -1):
        level, below = tree.levels[depth], tree.levels[depth + 1]
        shape = (len(level.running), -1)
        targets = (tree.task.gamma**depth * below.reward + worth).reshape(shape)
        action_values, own = backup(targets, np.exp(log_data[depth]).reshape(shape))
        worth = np.zeros(len(level.parent))
        worth[level.running] = own
        found.insert(0, action_values.ravel())
    return tuple(found)


def expectile_backup(expectile: float) -> Backup:
    """Return Q = BQ, V the expectile of Q under the log's policy. Args: expectile: tau; 1 is the maximum."""

    def backup(targets: Floats, data: Floats) -> tuple[Floats, Floats]:
        low, high = targets.min(1), targets.max(1)
        if expectile == 1:
            return targets, high
        for _ in range(60):
            middle = (low + high) / 2
            errors = targets - middle[:, None]
            pull = (data * np.where(errors < 0, 1 - expectile, expectile) * errors).sum(1)
            low, high = np.where(pull > 0, middle, low), np.where(pull > 0, high, middle)
        return targets, (low + high) / 2

    return backup


def conservative_backup(alpha: float) -> Backup:
    """Return Q = BQ - alpha (mu / data - 1) with mu = softmax(Q), and max Q, by Newton's method."""

    def backup(targets: Floats, data: Floats) -> tuple[Floats, Floats]:
        found = targets.copy()

        def mean(values: Floats) -> Floats:
            top = values.max(1, keepdims=True)
            log_sum = np.log(np.exp(values - top).sum(1)) + top[:, 0]
            return alpha * (log_sum - (data * values).sum(1)) + 0.5 * (data * (values - targets) ** 2).sum(1)

        for _ in range(50):
            mu = np.exp(found - found.max(1, keepdims=True))
            mu /= mu.sum(1, keepdims=True)
            slope = data * (found - targets) + alpha * (mu - data)
            curvature = -alpha * mu[:, :, None] * mu[:, None, :]
            places = np.arange(mu.shape[1])
            curvature[:, places, places] += data + alpha * mu
            move = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
            size = np.ones((len(found), 1))
            while (worse := mean(found - size * move) > mean(found) + 1e-12).any():
                size[worse] /= 2
            found = found - size * move
            if np.abs(move).max() < 1e-12:
                break
        return found, found.max(1)

    return backup


# The losses, in a table


def full_log(tree: PrefixTree) -> tuple[Sequences, Floats]:
    """Return every episode of a solved task with its rewards, and a weight (N,) for each of its tokens.

    The weights are P(episode | state) under the reference: together they are a log without end, in which every state
    counts the same.
    """
    exact = policy_values(tree, make_reference(tree.task))
    every = exact.trajectories
    size, steps = len(every.length), len(tree.levels) - 1
    paid, reach = np.zeros((size, steps)), np.ones((size, steps))
    parts, starts = [], np.zeros(size, dtype=np.int64)
    for place, (depth, row) in enumerate(zip(every.length.tolist(), every.row.tolist(), strict=True)):
        shown = tree.observations(depth, np.array([row]))
        length = int(shown["attention_mask"].sum())
        starts[place] = length - depth
        parts.append((shown["input_ids"][0, : length - depth], shown["input_ids"][0, length - depth : length]))
        for step in range(depth - 1, -1, -1):
            paid[place, step] = tree.task.gamma**step * tree.levels[step + 1].reward[row]
            row = tree.levels[step + 1].parent[row]
            reach[place, step] = exact.reach[step][row] * tree.weights[tree.prompt_of[step][row]]
    log = Sequences.of(parts, tree.task.vocabulary.pad_id)
    rows, columns = log.places()
    rewards = np.zeros(log.input_ids.shape)
    rewards[rows, columns] = paid[rows, columns - starts[rows]]
    weights = every.probability[rows] / reach[rows, columns - starts[rows]]
    return Sequences(log.input_ids, log.starts, log.lengths, rewards=rewards), weights


def learned(name: str, agent: str, settings: Mapping[str, object], steps: int = 800) -> tuple[PrefixTree, LoggedAgent]:
    """Return the states of a task, and an agent whose table has followed its loss on the full log.

    Args: name: of a task. agent: that learns values. steps: of Adam, over which its rate falls to 0.
    """
    env = make_env(f"textgym/{name}-v0", 2)
    tree = prefix_tree(env.unwrapped.task)
    log, weights = full_log(tree)
    spread = float(log.returns.std())
    config = {"model": "table", "device": "cpu", "advantage_temperature": spread, "value_coefficient": 1.0, **settings}
    made = cast("LoggedAgent", make_agent(agent, env, make_config(agent_class(agent), config)))
    made._centre_values(log.returns)
    scale, nothing = torch.tensor(weights, dtype=torch.float32), torch.zeros(len(log.lengths))
    for step in range(steps):
        for group in made.optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        made.optimizer.zero_grad()
        (made._losses(log, nothing)[0] * scale).sum().backward()  # type: ignore[no-untyped-call]
        made.optimizer.step()
    made.policy.forget()
    return tree, made


def table_values(tree: PrefixTree, agent: LoggedAgent) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """Return V of every running state, and Q of every edge, reward units at time 0, level by level."""
    values, action_values = [], []
    assert isinstance(agent, ValueAgent)
    for depth, level in enumerate(tree.levels[:-1]):
        own, each = (part.double().numpy() for part in agent.action_values(tree.observations(depth, level.running)))
        edges = tree.levels[depth + 1]
        place = np.searchsorted(level.running, edges.parent)
        values.append(own)
        action_values.append(each[place, edges.action])
    return tuple(values), tuple(action_values)


def distance(one: tuple[Floats, ...], other: tuple[Floats, ...]) -> float:
    """Return the greatest difference of two arrays per level."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def exact_rows(name: str) -> list[tuple[str, ...]]:
    """Return rows of the table of a task: what is learned, how far from its fixed point, and from the maximum."""
    tree = prefix_tree(make_env(f"textgym/{name}-v0", 1).unwrapped.task)
    data = edge_log_probs(tree, make_reference(tree.task))
    best = fixed_point(tree, data, expectile_backup(1))
    spread = float(full_log(tree)[0].returns.std())
    cases: list[tuple[str, str, Mapping[str, object], Backup]] = [
        (f"ilql, expectile {tau}", "ilql", {"expectile": tau, "cql_weight": 0.0}, expectile_backup(tau))
        for tau in EXPECTILES
    ]
    cases += [
        (f"cql, alpha {alpha:g}", "cql", {"cql_weight": alpha * spread}, conservative_backup(alpha * spread))
        for alpha in ALPHAS
    ]
    rows = []
    for label, agent, settings, backup in cases:
        exact = fixed_point(tree, data, backup)
        found = table_values(*learned(name, agent, settings))[1]
        rows.append((name, label, f"{distance(found, exact):.4f}", f"{distance(exact, best):.4f}"))
    values = policy_values(tree, make_reference(tree.task), beta=0.0).values
    found = table_values(*learned(name, "mc-values", {}))[0]
    running = tuple(own[level.running] for own, level in zip(values, tree.levels[:-1], strict=False))
    return [*rows, (name, "mc-values", f"{distance(found, running):.4f}", "-")]


@dataclass(frozen=True)
class LogsFlags:
    """Hold what is learned from logs to the truth."""

    tasks: tuple[str, ...] = SOLVABLE
    """Solvable tasks, by name."""
    exact: bool = False
    """Print the distances of learned values from the exact fixed points."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(LogsFlags)
    shown = table("task", "values", number("from the fixed point"), number("it from the maximum"))
    for name in flags.tasks:
        for row in exact_rows(name):
            shown.add_row(*row)
    Console(highlight=False).print(shown)


if __name__ == "__main__":
    main()
