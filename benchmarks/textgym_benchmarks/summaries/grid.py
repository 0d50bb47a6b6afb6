"""Results as a grid of agents, problems and seeds, and the reading of single numbers from them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from textgym.checks import is_finite
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.statistics import Interval, Strata, mean_of_runs, strata_of
from textgym_benchmarks.suite import Cell, canonical

MEASURES = ("optimality", "reward", "gold", "kl", "objective")
FAMILIES = ("diagnostics", "alignment", "verifiable", "style", "text")
FLOOR = -1.0
"""Least optimality that goes into an aggregate.

Optimality has no lower end: a deterministic agent far from the reference scores -30, and one such run would make a mean
over thirty tasks that of this task alone. At -1 a run has lost as much as the optimum gains; how much farther it fell
says more about the price of KL than about the agent. There is no ceiling: a score above 1 means that J* was estimated
too low, which should be seen. Tables of tasks show the true values, and every row counts its clipped runs."""


def finite(value: object) -> float | None:
    """Return a finite float, or None for null, NaN, an infinity or what is no number."""
    return float(value) if isinstance(value, int | float) and is_finite(value) else None


def at(data: object, *path: str) -> Any:
    """Return the entry of nested mappings, None where one of them has no such key."""
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data


def interval_of(data: Mapping[str, float | None] | None) -> Interval:
    """Return what a result holds as {"mean", "low", "high"}, or null."""
    data = data or {}
    return Interval(data.get("mean"), data.get("low"), data.get("high"))


def final(result: Result, measure: str) -> float | None:
    """Return a measure after learning, its mean where it has an interval."""
    found = at(result.measures, "after", measure)
    return finite(found.get("mean")) if isinstance(found, Mapping) else finite(found)


def finals(results: Iterable[Result], measure: str) -> list[float]:
    """Return the measure after learning of every result that has it."""
    return [value for result in results if (value := final(result, measure)) is not None]


def clipped(result: Result) -> float | None:
    """Return the final optimality, at least `FLOOR`, to nine digits: equal ones, by rounding, win nothing by it."""
    score = final(result, "optimality")
    return None if score is None else round(max(score, FLOOR), 9)


def learning_time(result: Result, name: str) -> float | None:
    """Return the "seconds" or "cpu_seconds" that learning took, evaluations and the estimate of J* apart.

    Returns: those of the whole run where its timing does not tell them apart; None where it tells neither.
    """
    learning = finite(at(result.timing, f"learning_{name}"))
    return finite(at(result.timing, name)) if learning is None else learning


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


@dataclass(frozen=True)
class Spread(Interval):
    """A mean over the runs of one agent on one problem.

    Attributes:
        value: over the runs that have the measure; None where none has. low, high: ends of the 95% interval.
        runs: that have the measure. of_runs: that there should be.
        interval: "runs": bootstrap over two runs or more (of three, it is their range, and holds the true mean about
            three times in four); "run": of a single run, from the completions that it was evaluated on; "none".
    """

    runs: int
    of_runs: int
    interval: str


def spread(results: Sequence[Result], measure: str, generator: np.random.Generator) -> Spread:
    """Return the mean of a measure after learning over runs, with the interval that they allow."""
    values = finals(results, measure)
    if len(values) > 1:
        mean, low, high = (float(end[0]) for end in mean_of_runs(np.array(values)[:, None], generator))
        return Spread(mean, low, high, len(values), len(results), "runs")
    for result in results:
        only = final(result, measure)
        if only is not None:
            least, most = (finite(at(result.measures, "after", measure, end)) for end in ("low", "high"))
            return Spread(only, least, most, 1, len(results), "none" if least is None or most is None else "run")
    return Spread(None, None, None, 0, len(results), "none")


def generator_of(seed: int, *names: str) -> np.random.Generator:
    """Return a generator for one part of a summary: no number depends on what else is summarised."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


@dataclass(frozen=True)
class RankedTask:
    """A task with its reward, options, budget and price of KL, on which agents are compared.

    Attributes:
        index: in the summary's list of problems.
        id: of the environment. label: what tables call the problem, unique. family: of the task.
        reward: what tables call the reward. env: other options. episodes: the budget.
        beta: reward units per nat, that J is measured with; None where no result tells it.
    """

    index: int
    id: str
    label: str
    family: str
    reward: str
    env: Mapping[str, Any]
    episodes: int
    beta: float | None


@dataclass(frozen=True)
class Grid:
    """Agents by problems.

    Attributes:
        agents: names, in the order of the results. problems: by family, then in the order of the results.
        runs: (agent, index of the problem) -> its results, by seed. Pairs that no cell asks for are not there.
    """

    agents: tuple[str, ...]
    problems: tuple[RankedTask, ...]
    runs: Mapping[tuple[str, int], tuple[Result, ...]]

    def of(self, agent: str, problem: int) -> tuple[Result, ...]:
        """Return the results of an agent on a problem; () where no cell asks for one."""
        return self.runs.get((agent, problem), ())

    def all_of(self, agent: str) -> list[Result]:
        """Return all results of an agent."""
        return [result for problem in self.problems for result in self.of(agent, problem.index)]

    def families(self) -> dict[str, list[RankedTask]]:
        """Return the problems of each family, in their order."""
        found: dict[str, list[RankedTask]] = defaultdict(list)
        for problem in self.problems:
            found[problem.family].append(problem)
        return found

    def strata(self, agent: str, problems: Iterable[RankedTask] | None = None, failed: float | None = None) -> Strata:
        """Return the final optimality of the agent's runs, clipped at `FLOOR`, by problem (all of them by default).

        A failed run scores `failed`; None: it has no score.
        """
        chosen = self.problems if problems is None else problems
        rows = [self.of(agent, problem.index) for problem in chosen]
        scores = [[failed if run.status == "failed" else clipped(run) for run in row] for row in rows]
        known = [[score for score in row if score is not None] for row in scores]
        return strata_of(known, [len(row) for row in rows])


