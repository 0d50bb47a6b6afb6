"""Off-policy estimators on the diagnostics: bias, spread, coverage and ranking, against the exact values.

    python -m textgym_benchmarks.ope --out runs/ope
    python -m textgym_benchmarks.ope --out runs/ope --table

The reference writes the logs. Six policies are judged, on the way from it to the optimum: their log-probabilities are
between those of the two, so that the KL to the reference is a share of the optimum's. The first line draws the logs and
writes results, tables and pictures; the second prints what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import tyro
from rich.console import Console
from textgym_agents.datasets import off_policy
from textgym_agents.datasets.off_policy import FEWEST, Logged, Terms
from textgym_agents.training.curves import HUES, INK, legend_above, style_axes, two_panels

from textgym import make_task
from textgym.best_of_n import noise_deviation
from textgym.checks import Floats, Ints, JsonObject
from textgym.commands.console import number, script, table
from textgym.estimates import Estimate, resampled_counts
from textgym.files import json_line, make_folder, read_lines, write_text
from textgym.solver import Solution, solve
from textgym.solver.tree import normalised
from textgym.solver.values import PolicyValues, evaluate_edges
from textgym_benchmarks.suites import DIAGNOSTICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
"""KL of the policies that are judged, in parts of the optimum's."""
BINS: Final = (0.0, FEWEST, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0)
"""Effective samples at which the classes begin that coverage is counted in."""
FITTED: Final = 20
"""Of so many logs one is used for the interval of fitted Q, which takes many fits."""
_FITS = 100
_CLOSE = 1e-9  # an interval without width holds what it is at to rounding
_METHODS: Final = ("t", "percentile")


@dataclass(frozen=True, eq=False)
class LogPool:
    """All N trajectories of a task, from which logs are drawn.

    Attributes:
        lengths: (N,). states, edges: (N, T). rewards: (N, T), at time 0. probability: (N,), of the reference.
        solution: of the task. noise: standard deviation of what the reward adds at the end.
    """

    lengths: Ints
    states: Ints
    edges: Ints
    rewards: Floats
    probability: Floats
    solution: Solution
    noise: float

    @classmethod
    def of(cls, name: str) -> LogPool:
        """Return the trajectories of a solvable task."""
        task = make_task(name)
        solution = solve(task)
        tree, found = solution.tree, solution.reference.trajectories
        width, count = len(tree.levels) - 1, len(found.prompt)
        states, edges = np.zeros((2, count, width), dtype=np.int64)
        rewards = np.zeros((count, width))
        offsets, rows = np.cumsum([0, *(len(level.parent) for level in tree.levels)]), found.row.copy()
        for depth in range(width, 0, -1):
            on, level = np.flatnonzero(found.length >= depth), tree.levels[depth]
            edges[on, depth - 1] = offsets[depth] + rows[on]
            rewards[on, depth - 1] = solution.gamma ** (depth - 1) * level.reward[rows[on]]
            rows[on] = level.parent[rows[on]]
            states[on, depth - 1] = offsets[depth - 1] + rows[on]
        chances = found.probability / found.probability.sum()
        return cls(found.length, states, edges, rewards, chances, solution, noise_deviation(task))

    def log_probs(self, logs: tuple[Floats, ...]) -> Floats:
        """Return the log-probability of every token of every trajectory (N, T), from those of the edges."""
        flat = np.concatenate([np.zeros(len(self.solution.tree.levels[0].parent)), *logs])
        return np.where(np.arange(self.edges.shape[1]) < self.lengths[:, None], flat[self.edges], 0.0)


def between(solution: Solution, share: float) -> PolicyValues:
    """Return the policy on the way from the reference to the optimum whose KL is a share of the optimum's."""
    low, high = 0.0, 1.0
    for _ in range(20):
        part = 1.0 if share == 1 else (low + high) / 2
        logs = tuple(
            normalised((1 - part) * base + part * np.maximum(best, -60.0), level)
            for base, best, level in zip(
                solution.log_reference, solution.log_policy, solution.tree.levels, strict=False
            )
        )
        found = evaluate_edges(solution.tree, logs, solution.log_reference, solution.beta, solution.gamma)
        low, high = (part, high) if found.kl < share * solution.optimal.kl else (low, part)
    return found


