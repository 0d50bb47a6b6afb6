"""What a reader should know before believing the tables: failures and surprises, found by rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import FLOOR, Grid, at, average, final, finals, number
from textgym_benchmarks.summaries.leaderboard import Row

SOLVED = 0.5
DISAGREE = 0.5
FELL = 0.2
ENOUGH = 30.0
BASELINES = ("reference", "random")
"""Agents that learn nothing: they are below the reference, or at it, by design."""


@dataclass(frozen=True)
class Finding:
    """One kind of surprise.

    Attributes:
        kind: a word for programs. title: a sentence about all items.
        items: one line each, none if there is nothing to tell. They quote names of agents and tasks and messages of
            errors: whoever shows them escapes them.
    """

    kind: str
    title: str
    items: tuple[str, ...]


def findings(grid: Grid, rows: Sequence[Row], entries: Sequence[Entry]) -> list[Finding]:
    """All kinds, also those without an item: that nothing failed is a finding too."""
    labels = [problem.label for problem in grid.problems]

    def where(entry: Entry) -> str:
        return f"{entry.agent} on {labels[entry.problem]}"

    learners = [entry for entry in entries if entry.agent not in BASELINES]
    return [
        Finding("failed", "Runs that failed", _failed(entries, where)),
        Finding("missing", "Runs that have no result yet", _missing(entries, where)),
        Finding(
            "no_optimality",
            "Runs without an optimality: the agent has no KL, or J* is not known",
            _no_optimality(rows),
        ),
        Finding(
            "clipped",
            f"Runs below {FLOOR:g}, which count as {FLOOR:g} in aggregates",
            _clipped(grid, rows),
        ),
        Finding("below_reference", "Worse after learning than the reference", _below(learners, where)),
        Finding("unsolved", f"Problems on which no agent reaches {SOLVED}", _unsolved(grid, entries)),
        Finding("seeds_disagree", f"Seeds more than {DISAGREE} apart (clipped)", _disagree(learners, where)),
        Finding(
            "collapse",
            f"Ended more than {FELL} below the best point of the learning curve, mean over seeds",
            _collapse(grid, learners, where),
        ),
        Finding(
            "overoptimised",
            "Paid more and worth less: reward up, gold down",
            _overoptimised(grid, learners, where),
        ),
        Finding(
            "above_one",
            "Runs above J* by more than their interval: J* was estimated too low "
            "(python -m textgym_benchmarks.run.optima renews that of a shipped task)",
            _above_one(grid, learners, where),
        ),
        Finding(
            "weak_optimum",
            f"Problems whose J* rests on fewer than {ENOUGH:g} effective samples a prompt",
            _weak(grid),
        ),
    ]


Where = Callable[[Entry], str]


def _failed(entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    return tuple(
        f"{where(entry)}, seed {run.seed}: {run.error or 'no message'}"
        for entry in entries
        for run in entry.runs
        if run.status == "failed"
    )


def _missing(entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    return tuple(
        f"{where(entry)}: {entry.counts.missing} of {entry.counts.planned}"
        for entry in entries
        if entry.counts.missing
    )


def _no_optimality(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(
        f"{row.agent}: {row.counts.no_optimality} of {row.counts.done} runs"
        for row in rows
        if row.counts.no_optimality
    )


def _clipped(grid: Grid, rows: Sequence[Row]) -> tuple[str, ...]:
    items = []
    for row in rows:
        scores = finals(grid.all_of(row.agent), "optimality")
        if row.counts.clipped:
            items.append(
                f"{row.agent}: {row.counts.clipped} of {len(scores)} runs, the least {min(scores):.1f}"
            )
    return tuple(items)


def _below(entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    return tuple(
        f"{where(entry)}: {entry.optimality.mean:.2f}"
        for entry in entries
        if entry.optimality.mean is not None
        and (entry.optimality.high if entry.optimality.high is not None else entry.optimality.mean) < 0.0
    )


def _unsolved(grid: Grid, entries: Sequence[Entry]) -> tuple[str, ...]:
    items = []
    for problem in grid.problems:
        scores = [
            (entry.optimality.mean, entry.agent)
            for entry in entries
            if entry.problem == problem.index and entry.optimality.mean is not None
        ]
        if scores and max(scores)[0] < SOLVED:
            items.append(f"{problem.label}: best is {max(scores)[1]} with {max(scores)[0]:.2f}")
    return tuple(items)


def _disagree(entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    items = []
    for entry in entries:
        scores = [max(run.optimality, FLOOR) for run in entry.runs if run.optimality is not None]
        if len(scores) > 1 and max(scores) - min(scores) > DISAGREE:
            items.append(f"{where(entry)}: {min(scores):.2f} to {max(scores):.2f}")
    return tuple(items)


def _collapse(grid: Grid, entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    items = []
    for entry in entries:
        pairs = []
        for run in grid.of(entry.agent, entry.problem):
            points = [number(row.get("optimality")) for row in at(run.measures, "curve") or []]
            best, last = max((p for p in points if p is not None), default=None), final(run, "optimality")
            if best is not None and last is not None:
                pairs.append((max(best, FLOOR), max(last, FLOOR)))
        best, last = average(b for b, _ in pairs), average(e for _, e in pairs)
        if best is not None and last is not None and best - last > FELL:
            items.append(f"{where(entry)}: {best:.2f}, then {last:.2f}")
    return tuple(items)


def _overoptimised(grid: Grid, entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    items = []
    for entry in entries:
        runs = grid.of(entry.agent, entry.problem)
        reward, gold = (
            average(_change(at(run.measures, "before"), at(run.measures, "after"), name) for run in runs)
            for name in ("reward", "gold")
        )
        if reward is not None and gold is not None and reward > 0.0 > gold:
            items.append(f"{where(entry)}: reward {reward:+.3f}, gold {gold:+.3f}")
    return tuple(items)


def _change(before: object, after: object, name: str) -> float | None:
    first, last = number(at(before, name, "mean")), number(at(after, name, "mean"))
    return None if first is None or last is None else last - first


def _above_one(grid: Grid, entries: Sequence[Entry], where: Where) -> tuple[str, ...]:
    """Entries with a run whose own interval, which J* has its share in, lies above 1; an exact one has no width."""
    items = []
    for entry in entries:
        scores = [at(run.measures, "after", "optimality") for run in grid.of(entry.agent, entry.problem)]
        ends = [number(at(score, "mean" if at(score, "low") is None else "low")) for score in scores]
        above = sum(end is not None and end > 1.0 + 1e-6 for end in ends)
        if above:
            items.append(f"{where(entry)}: {above} of {len(ends)} runs")
    return tuple(items)


def _weak(grid: Grid) -> tuple[str, ...]:
    items = []
    for problem in grid.problems:
        samples = [
            number(at(run.measures, "optimum", "effective_samples"))
            for agent in grid.agents
            for run in grid.of(agent, problem.index)
        ]
        least = min((each for each in samples if each is not None), default=None)
        if least is not None and least < ENOUGH:
            items.append(f"{problem.label}: {least:.1f}")
    return tuple(items)
