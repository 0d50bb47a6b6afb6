"""Writes RESULTS.md from committed results: `python -m textgym_benchmarks.results.page FILE --out RESULTS.md`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro
from jinja2 import Environment, PackageLoader, StrictUndefined

from textgym.checks import JsonObject
from textgym.files import write_text
from textgym.render import escaped
from textgym_benchmarks.results.store import Result, load_results, suite_summary
from textgym_benchmarks.statistics import REPLICATES, Aggregate, Interval
from textgym_benchmarks.summaries.entries import Costs, Crossing, Entry, best_first
from textgym_benchmarks.summaries.leaderboard import Row
from textgym_benchmarks.summary import Summary, summarise

T = TypeVar("T")
NONE = "\u2013"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~$!])")
REMARKS = "remarks.md"


@dataclass(frozen=True)
class ResultsPage:
    """Write a page of Markdown from a file of results."""

    results: tyro.conf.Positional[Path]
    """What `python -m textgym_benchmarks.results.store` wrote."""
    out: Path = Path("benchmarks/RESULTS.md")
    """The page; it is replaced."""
    remarks: Path | None = None
    """Markdown by hand that the page includes; by default remarks.md beside the results, if it is there."""


def results_page(path: Path, remarks: Path | None = None) -> str:
    """Return the page; the same file gives the same page to the last byte.

    Args:
        path: a file of results. remarks: Markdown to include; None: remarks.md beside the file, if it is there.
    Raises: ValueError naming the file that cannot be read.
    """
    results = load_results(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r}: is a folder; allowed is a file of exported results")
    suite, summary = suite_summary(path), summarise(results)
    by_hand = path.parent / REMARKS if remarks is None else remarks
    if remarks is not None and not remarks.exists():
        raise ValueError(f"remarks={str(remarks)!r}: there is no such file")
    return (
        markdown_templates()
        .get_template("results.md")
        .render(
            name=str(suite.get("name") or path.stem),
            suite=suite,
            summary=summary,
            remarks=by_hand.read_text(encoding="utf-8").strip() if by_hand.exists() else "",
            facts=_facts(suite, summary, results),
            floor=f"{summary.floor:g}",
            draws=f"{REPLICATES:,}",
        )
    )


def markdown_templates() -> Environment:
    """Return the templates of Markdown, in which every text of a file goes through the filter `text`."""
    made = Environment(
        loader=PackageLoader("textgym_benchmarks.results"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"text": text, "fixed": fixed}
    tables = (ranking_table, own_table, family_table, equal_table, problem_table)
    made.globals |= {each.__name__: each for each in tables}
    return made


def text(words: object) -> str:
    """Return any text as Markdown that shows it: one line, nothing in it is markup or steers a terminal."""
    return _SPECIAL.sub(r"\\\1", escaped(str(words)))


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number for people, rounded twice: the last bits of a sum do not decide between two digits."""
    if value is None:
        return NONE
    shown = f"{round(value, 9):,.{digits}f}"
    return shown.removeprefix("-") if float(shown.replace(",", "")) == 0 else shown


