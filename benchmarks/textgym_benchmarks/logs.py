"""What is learned from logs: the fixed points of the losses on solvable tasks, and agents on one log of Helpful.

    python -m textgym_benchmarks.logs --exact
    python -m textgym_benchmarks.logs --out runs/logs
    python -m textgym_benchmarks.logs --out runs/logs --table

The first line prints, for each solvable task, how far the learned values of a table are from the exact fixed points,
and how far those are from the hard maximum over logged tokens as the expectile goes to 1 and alpha to 0. The second
has the reference log completions of Helpful, from which every contestant learns with its trials on the split "tune"
and, with the one that has the best J, with fresh seeds; what has a result is not run again. The third prints what is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
import tyro
from rich.console import Console
from textgym_agents.datasets import play_episodes, write_log
from textgym_agents.lm.logged import LoggedAgent, ValueAgent
from textgym_agents.lm.sequences import Sequences
from textgym_agents.registry import agent_class, make_agent, make_config, make_env

from textgym.checks import Floats, Ints, JsonObject
from textgym.commands.console import number, script, table
from textgym.solver import PrefixTree, edge_log_probs, policy_values, prefix_tree
from textgym.task import make_reference
from textgym_benchmarks.results.store import load_results
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.statistics import leads
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.summaries.grid import at

SOLVABLE: Final = ("Bandit", "Stop", "Scale", "BetaSweep", "TwoModes", "Deceptive", "BigVocab")
EXPECTILES: Final = (0.5, 0.7, 0.9, 0.99)
ALPHAS: Final = (0.1, 0.01, 0.001)
"""Of CQL, in units of the spread of returns."""
TRIALS: Final[Mapping[str, tuple[str, Sequence[JsonObject]]]] = {
    "ilql": ("ilql", ({}, {"expectile": 0.9}, {"value_coefficient": 1.0})),
    "cql": ("cql", ({}, {"cql_weight": 0.001}, {"value_coefficient": 1.0})),
    "mc-values": ("mc-values", ({}, {"advantage_temperature": 0.1}, {"value_coefficient": 1.0})),
    "awr": ("awr", ({}, {"advantage_temperature": 0.1}, {"greatest_weight": 20.0})),
    "filtered cloning": ("behaviour-cloning", tuple({"best_share": share} for share in (0.05, 0.1, 0.2))),
    "rejection": (
        "behaviour-cloning",
        tuple({"best_share": share, "best_of": "prompt"} for share in (0.05, 0.125, 0.25)),
    ),
    "dpo": ("dpo", ({}, {"noise": 0.05}, {"noise": 0.2})),
}
"""Contestant on the log -> its agent, and as many changes of its settings as every other one has."""
_TRIAL_SEED, _EPOCHS = 1000, 2
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
            held = alpha * (log_sum - (data * values).sum(1))
            return np.asarray(held + 0.5 * (data * (values - targets) ** 2).sum(1))

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
    parts = list[tuple[Ints, Ints]]()
    starts = np.zeros(size, dtype=np.int64)
    for place, (depth, row) in enumerate(zip(every.length.tolist(), every.row.tolist(), strict=True)):
        shown = tree.observations(depth, np.array([row]))
        length = int(shown["attention_mask"].sum())
        starts[place] = length - depth
        ids = shown["input_ids"][0].astype(np.int64)
        parts.append((ids[: length - depth], ids[length - depth : length]))
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


def learned(name: str, agent: str, settings: Mapping[str, object], steps: int = 400) -> tuple[PrefixTree, LoggedAgent]:
    """Return the states of a task, and an agent whose table has followed its loss on the full log.

    Args: name: of a task. agent: that learns values. steps: of Adam, over which its rate falls to 0.
    """
    env = make_env(f"textgym/{name}-v0", 2)
    tree = prefix_tree(env.unwrapped.task)
    log, weights = full_log(tree)
    spread = float(log.returns.std())
    config = {"model": "table", "device": "cpu", "advantage_temperature": spread, "value_coefficient": 1.0, **settings}
    config |= {} if agent in ("awr", "mc-values") else {"lam": 0.0}
    made = cast("LoggedAgent", make_agent(agent, env, make_config(agent_class(agent), config)))
    made._centre_values(log.returns)
    scale, nothing = torch.tensor(weights, dtype=torch.float32), torch.zeros(len(log.lengths))
    for step in range(steps):
        for group in made.optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        made.optimizer.zero_grad()
        (made._losses(log, nothing)[0] * scale).sum().backward()
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


# One log of Helpful


def helpful_log(path: Path, episodes: int) -> None:
    """Have the reference log completions of Helpful, eight a prompt, unless the file is there."""
    if not path.exists():
        env = make_env("textgym/Helpful-v0", 8)
        reference = make_agent("reference", env)
        write_log(path, play_episodes(reference, env.unwrapped.task, episodes, per_prompt=8))


def contest(path: Path, episodes: int, chosen: Mapping[str, int] | None, seeds: int) -> Suite:
    """Return the suite of the trials of every contestant, or of those that were chosen.

    Args: path: the log. episodes: read by each, twice in each pass. chosen: contestant -> place of its trial.
    """
    cells = [
        Cell(
            "textgym/Helpful-v0",
            agent,
            episodes,
            _TRIAL_SEED if chosen is None else seed,
            config={"epochs": _EPOCHS, **changes, "data": str(path)},
            label=f"{name} {place}",
        )
        for name, (agent, trials) in TRIALS.items()
        for place, changes in enumerate(trials)
        if chosen is None or chosen.get(name) == place
        for seed in range(1 if chosen is None else seeds)
    ]
    evaluation = Evaluation(1, 2, 8, 0, split="tune") if chosen is None else Evaluation(1, 2, 16, 128)
    return Suite("logs" if chosen else "logs-trials", tuple(cells), "Agents on one log of Helpful.", evaluation)


def measured(folder: Path, name: str) -> dict[str, Floats]:
    """Return the label of each trial -> a measure after learning (S,) of its seeds."""
    found: dict[str, list[float]] = {}
    for each in load_results(folder):
        value = None if each.measures is None else at(each.measures, "after", name, "mean")
        if value is not None:
            found.setdefault(each.cell.name, []).append(value)
    return {label: np.array(values) for label, values in found.items()}


def best_trials(folder: Path) -> dict[str, int]:
    """Return for every contestant that has run the place of the trial with the best J."""
    means = {label: float(values.mean()) for label, values in measured(folder, "objective").items()}
    places = {name: [k for k in range(len(trials)) if f"{name} {k}" in means] for name, (_, trials) in TRIALS.items()}
    return {name: max(own, key=lambda k: means[f"{name} {k}"]) for name, own in places.items() if own}


def print_contest(folder: Path) -> None:
    """Print what every contestant has come to, best first, and how far it is ahead of dpo on the same log."""
    found = {name: measured(folder, name) for name in ("optimality", "reward", "kl")}
    own = found["optimality"]
    dpo = next((values for label, values in own.items() if label.startswith("dpo")), np.zeros(0))
    shown = table("", number("optimality"), number("least"), number("most"), "ahead of dpo", "reward", "KL", "settings")
    for label in sorted(own, key=lambda label: -float(own[label].mean())):
        name, place = label.rsplit(" ", 1)
        ahead = "-"
        if min(len(dpo), len(own[label])) > 1 and name != "dpo":
            lead, low, high = leads(own[label][:, None], dpo[:, None])[:, 0]
            ahead = f"{lead:+.3f} [{low:+.3f}, {high:+.3f}]"
        changes = ", ".join(f"{key} {value}" for key, value in TRIALS[name][1][int(place)].items()) or "defaults"
        numbers = (own[label].mean(), own[label].min(), own[label].max())
        rest = (f"{found[each][label].mean():.2f}" for each in ("reward", "kl"))
        shown.add_row(name, *(f"{value:.3f}" for value in numbers), ahead, *rest, changes)
    Console(highlight=False).print(shown)


@dataclass(frozen=True)
class LogsFlags:
    """Compare what is learned from logs with the exact values."""

    tasks: tuple[str, ...] = SOLVABLE
    """Names of solvable tasks."""
    exact: bool = False
    """Only print the distances of learned values from the exact fixed points."""
    out: Path = Path("runs/logs")
    """Folder of the log of Helpful and of the two suites."""
    episodes: int = 20_480
    """Number of completions that the reference logs, which every contestant reads."""
    seeds: int = 5
    """Number of seeds for the chosen settings."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    table: bool = False
    """Print the existing results and run nothing."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(LogsFlags)
    if flags.exact:
        shown = table("task", "values", number("from the fixed point"), number("it from the maximum"))
        for name in flags.tasks:
            for row in exact_rows(name):
                shown.add_row(*row)
        Console(highlight=False).print(shown)
        return
    path, trials, finals = flags.out / "helpful.jsonl", flags.out / "trials", flags.out / "finals"
    if not flags.table:
        helpful_log(path, flags.episodes)
        run_suite(contest(path, flags.episodes, None, 1), trials, workers=flags.workers)
        run_suite(contest(path, flags.episodes, best_trials(trials), flags.seeds), finals, workers=flags.workers)
    print_contest(finals)


if __name__ == "__main__":
    script(main)