def study(name: str, repetitions: int, size: int, seed: int = 0) -> Iterator[JsonObject]:
    """Yield a row for every policy, measure and estimator on a task, and one for how each ranks the policies.

    Args: size: episodes of a log.
    """
    pool = LogPool.of(name)
    solution = pool.solution
    policies = [between(solution, share) for share in SHARES]
    base, logs = pool.log_probs(solution.log_reference), [pool.log_probs(each.log_policy) for each in policies]
    truths = {"reward": [each.expected_return for each in policies], "objective": [each.objective for each in policies]}

    def draw(generator: np.random.Generator) -> Iterator[tuple[str, int, Logged]]:
        drawn = generator.choice(len(pool.probability), size, p=pool.probability)
        paid = pool.rewards[drawn]
        paid[np.arange(size), pool.lengths[drawn] - 1] += pool.noise * generator.standard_normal(size)
        for place, own in enumerate(logs):
            charge = np.where(own[drawn] > -np.inf, own[drawn] - base[drawn], 0.0)
            for measure, beta in (("reward", 0.0), ("objective", solution.beta)):
                yield measure, place, Logged(
                    pool.lengths[drawn], pool.states[drawn], pool.edges[drawn], paid - beta * charge, own[drawn],
                    base[drawn], base[drawn].sum(1), paid.sum(1),
                )  # fmt: skip

    generator = np.random.default_rng([seed, 31])
    span = solution.objective - solution.reference_objective
    counts = bootstrap_counts(seed, size)
    for row in judged_rows((draw(generator) for _ in range(repetitions)), counts, truths, span, SHARES):
        yield row | {"task": name} | ({"size": size} if "share" in row else {})


def bootstrap_counts(seed: int, size: int) -> Floats:
    """Return how often each of `size` episodes is drawn in each resample, (400, size)."""
    return resampled_counts(np.random.default_rng([seed, 32]), size).astype(np.float64)[:400]


def judged_rows(
    repetitions: Iterable[Iterable[tuple[str, int, Logged]]],
    counts: Floats,
    truths: Mapping[str, Sequence[float]],
    span: float,
    shares: Sequence[float],
    least: float = 0.0,
) -> Iterator[JsonObject]:
    """Yield a row for every policy, measure and estimator, and one for how each ranks the policies.

    Args:
        repetitions: for each log, the measure, the policy's place, and the log as it sees it.
        counts: (R, B) of the bootstrap. truths: measure -> of each policy. span: what errors are parts of.
        least: the least return that there is, reward units.
    """
    cells: dict[tuple[str, str, int], list[tuple[float, ...]]] = {}
    for repetition, logs in enumerate(repetitions):
        fits = counts[:_FITS] if repetition % FITTED == 0 else None
        for measure, place, log in logs:
            for estimator, cell in _estimates(log, counts, fits, truths[measure][place], measure, least):
                cells.setdefault((estimator, measure, place), []).append(cell)
    for (estimator, measure, place), found in cells.items():
        yield _row(np.array(found), truths[measure][place], span) | {
            "estimator": estimator, "measure": measure, "share": shares[place],
        }  # fmt: skip
    for estimator, measure in dict.fromkeys(key[:2] for key in cells):
        values = np.array([[each[0] for each in cells[estimator, measure, place]] for place in range(len(shares))])
        ranks = [_spearman(each, np.array(truths[measure])) for each in values.T]
        kept = [each for each in ranks if not np.isnan(each)]
        yield {"estimator": estimator, "measure": measure, "ranking": float(np.mean(kept or [0.0]))}