def _interval(found: Interval | None) -> str:
    """Return a number with its interval, where there is one."""
    if found is None:
        return NONE
    if found.value is None or found.low is None or found.high is None or found.high - found.low < 1e-9:
        return fixed(found.value)
    return f"{fixed(found.value)} [{fixed(found.low)}, {fixed(found.high)}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: bool = True) -> str:
    """Return a Markdown table.

    Args:
        right: whether all columns but the first are set to the right, as numbers are.
    """
    rule = ["---", *["--:" if right else "---"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _table_of(rows: Sequence[T], columns: Mapping[str, Callable[[T], str]]) -> str:
    """Return a table with a line for each row; every column says how a row's text is made."""
    return table(list(columns), [[show(row) for show in columns.values()] for row in rows])


def _facts(suite: JsonObject, summary: Summary, results: Sequence[Result]) -> str:
    counts = summary.counts
    hours = sum(result.timing.get("cpu_seconds") or 0.0 for result in results if result.timing) / 3600.0
    seeds = sorted({len(entry.runs) for entry in summary.entries})
    rows = [
        ("machine", "; ".join(map(text, summary.machines)) or "not recorded"),
        ("started", text(suite.get("started") or "not recorded")),
        (
            "cells",
            f"{counts.planned:,}: {counts.done:,} done, {counts.failed:,} failed, {counts.missing:,} missing",
        ),
        ("seeds", " or ".join(map(str, seeds))),
        ("CPU time of all cells", f"{fixed(hours, 1)} hours"),
        *((text(name), ", ".join(map(text, found))) for name, found in summary.versions.items()),
    ]
    return table(("", ""), rows, right=False)


def ranking_table(rows: Sequence[Row]) -> str:
    """Return the ranked agents, over the problems that all of them were given."""
    columns: dict[str, Callable[[Row], str]] = {
        "agent": lambda row: text(row.agent),
        "rank": lambda row: NONE if row.rank is None else f"{row.rank}{_share(row.common, 'runs')}",
        "interquartile mean": lambda row: _interval(row.common) + _share(row.common, "problems"),
        "failures as -1": lambda row: fixed(row.common_with_failures),
        "above the best": lambda row: NONE if row.over_best is None else fixed(row.over_best.value),
    }
    ranked = [row for row in rows if row.common is not None]
    if not any(row.counts.failed for row in ranked):
        del columns["failures as -1"]
    return _table_of(ranked, columns)


def own_table(rows: Sequence[Row]) -> str:
    """Return all agents, each over what it was given."""
    columns: dict[str, Callable[[Row], str]] = {
        "agent": lambda row: text(row.agent),
        "problems": lambda row: f"{row.iqm.tasks} of {row.iqm.of_tasks}",
        "interquartile mean": lambda row: _interval(row.iqm),
        "mean": lambda row: _interval(row.mean),
        "median": lambda row: _interval(row.median),
        "gap to 1": lambda row: _interval(row.optimality_gap),
        "above reference": lambda row: fixed(row.over_reference.value),
        "problems to 0.5": lambda row: _reached(row.to_half),
        "problems to 0.9": lambda row: _reached(row.to_nine_tenths),
        "tokens scored a run": lambda row: fixed(row.tokens, 0),
        "tokens scored an answer": lambda row: fixed(row.answer_tokens, 0),
        "tokens per CPU s of learning": lambda row: fixed(row.tokens_per_cpu_second, 0),
        "runs": _runs,
    }
    return _table_of(rows, columns)


def _share(found: Aggregate | None, of: str) -> str:
    """Return a note where an aggregate stands on fewer runs or problems than planned."""
    if found is None:
        return ""
    there, all_of = (found.runs, found.of_runs) if of == "runs" else (found.tasks, found.of_tasks)
    return "" if there == all_of else f" ({there} of {all_of} {of})"


def family_table(summary: Summary, family: str) -> str:
    """Return the mean optimality over seeds: problems by agents, those that any of the problems was given to."""
    problems = [problem for problem in summary.problems if problem.family == family]
    entries = {(entry.agent, entry.problem): entry for entry in summary.entries}
    agents = [agent for agent in summary.agents if any((agent, p.index) in entries for p in problems)]
    rows = [
        [text(problem.label), *(_score(entries.get((agent, problem.index))) for agent in agents)]
        for problem in problems
    ]
    return table(["", *map(text, agents)], rows)


def _score(entry: Entry | None) -> str:
    if entry is None:
        return NONE
    counts = entry.counts
    if entry.optimality.value is not None:
        lost = counts.failed + counts.missing
        note = f" ({entry.optimality.runs} of {counts.planned})" if lost else ""
        return fixed(entry.optimality.value) + note
    if counts.no_optimality:
        return f"no optimality, reward {fixed(entry.reward.value)}"
    return "failed" if counts.failed else "missing"


def equal_table(summary: Summary) -> str:
    """Return problems by agents, those with a curve anywhere: mean optimality after equally many scored tokens."""
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
    return table(["", "tokens scored", *map(text, agents)], rows)


def problem_table(summary: Summary, index: int) -> str:
    """Return one problem: its agents, the best first."""
    entries = [entry for entry in summary.entries if entry.problem == index]
    columns: dict[str, Callable[[Entry], str]] = {
        "agent": lambda entry: text(entry.agent),
        # A single run's interval is of its completions, not of seeds.
        "optimality": lambda entry: (
            _interval(entry.optimality) + ("\\*" if entry.optimality.interval == "run" else "")
        ),
        "reward": lambda entry: fixed(entry.reward.value, 3),
        "gold": lambda entry: fixed(entry.gold.value, 3),
        "KL, nats": lambda entry: fixed(entry.kl.value, 3),
        "J": lambda entry: fixed(entry.objective.value, 3),
        "tokens to 0.5": lambda entry: _tokens_to(entry.to_half),
        "tokens to 0.9": lambda entry: _tokens_to(entry.to_nine_tenths),
        "tokens scored": lambda entry: fixed(entry.tokens, 0),
        "scored an answer": lambda entry: fixed(entry.answer_tokens, 0),
        "CPU s of learning": lambda entry: fixed(entry.cpu_seconds, 1),
        "runs": _runs,
    }
    if all(entry.gold.value is None for entry in entries):
        del columns["gold"]
    return _table_of(best_first(entries), columns)


def _tokens_to(crossing: Crossing) -> str:
    if not crossing.of:
        return NONE
    tokens = "never" if crossing.tokens is None else fixed(crossing.tokens, 0)
    return (
        tokens if crossing.reached in (0, crossing.of) else f"{tokens} ({crossing.reached} of {crossing.of})"
    )


def _reached(crossing: Crossing) -> str:
    return f"{crossing.reached} of {crossing.of}" if crossing.of else NONE


def _runs(row: Costs) -> str:
    counts = row.counts
    parts = [f"{counts.done} of {counts.planned}" if counts.done < counts.planned else str(counts.done)]
    others = (
        (counts.failed, "failed"),
        (counts.missing, "missing"),
        (counts.no_optimality, "without optimality"),
    )
    return ", ".join([*parts, *(f"{many} {what}" for many, what in others if many)])


def main() -> None:
    """Run `python -m textgym_benchmarks.results.page`."""
    settings = tyro.cli(ResultsPage, description=ResultsPage.__doc__)
    page = results_page(settings.results, settings.remarks)
    write_text(settings.out, page)
    print(f"{settings.out}: {len(page):,} characters")


if __name__ == "__main__":
    main()
