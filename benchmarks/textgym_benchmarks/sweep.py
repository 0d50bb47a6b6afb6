"""The sweep behind the agents' defaults: the same settings on every task, and how much each loses on its worst one.

    python -m textgym_benchmarks.sweep --model FOLDER --out runs/sweep
    python -m textgym_benchmarks.sweep --model FOLDER --out runs/sweep --table
    python -m textgym_benchmarks.sweep --model FOLDER --out runs/algorithms --algorithms

The first line runs what has no result yet, and goes on where it was broken off; the second prints what is there; the
third holds algorithms against one another in place of settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import optuna
import tyro
from rich.console import Console
from scipy.stats import rankdata  # type: ignore[import-untyped]
from textgym_agents.registry import agent_class, make_config

from textgym.checks import Floats, JsonObject, check_choice
from textgym.commands.console import folded, number, script, table
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.run.runner import run_suite
from textgym_benchmarks.space import default_space
from textgym_benchmarks.suite import Cell, Evaluation, Suite
from textgym_benchmarks.suites import ALGORITHMS, DIAGNOSTICS, LONG, STORY_REWARDS, rows, stories_env, task_id
from textgym_benchmarks.summaries.grid import at

AGENTS: Final = ("lm-ppo", "rloo", "grpo")
TASKS: Final = ("Helpful", "HHH", "Arithmetic", "Json")
_DRAWS: Final = 2000
_SOLVED: Final = "diagnostics: optimality"
_EVALUATION: Final = Evaluation(points=2, per_prompt=2, final_per_prompt=8, optimum_per_prompt=0, split="tune")

_DESIGN: Final[Sequence[JsonObject]] = (
    {},
    {"update_kl": 4.0},
    {"learning_rate": 1e-3},
    {"learning_rate": 1e-4},
    {"lam": 0.95, "value_rate": 1.0},
    {"kl": "exact"},
    {"kl": "k1"},
    {"epochs": 1},
)


def design(agent: str, count: int, seed: int = 0) -> list[JsonObject]:
    """Return so many settings of an agent: its own, {}; larger updates, rates, a slow critic, KL, passes; random ones.

    The random ones are drawn from `default_space`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own = make_config(agent_class(agent), {})
    fixed = [
        each for each in _DESIGN if not each or any(getattr(own, name, value) != value for name, value in each.items())
    ]
    study, space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)), default_space(agent, {})
    drawn = [dict(study.ask(space).params) for _ in range(count - len(fixed))]
    return [*fixed, *drawn][:count]


def sweep_suite(
    agents: Sequence[str],
    model: Path | None,
    count: int,
    episodes: Sequence[int],
    seeds: int = 1,
    tasks: Sequence[str] = TASKS,
    first_seed: int = 0,
) -> Suite:
    """Return the cells of a sweep, those of the shortest budget first; a cell's label is AGENT NUMBER-OF-SETTINGS.

    Args:
        model: folder of a causal LM of stories, for the tasks of `STORY_REWARDS`; None leaves these out.
        count: settings of each agent, see `design`. episodes: budgets. seeds: of each cell, from `first_seed` on.
    """
    cells: list[Cell] = []
    for budget in sorted(episodes):
        for place in range(count):
            for agent in agents:
                config, label = design(agent, count)[place], f"{agent} {place}"
                cells += _cells(tasks, model, agent, budget, seeds, config, label)
    return Suite("sweep", _from_seed(first_seed, cells), "The same settings on every task.", _EVALUATION)


def algorithms_suite(
    model: Path | None, episodes: int, seeds: int = 1, tasks: Sequence[str] = TASKS, first_seed: int = 0
) -> Suite:
    """Return a suite that runs `ALGORITHMS` with their defaults on these tasks, on stories and on the diagnostics.

    Args:
        episodes: the budget; the diagnostics have budgets of their own. model, seeds, tasks, first_seed: see
            `sweep_suite`.
    """
    cells: list[Cell] = []
    for name, (agent, config) in ALGORITHMS.items():
        cells += rows([task for task in DIAGNOSTICS if task not in LONG], [agent], 4_096, seeds, config, name)
        cells += rows(LONG, [agent], 16_384, seeds, config, name)
        cells += _cells(tasks, model, agent, episodes, seeds, config, name)
    return Suite("algorithms", _from_seed(first_seed, cells), "The same algorithms on every task.", _EVALUATION)


