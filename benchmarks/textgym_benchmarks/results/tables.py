"""The tables of RESULTS.md: Markdown of a summary, with everything that a file wrote escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from textgym.render import escaped
from textgym_benchmarks.statistics.resampling import Aggregate
from textgym_benchmarks.summaries.crossings import Crossing
from textgym_benchmarks.summaries.entries import Entry
from textgym_benchmarks.summaries.grid import Spread
from textgym_benchmarks.summaries.leaderboard import Counts, Row
from textgym_benchmarks.summary import Summary

NONE = "\u2013"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~$!])")


def text(words: object) -> str:
    """Any text as Markdown that shows it: one line, nothing in it is markup or steers a terminal."""
    return _SPECIAL.sub(r"\\\1", escaped(str(words)))


def fixed(value: float | None, digits: int = 2) -> str:
    """A number for people. It is rounded twice, so that the last bits of a sum do not decide between two digits."""
    if value is None:
        return NONE
    shown = f"{round(value, 9):,.{digits}f}"
    return shown.removeprefix("-") if float(shown.replace(",", "")) == 0 else shown


def interval(value: Aggregate | Spread | None, digits: int = 2) -> str:
    """A mean with its interval, where there is one."""
    if value is None:
        return NONE
    mean = value.value if isinstance(value, Aggregate) else value.mean
    if mean is None or value.low is None or value.high is None or value.high - value.low < 1e-9:
        return fixed(mean, digits)
    return f"{fixed(mean, digits)} [{fixed(value.low, digits)}, {fixed(value.high, digits)}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, numbers to the right."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, marks, *rows)]
    return "\n".join(lines) + "\n"


def ranking_table(rows: Sequence[Row]) -> str:
    """The ranked agents, over the problems that all of them were given."""
    ranked = [row for row in rows if row.common is not None]
    failures = ["failures as -1"] if any(row.counts.failed for row in ranked) else []
    return table(
        ["agent", "rank", "interquartile mean", *failures, "above the best"],
        [
            [
                text(row.agent),
                NONE if row.rank is None else f"{row.rank}{_of_runs(row.common)}",
                interval(row.common) + _of(row.common),
                *([fixed(row.common_with_failures)] if failures else []),
                NONE if row.over_best is None else fixed(row.over_best.value),
            ]
            for row in ranked
        ],
    )


def own_table(rows: Sequence[Row]) -> str:
    """All agents, each over what it was given."""
    head = (
        *("agent", "problems", "interquartile mean", "mean", "median", "gap to 1", "above reference"),
        *("problems to 0.5", "problems to 0.9", "tokens scored a run", "tokens scored an answer"),
        *("tokens per CPU s of learning", "runs"),
    )
    return table(
        head,
        [
            (
                text(row.agent),
                f"{row.iqm.tasks} of {row.iqm.of_tasks}",
                interval(row.iqm),
                interval(row.mean),
                interval(row.median),
                interval(row.optimality_gap),
                fixed(row.over_reference.value),
                _reached(row.to_half),
                _reached(row.to_nine_tenths),
                fixed(row.tokens, 0),
                fixed(row.answer_tokens, 0),
                fixed(row.tokens_per_cpu_second, 0),
                _runs(row.counts),
            )
            for row in rows
        ],
    )


def family_table(summary: Summary, family: str) -> str:
    """Problems by agents, those that any of its problems was given to: mean optimality over seeds."""
    problems = [problem for problem in summary.problems if problem.family == family]
    entries = {(entry.agent, entry.problem): entry for entry in summary.entries}
    agents = [agent for agent in summary.agents if any((agent, p.index) in entries for p in problems)]
    rows = [
        [text(problem.label), *(_cell(entries.get((agent, problem.index))) for agent in agents)]
        for problem in problems
    ]
    return table(["", *(text(agent) for agent in agents)], rows)


def equal_table(summary: Summary) -> str:
    """Problems by agents, those with a curve anywhere: mean optimality after the same number of scored tokens."""
    agents = [
        agent
        for agent in summary.agents
        if any(each.optimality.get(agent) is not None for each in summary.equal_tokens)
    ]
    rows = [
        [
            text(summary.problems[each.problem].label),
            fixed(each.tokens, 0),
            *(fixed(each.optimality.get(agent)) for agent in agents),
        ]
        for each in summary.equal_tokens
    ]
    return table(["", "tokens scored", *(text(agent) for agent in agents)], rows)


def problem_table(summary: Summary, index: int) -> str:
    """One problem: its agents, the best first."""
    entries = [entry for entry in summary.entries if entry.problem == index]
    entries.sort(key=lambda entry: (entry.optimality.mean is None, -(entry.optimality.mean or 0.0)))
    gold = any(entry.gold.mean is not None for entry in entries)
    head = ["agent", "optimality", "reward", *(["gold"] if gold else []), "KL, nats", "J"]
    head += [
        "tokens to 0.5",
        "tokens to 0.9",
        "tokens scored",
        "scored an answer",
        "CPU s of learning",
        "runs",
    ]
    rows = []
    for entry in entries:
        measures = [entry.reward, *([entry.gold] if gold else []), entry.kl, entry.objective]
        # A single run's interval is of its completions, not of seeds.
        star = "\\*" if entry.optimality.interval == "run" else ""
        rows.append(
            [
                text(entry.agent),
                interval(entry.optimality) + star,
                *(fixed(measure.mean, 3) for measure in measures),
                _tokens_to(entry.to_half),
                _tokens_to(entry.to_nine_tenths),
                fixed(entry.tokens, 0),
                fixed(entry.answer_tokens, 0),
                fixed(entry.cpu_seconds, 1),
                _runs(entry.counts),
            ]
        )
    return table(head, rows)


def _of(value: Aggregate | None) -> str:
    if value is None or value.tasks == value.of_tasks:
        return ""
    return f" ({value.tasks} of {value.of_tasks} problems)"


def _of_runs(value: Aggregate | None) -> str:
    """What marks a rank that stands on fewer runs than planned."""
    if value is None or value.runs == value.of_runs:
        return ""
    return f" ({value.runs} of {value.of_runs} runs)"


def _reached(crossing: Crossing) -> str:
    return f"{crossing.reached} of {crossing.of}" if crossing.of else NONE


def _runs(counts: Counts) -> str:
    parts = [f"{counts.done} of {counts.planned}" if counts.done < counts.planned else str(counts.done)]
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    if counts.missing:
        parts.append(f"{counts.missing} missing")
    if counts.no_optimality:
        parts.append(f"{counts.no_optimality} without optimality")
    return ", ".join(parts)


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return NONE
    counts = entry.counts
    if entry.optimality.mean is not None:
        lost = counts.failed + counts.missing
        return fixed(entry.optimality.mean) + (f" ({entry.optimality.runs} of {counts.planned})" * bool(lost))
    if counts.no_optimality:
        return f"no optimality, reward {fixed(entry.reward.mean)}"
    return "failed" if counts.failed else "missing"


def _tokens_to(crossing: Crossing) -> str:
    if not crossing.of:
        return NONE
    tokens = "never" if crossing.tokens is None else fixed(crossing.tokens, 0)
    return (
        tokens if crossing.reached in (0, crossing.of) else f"{tokens} ({crossing.reached} of {crossing.of})"
    )