def make_grid(results: Sequence[Result], names: Mapping[str, str] | None = None) -> Grid:
    """Sort results into a table.

    Agents with the same name but other settings are told apart by their settings, problems that differ in options,
    budget or the beta that J is measured with by these.

    Args:
        names: `agent_names` of the results that these are a part of; None: they are all.
    Raises: ValueError for no result, or for the same cell twice.
    """
    if not results:
        raise ValueError("results=[]: allowed is at least one result")
    seen: dict[str, Result] = {}
    for result in results:
        key = result.cell.key
        if key in seen:
            folders = f"{seen[key].folder} and {result.folder}"
            raise ValueError(f"results: cell {key!r} is there twice ({folders}); allowed is once: leave one out")
        seen[key] = result
    problems, names = _problems(results), names or agent_names(results)
    runs: dict[tuple[str, int], list[Result]] = defaultdict(list)
    for key, identity in _identities(results).items():
        runs[names[key], problems[identity].index].append(seen[key])
    ordered = {pair: tuple(sorted(row, key=lambda run: run.cell.seed)) for pair, row in runs.items()}
    agents = dict.fromkeys(names[result.cell.key] for result in results)
    return Grid(tuple(agents), tuple(problems.values()), ordered)


Identity = tuple[str, str | None]
"""What makes a problem: task, reward, options and budget; and the beta that J is measured with, None if not known."""


def _identities(results: Iterable[Result]) -> dict[str, Identity]:
    """Return key of a cell -> what makes its problem.

    A result that does not tell beta, as a failed one, is taken to have that of the first with its own setting of beta,
    else of the first.
    """
    found: dict[str, tuple[str, str, str | None]] = {}
    betas: dict[tuple[str, str], str] = {}
    for result in results:
        cell, beta = result.cell, None if result.beta is None else f"{result.beta:g}"
        task = canonical([cell.id, cell.reward_name, cell.reward, dict(cell.env), cell.episodes])
        own = canonical(cell.config.get("beta"))
        found[cell.key] = task, own, beta
        if beta is not None:
            betas.setdefault((task, own), beta)
            betas.setdefault((task, ""), beta)
    return {
        key: (task, beta or betas.get((task, own)) or betas.get((task, ""))) for key, (task, own, beta) in found.items()
    }


def _problems(results: Sequence[Result]) -> dict[Identity, RankedTask]:
    """Return identity -> problem, by family and then in the order of the results, with a label that is theirs alone."""
    first: dict[Identity, Result] = {}
    identities = _identities(results)
    for result in results:
        first.setdefault(identities[result.cell.key], result)

    def rank(identity: Identity) -> tuple[int, str]:
        family = first[identity].family
        return (FAMILIES.index(family), "") if family in FAMILIES else (len(FAMILIES), family)

    ordered = sorted(first, key=rank)  # stable: the order of the results within a family
    labels = _labels([(first[identity].cell, identity[1]) for identity in ordered])
    problems = {}
    for index, (identity, label) in enumerate(zip(ordered, labels, strict=True)):
        cell, family = first[identity].cell, first[identity].family
        beta = None if identity[1] is None else float(identity[1])
        place = (index, cell.id, label, family, cell.reward_name)
        problems[identity] = RankedTask(*place, dict(cell.env), cell.episodes, beta)
    return problems


def _labels(problems: Iterable[tuple[Cell, str | None]]) -> list[str]:
    """Return short names of problems: more is added only where problems would have the same. Args: with their beta."""
    rows = []
    betas: dict[str, set[str | None]] = defaultdict(set)
    for cell, beta in problems:
        options = ", ".join(f"{name} {canonical(value)}" for name, value in cell.env.items())
        reward = "" if cell.reward_name == "default" else cell.reward_name
        short = ", ".join(part for part in (cell.short_id, reward, options) if part)
        betas[short].add(beta)
        rows.append((short, beta, (f"{cell.episodes:,} episodes", f"reward {canonical(cell.reward)}", cell.id)))
    parts = [
        (f"{short}, beta {beta}" if beta is not None and len(betas[short] - {None}) > 1 else short, *more)
        for short, beta, more in rows
    ]
    for length in (1, 2, 3):
        labels = [", ".join(part[:length]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [", ".join(part) for part in parts]


def agent_names(results: Sequence[Result]) -> dict[str, str]:
    """Return key of a cell -> name of its agent; where a name stands for several, with the settings that differ.

    A name may stand for other settings on other problems: only those of one problem are a clash, whatever their seeds.
    """
    kinds: dict[tuple[str, Identity], set[str]] = defaultdict(set)
    identities = _identities(results)
    for result in results:
        kinds[result.cell.name, identities[result.cell.key]].add(
            canonical([result.cell.agent, dict(result.cell.config)])
        )
    clashing = {name for (name, _), found in kinds.items() if len(found) > 1}
    settings: dict[str, list[set[str]]] = defaultdict(list)
    for result in results:
        settings[result.cell.name].append({canonical(pair) for pair in result.cell.config.items()})
    shared = {name: set.intersection(*settings[name]) for name in clashing}

    def name(cell: Cell) -> str:
        if cell.name not in clashing:
            return cell.name
        own = {name: value for name, value in cell.config.items() if canonical([name, value]) not in shared[cell.name]}
        return " ".join(dict.fromkeys((cell.name, cell.agent, canonical(own))))

    return {result.cell.key: name(result.cell) for result in results}