def _from_seed(first: int, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(replace(cell, seed=cell.seed + first) for cell in cells)


def _cells(
    tasks: Sequence[str],
    model: Path | None,
    agent: str,
    budget: int,
    seeds: int,
    config: Mapping[str, object],
    label: str,
) -> list[Cell]:
    cells = list(rows(tasks, [agent], budget, seeds, config, label))
    if model is not None:
        stories = rows(["Text"], [agent], budget, seeds, config, label, STORY_REWARDS)
        cells += [replace(cell, env=stories_env(model)) for cell in stories]
    return cells


@dataclass(frozen=True)
class Regrets:
    """The regrets of an agent's settings at a budget.

    Attributes:
        tasks, settings: names of the tasks (T,) and numbers of the settings (S,) that were run on all of them.
        regret: (S, T), shares of the distance from the reference to J* if it is known, else to the best J found.
        worst: (S, 3), maximum over the tasks, and the ends of its 95% interval.
        known: (T,) whether J* is known.
    """

    tasks: tuple[str, ...]
    settings: tuple[int, ...]
    regret: Floats
    worst: Floats
    known: tuple[bool, ...]


def regrets(results: Sequence[Result], agent: str, episodes: int, seed: int = 0) -> Regrets:
    """Return the regrets of an agent's settings against the best that was found on each task.

    Every J is drawn anew from its own error, normal with the width of its interval, and by seed where there are some.
    The best of noisy J is too high: regrets are rather over- than understated.
    """
    found: dict[tuple[int, str], list[Result]] = {}
    for each in results:
        scored = at(each.measures, "after", "objective", "mean") is not None
        if scored and (each.cell.agent, each.cell.episodes) == (agent, episodes):
            place = int(each.cell.name.rpartition(" ")[2])
            found.setdefault((place, each.cell.task), []).append(each)
    tasks = tuple(dict.fromkeys(task for _, task in found))
    places = sorted({place for place, _ in found})
    settings = tuple(place for place in places if all((place, task) in found for task in tasks))
    if not settings:
        return Regrets(tasks, (), np.zeros((0, len(tasks))), np.zeros((0, 3)), ())
    generator = np.random.default_rng(seed)
    drawn = np.array([[_draws(found[place, task], generator) for task in tasks] for place in settings])  # (S, T, R)
    optima = [_optimum(found[settings[0], task][0]) for task in tasks]
    lost = drawn.max(0) - drawn
    for column, (task, optimum) in enumerate(zip(tasks, optima, strict=True)):
        before = [at(each.measures, "before", "objective", "mean") for place in settings for each in found[place, task]]
        best = drawn[:, column, 0].max() if optimum is None else optimum
        way = best - np.mean(before)
        lost[:, column] /= way if way > 0 else np.nan  # nothing is better than the reference
    most = np.nanmax(lost, 1)
    ends = np.percentile(most[:, 1:], [2.5, 97.5], axis=1)
    known = tuple(optimum is not None for optimum in optima)
    return Regrets(tasks, settings, lost[:, :, 0], np.stack([most[:, 0], *ends], 1), known)


def _draws(results: Sequence[Result], generator: np.random.Generator) -> Floats:
    """Return the mean J of some seeds and, after it, draws (R,) of it."""
    means = [at(each.measures, "after", "objective", "mean") for each in results]
    ends = [(at(each.measures, "after", "objective", end) for end in ("low", "high")) for each in results]
    errors = np.array([((high - low) / 3.92) if low is not None else 0.0 for low, high in ends])
    chosen = generator.integers(len(means), size=(_DRAWS, len(means)))
    noise = errors[chosen] * generator.standard_normal(chosen.shape)
    return np.concatenate([[np.mean(means)], (np.array(means)[chosen] + noise).mean(1)])


def _optimum(result: Result) -> float | None:
    """Return J* of a cell's task; None where it is not known better than as a bound."""
    known = at(result.measures, "after", "optimality") is not None
    return at(result.measures, "optimum", "value", "mean") if known else None


def spearman_interval(correlation: float, count: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of a Spearman correlation of so many pairs; -1 and 1 below 4.

    Where the order is the same, or the opposite one, the variance is that of an order with two neighbours exchanged.

    Source: Bonett and Wright (2000), Sample size requirements for estimating Pearson, Kendall and Spearman
        correlations, eq. 4.
    """
    if count < 4:
        return -1.0, 1.0
    most = 1 - 12 / (count * (count**2 - 1))
    nearest = float(np.clip(correlation, -most, most))
    middle, wide = np.arctanh(nearest), 1.96 * np.sqrt((1 + nearest**2 / 2) / (count - 3))
    low, high = float(np.tanh(middle - wide)), float(np.tanh(middle + wide))
    return -1.0 if correlation < -most else low, 1.0 if correlation > most else high


def print_agreement(tasks: Sequence[str], values: Floats, what: str) -> None:
    """Print Spearman's correlations between tasks. Args: values: (S, T) of so many settings. what: their name.

    Fewer than four have any order by chance, and nothing is printed.
    """
    if len(values) < 4 or len(tasks) < 2:
        return
    agree = np.corrcoef(rankdata(values, axis=0).T)
    shown = table("", *(folded(name, justify="right") for name in tasks), title=f"Spearman, {len(values)} {what}")
    for name, row in zip(tasks, agree, strict=True):
        cells = (
            "" if other == name else f"{each:.2f} [{low:.2f}, {high:.2f}]"
            for other, each in zip(tasks, row, strict=True)
            for low, high in [spearman_interval(each, len(values))]
        )
        shown.add_row(name, *cells)
    Console(highlight=False).print(shown)


def standings(results: Sequence[Result], suite: Suite) -> tuple[list[str], list[str], Floats]:
    """Return the rows (A,) whose every cell is done, the suite's tasks (T,), and J (A, T), means over seeds.

    A row is what cells have as their name: an algorithm, or an agent and the number of its settings.

    One task stands for all diagnostics and has the mean of their optimality.
    """
    solved = {task_id(name) for name in DIAGNOSTICS}
    measured = {each.cell.key: each.measures for each in results}
    found: dict[str, dict[str, list[float | None]]] = {}
    for cell in suite.cells:
        exact = cell.id in solved
        value = at(measured.get(cell.key), "after", "optimality" if exact else "objective", "mean")
        found.setdefault(cell.name, {}).setdefault(_SOLVED if exact else cell.task, []).append(value)
    whole = {name: row for name, row in found.items() if all(None not in values for values in row.values())}
    tasks = [*dict.fromkeys(task for row in found.values() for task in row)]
    means = [[float(np.mean(np.array(row[task], dtype=float))) for task in tasks] for row in whole.values()]
    return [*whole], tasks, np.array(means).reshape(len(whole), len(tasks))


def print_standings(results: Sequence[Result], suite: Suite, what: str) -> None:
    """Print `standings`, how many rows are not whole yet, and how tasks agree. Args: what: what the rows are."""
    names, tasks, values = standings(results, suite)
    shown = table("J", *(folded(task, justify="right") for task in tasks), title=what)
    for name, row in zip(names, values, strict=True):
        shown.add_row(name, *(f"{value:.3f}" for value in row))
    Console(highlight=False).print(shown)
    if missing := len({cell.name for cell in suite.cells}) - len(names):
        Console(highlight=False).print(f"{missing} more have cells without a result")
    print_agreement(tasks, values, what)


@dataclass(frozen=True)
class SweepFlags:
    """Run the sweep, or print its tables."""

    model: Path | None = None
    """Folder of a causal LM of stories; without it, its four tasks are omitted."""
    out: Path | None = None
    """Folder of the suite; by default runs/sweep, with --algorithms runs/algorithms."""
    agents: tuple[str, ...] = AGENTS
    """Registered names of the agents."""
    tasks: tuple[str, ...] = TASKS
    """Names of shipped tasks."""
    rewards: tuple[str, ...] = tuple(STORY_REWARDS)
    """Names of the rewards of the stories."""
    settings: int = 24
    """Number of settings per agent, including its defaults."""
    episodes: tuple[int, ...] = (4096,)
    """Budgets."""
    seeds: int = 1
    """Number of seeds per cell."""
    first_seed: int = 0
    """First seed. Set to the number of the trials' seeds, in another folder, to test their choices on unseen seeds."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    algorithms: bool = False
    """Instead of --agents and --settings: a dozen algorithms with default settings, also on the diagnostics; one
    budget."""
    table: bool = False
    """Print the existing results and run nothing."""

    def __post_init__(self) -> None:
        if not self.episodes or (self.algorithms and len(self.episodes) > 1):
            raise ValueError(f"episodes={self.episodes}: allowed is one budget, or several without --algorithms")
        for name in self.rewards:
            check_choice("rewards", name, tuple(STORY_REWARDS))


def main() -> None:
    """Run the script."""
    flags = tyro.cli(SweepFlags)
    model = None if flags.model is None else flags.model.resolve()
    budget, *_ = flags.episodes
    if flags.algorithms:
        suite = algorithms_suite(model, budget, flags.seeds, flags.tasks, flags.first_seed)
    else:
        settings = (flags.settings, flags.episodes, flags.seeds, flags.tasks, flags.first_seed)
        suite = sweep_suite(flags.agents, model, *settings)
    suite = replace(suite, cells=tuple(cell for cell in suite.cells if cell.reward_name in ("default", *flags.rewards)))
    out = flags.out or Path("runs", "algorithms" if flags.algorithms else "sweep")
    if not flags.table:
        run_suite(suite, out, workers=flags.workers)
    asked = {cell.key for cell in suite.cells}
    results = [each for each in load_results(out) if each.cell.key in asked]
    if not any(each.measures for each in results):
        raise ValueError(f"{out}: none of the {len(asked)} cells that these flags name is done there")
    if flags.algorithms:
        print_standings(results, suite, "algorithms")
        return
    for budget in flags.episodes:
        for agent in flags.agents:
            found = regrets(results, agent, budget)
            if found.settings:
                print_table(found, agent, budget, design(agent, flags.settings))
        cells = tuple(cell for cell in suite.cells if cell.episodes == budget)
        print_standings(results, replace(suite, cells=cells), f"settings, {budget:,} episodes")


def print_table(found: Regrets, agent: str, episodes: int, settings: Sequence[JsonObject]) -> None:
    """Print the regrets of an agent's settings, the smallest largest one first."""
    names = (name + " *" * (not known) for name, known in zip(found.tasks, found.known, strict=True))
    heads = (folded(name, justify="right") for name in names)
    shown = table(
        number("no."), number("worst"), number("95%"), *heads, title=f"{agent}, {episodes:,} episodes: regret"
    )
    for row in np.argsort(found.worst[:, 0]):
        worst, low, high = found.worst[row]
        values = (f"{each:.3f}" for each in found.regret[row])
        shown.add_row(str(found.settings[row]), f"{worst:.3f}", f"{low:.2f} to {high:.2f}", *values)
    console = Console(highlight=False)
    console.print(shown)
    for place in found.settings:
        words = settings[place].items()
        parts = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in words)
        console.print(f"{place}: {', '.join(parts) or 'defaults'}", markup=False)
    console.print("*: of the way to the best J that was found; J* is not known well enough", markup=False)


if __name__ == "__main__":
    script(main)