def _estimates(
    log: Logged, counts: Floats, fits: Floats | None, truth: float, measure: str, least: float
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield each estimator's value, effective samples, and whether the intervals of both methods hold the truth."""
    found: dict[str, Terms] = {
        "importance sampling": off_policy.importance_sampling(log),
        "self-normalised": off_policy.self_normalised(log),
        "per decision": off_policy.per_decision(log),
        "doubly robust": off_policy.doubly_robust(log, *off_policy.cross_fitted(log)),
        "truncated": off_policy.truncated(log),
    }
    for name, terms in found.items():
        samples = off_policy.effective_samples(terms, log.weights) if log.differs else 0.0
        held = [_holds(each, truth) for each in off_policy.ratio_intervals(terms, counts)]
        yield name, (terms.value, samples, *held)
    if fits is not None:
        own = off_policy.fitted_interval(log, fits)
        size = log.weights.sum() ** 2 / np.square(log.weights).sum() if log.differs and log.weights.any() else 0.0
        yield "fitted Q", (own.mean, size, _holds(own, truth), _holds(own, truth))
    if measure == "reward" and log.returns.min() >= least > -np.inf:
        bound = off_policy.lower_bound(log, least)
        yield "lower bound", (bound, FEWEST, bound <= truth, bound <= truth)


def _holds(found: Estimate, truth: float) -> bool:
    slack = _CLOSE * max(1.0, abs(truth))
    return found.low - slack <= truth <= found.high + slack


def _row(found: Floats, truth: float, span: float) -> JsonObject:
    """Return what repetitions (R, 4) say; errors in parts of J* - J_ref."""
    classes = np.digitize(found[:, 1], BINS) - 1
    errors = (found[:, 0] - truth) / span
    row: JsonObject = {
        "truth": truth,
        "bias": float(errors.mean()),
        "spread": float(errors.std()),
        "samples": float(np.median(found[:, 1])),
        "logs": [int((classes == each).sum()) for each in range(len(BINS))],
    }
    for column, method in enumerate(_METHODS, 2):
        row[method] = [int(found[classes == each, column].sum()) for each in range(len(BINS))]
    return row


def _spearman(first: Floats, second: Floats) -> float:
    """Return the rank correlation; NaN where one is constant."""
    ranks = [(each[:, None] > each).sum(1) + (each[:, None] == each).sum(1) / 2 for each in (first, second)]
    if min(np.ptp(each) for each in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def coverage(rows: Sequence[JsonObject], least: float, method: str = "t") -> tuple[float, float]:
    """Return the share of logs with at least so many effective samples, and of these that of intervals that hold."""
    at = BINS.index(least)
    known, held = (sum(sum(row[name][at:]) for row in rows) for name in ("logs", method))
    total = sum(sum(row["logs"]) for row in rows)
    return known / max(total, 1), held / known if known else float("nan")


def print_study(rows: Sequence[JsonObject], measure: str = "objective", shares: Sequence[float] = SHARES) -> None:
    """Print coverage by effective samples, and errors, coverage and ranking by distance."""
    console, chosen = Console(highlight=False, width=150), _by_estimator(rows, measure)
    shown = table(
        f"coverage, {measure}: above", *(number(f"{least:g}") for least in BINS[1:]), number("percentile"), "cells"
    )
    for name, own in chosen.items():
        parts = [coverage(own, least) for least in BINS[1:]]
        cells = [coverage([row], FEWEST) for row in own]
        known = [held for share, held in cells if share >= 0.5]
        fit = f"{sum(held >= 0.9 for held in known)} of {len(known)}"
        percentile = f"{coverage(own, FEWEST, 'percentile')[1]:.3f}"
        shown.add_row(name, *(f"{held:.3f} ({share:.0%})" for share, held in parts), percentile, fit)
    console.print(shown)
    ranked = [row for row in rows if "ranking" in row and row["measure"] == measure]
    shown = table("bias; spread; coverage", *(number(f"{share:g}") for share in shares), number("ranking"))
    for name, own in chosen.items():
        shown_cells = []
        for share in shares:
            here = [row for row in own if row["share"] == share]
            bias, spread = (float(np.mean([row[key] for row in here])) for key in ("bias", "spread"))
            shown_cells.append(f"{bias:+.3f}; {spread:.3f}; {coverage(here, FEWEST)[1]:.2f}")
        ranks = [row["ranking"] for row in ranked if row["estimator"] == name]
        shown.add_row(name, *shown_cells, f"{np.mean(ranks):.2f}" if ranks else "")
    console.print(shown)


def _by_estimator(rows: Sequence[JsonObject], measure: str) -> Mapping[str, list[JsonObject]]:
    found: dict[str, list[JsonObject]] = {}
    for row in rows:
        if "logs" in row and row["measure"] == measure:
            found.setdefault(row["estimator"], []).append(row)
    return found


def study_rows(path: Path) -> list[JsonObject]:
    """Return the rows of a study. Raises: ValueError where there are none."""
    if rows := read_lines(path):
        return rows
    raise ValueError(f"{path}: holds no row of a study; run it without --table first")


def draw_study(rows: Sequence[JsonObject], folder: Path) -> None:
    """Draw coverage against effective samples, and error and coverage against distance, as two PNGs."""
    chosen = {name: own for name, own in _by_estimator(rows, "objective").items() if name != "lower bound"}
    with two_panels(folder / "ope_samples.png", "Coverage of J by effective samples", (8.0, 6.4), (2.0, 1.0)) as axes:
        for name, hue in zip(chosen, HUES, strict=False):
            logs, held = (np.sum([row[key] for row in chosen[name]], axis=0) for key in ("logs", "t"))
            axes[0].plot(held / np.maximum(logs, 1), color=hue, marker="o", markersize=4, label=name)
            axes[1].plot(logs / logs.sum(), color=hue, marker="o", markersize=4)
        labels = [f"{each:g}-" for each in BINS]
        _finish(axes[0], axes[1], "intervals that hold J", "share of the logs", labels, "effective samples, from")
    with two_panels(folder / "ope_distance.png", "Error and coverage by distance", (8.0, 6.4), (1.0, 1.0)) as axes:
        for name, hue in zip(chosen, HUES, strict=False):
            by = [[row for row in chosen[name] if row["share"] == share] for share in SHARES]
            errors = [np.mean([np.hypot(row["bias"], row["spread"]) for row in here]) for here in by]
            axes[1].semilogy(errors, color=hue, marker="o", markersize=4)
            axes[0].plot([coverage(here, FEWEST)[1] for here in by], color=hue, marker="o", markersize=4, label=name)
        labels = [f"{each:g}" for each in SHARES]
        _finish(axes[0], axes[1], "intervals that hold J", "error / (J* - J_ref)", labels, "KL / KL of the optimum")


def _finish(above: Axes, below: Axes, first: str, second: str, labels: Sequence[str], title: str) -> None:
    style_axes(above, first)
    style_axes(below, second)
    above.axhspan(0.9, 0.99, color=INK, alpha=0.07)
    below.set_xticks(range(len(labels)), labels)
    below.set_xlabel(title, color=INK)
    legend_above(above)


@dataclass(frozen=True)
class OpeStudyFlags:
    """Measure off-policy estimators on the diagnostics, or print the results."""

    out: Path = Path("runs/ope")
    """Folder of the results and pictures."""
    tasks: tuple[str, ...] = DIAGNOSTICS
    """Names of tasks that can be solved."""
    repetitions: int = 500
    """Number of logs per task."""
    size: int = 500
    """Number of episodes per log."""
    table: bool = False
    """Print the existing results and run nothing."""


def main() -> None:
    """Run the script."""
    flags = tyro.cli(OpeStudyFlags)
    path = flags.out / "study.jsonl"
    if not flags.table:
        make_folder(flags.out)
        for name in flags.tasks:
            found = [row for row in read_lines(path) if row["task"] != name]
            write_text(path, "".join(map(json_line, [*found, *study(name, flags.repetitions, flags.size)])))
    rows = study_rows(path)
    for measure in ("objective", "reward"):
        print_study(rows, measure)
    draw_study(rows, flags.out)


if __name__ == "__main__":
    script(main)
