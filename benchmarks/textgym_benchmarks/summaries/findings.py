"""Failures and surprises, found by rule, that a reader should know of before believing the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from textgym_benchmarks.summaries.entries import AgentScores
from textgym_benchmarks.summaries.grid import FLOOR, Grid, at, average, clipped, finals, finite
from textgym_benchmarks.summaries.leaderboard import AgentRow

SOLVED = 0.5
DISAGREE = 0.5
FELL = 0.2
ENOUGH = 30.0
BASELINES = ("reference", "random")
"""Agents that learn nothing: they are below the reference, or at it, by design."""


@dataclass(frozen=True)
class Surprise:
    """One kind of unexpected result.

    Attributes:
        kind: a word for programs. title: what each item is about; a page shows it with their number.
        items: one line each, none if there is nothing to tell. They quote names of agents and tasks and messages of
            errors, which have to be escaped where they are shown.
    """

    kind: str
    title: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class _Tables:
    """The tables that the rules look at."""

    grid: Grid
    rows: Sequence[AgentRow]
    entries: Sequence[AgentScores]

    @property
    def learners(self) -> list[AgentScores]:
        return [entry for entry in self.entries if entry.agent not in BASELINES]

    def name(self, entry: AgentScores) -> str:
        return f"{entry.agent} on {self.grid.problems[entry.problem].label}"


def _failed(tables: _Tables) -> Iterator[str]:
    for entry in tables.entries:
        for run in entry.runs:
            if run.status == "failed":
                yield f"{tables.name(entry)}, seed {run.seed}: {run.error or 'no message'}"


def _missing(tables: _Tables) -> Iterator[str]:
    for entry in tables.entries:
        if entry.counts.missing:
            yield f"{tables.name(entry)}: {entry.counts.missing} of {entry.counts.planned}"


def _no_optimality(tables: _Tables) -> Iterator[str]:
    for row in tables.rows:
        if row.counts.no_optimality:
            yield f"{row.agent}: {row.counts.no_optimality} of {row.counts.done} runs"


def _clipped(tables: _Tables) -> Iterator[str]:
    for row in tables.rows:
        if row.counts.clipped:
            scores = finals(tables.grid.all_of(row.agent), "optimality")
            yield f"{row.agent}: {row.counts.clipped} of {len(scores)} runs, the least {min(scores):.1f}"


def _below_reference(tables: _Tables) -> Iterator[str]:
    for entry in tables.learners:
        score = entry.optimality
        if score.value is not None and (score.value if score.high is None else score.high) < 0.0:
            yield f"{tables.name(entry)}: {score.value:.2f}"


def _unsolved(tables: _Tables) -> Iterator[str]:
    for problem in tables.grid.problems:
        entries = [entry for entry in tables.entries if entry.problem == problem.index]
        scores = [(entry.optimality.value, entry.agent) for entry in entries if entry.optimality.value is not None]
        best, agent = max(scores, default=(SOLVED, ""))
        if best < SOLVED:
            yield f"{problem.label}: best is {agent} with {best:.2f}"


def _seeds_disagree(tables: _Tables) -> Iterator[str]:
    for entry in tables.learners:
        scores = [max(run.optimality, FLOOR) for run in entry.runs if run.optimality is not None]
        if len(scores) > 1 and max(scores) - min(scores) > DISAGREE:
            yield f"{tables.name(entry)}: {min(scores):.2f} to {max(scores):.2f}"


def _collapse(tables: _Tables) -> Iterator[str]:
    for entry in tables.learners:
        pairs = []
        for run in tables.grid.of(entry.agent, entry.problem):
            points = [row.get("optimality") for row in at(run.measures, "curve") or []]
            best, last = max((p for p in points if p is not None), default=None), clipped(run)
            if best is not None and last is not None:
                pairs.append((max(best, FLOOR), last))
        best, last = average(b for b, _ in pairs), average(e for _, e in pairs)
        if best is not None and last is not None and best - last > FELL:
            yield f"{tables.name(entry)}: {best:.2f}, then {last:.2f}"


def _overoptimised(tables: _Tables) -> Iterator[str]:
    for entry in tables.learners:
        changes: dict[str, list[float]] = {"reward": [], "gold": []}
        for run in tables.grid.of(entry.agent, entry.problem):
            for name, found in changes.items():
                before, after = (finite(at(run.measures, side, name, "mean")) for side in ("before", "after"))
                if before is not None and after is not None:
                    found.append(after - before)
        reward, gold = average(changes["reward"]), average(changes["gold"])
        if reward is not None and gold is not None and reward > 0.0 > gold:
            yield f"{tables.name(entry)}: reward {reward:+.3f}, gold {gold:+.3f}"


def _above_one(tables: _Tables) -> Iterator[str]:
    """Yield entries with a run whose own interval, which J* has its share in, lies above 1."""
    for entry in tables.learners:
        runs = tables.grid.of(entry.agent, entry.problem)
        scores = [at(run.measures, "after", "optimality") for run in runs]
        # An exact score has no ends.
        ends = [finite(at(score, "mean" if at(score, "low") is None else "low")) for score in scores]
        above = sum(end is not None and end > 1.0 + 1e-6 for end in ends)
        if above:
            yield f"{tables.name(entry)}: {above} of {len(ends)} runs"


def _weak_optimum(tables: _Tables) -> Iterator[str]:
    grid = tables.grid
    for problem in grid.problems:
        runs = (run for agent in grid.agents for run in grid.of(agent, problem.index))
        samples = [finite(at(run.measures, "optimum", "effective_samples")) for run in runs]
        least = min((each for each in samples if each is not None), default=None)
        if least is not None and least < ENOUGH:
            yield f"{problem.label}: {least:.1f}"


_RULES: tuple[tuple[str, str, Callable[[_Tables], Iterator[str]]], ...] = (
    ("failed", "Runs that failed", _failed),
    ("missing", "Agents on problems with runs that have no result yet", _missing),
    (
        "no_optimality",
        "Agents with runs without an optimality: they have no KL, or J* is not known or the reference's J",
        _no_optimality,
    ),
    ("clipped", f"Agents with runs below {FLOOR:g}, which count as {FLOOR:g} in aggregates", _clipped),
    ("below_reference", "Worse after learning than the reference", _below_reference),
    ("unsolved", f"Problems on which no agent reaches {SOLVED}", _unsolved),
    ("seeds_disagree", f"Seeds more than {DISAGREE} apart (clipped)", _seeds_disagree),
    ("collapse", f"Ended more than {FELL} below the best point of the learning curve, mean over seeds", _collapse),
    ("overoptimised", "Paid more and worth less: reward up, gold down", _overoptimised),
    (
        "above_one",
        "Agents on problems with runs above J* by more than their interval: J* was estimated too low "
        "(python -m textgym_benchmarks.run.optima renews that of a shipped task)",
        _above_one,
    ),
    ("weak_optimum", f"Problems whose J* rests on fewer than {ENOUGH:g} effective samples a prompt", _weak_optimum),
)
"""Kind, title and rule of every finding, in the order in which they are told."""


def findings(grid: Grid, rows: Sequence[AgentRow], entries: Sequence[AgentScores]) -> list[Surprise]:
    """Return all kinds, also those without an item: that nothing failed is a finding too."""
    tables = _Tables(grid, rows, entries)
    return [Surprise(kind, title, tuple(rule(tables))) for kind, title, rule in _RULES]
