"""Writes RESULTS.md from committed results: `python -m textgym_benchmarks.results.page FILE --out RESULTS.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from textgym.files import read_json, write_text
from textgym_benchmarks.results.store import Result, load_results
from textgym_benchmarks.results.tables import (
    equal_table,
    family_table,
    fixed,
    own_table,
    problem_table,
    ranking_table,
    table,
    text,
)
from textgym_benchmarks.statistics.resampling import REPLICATES
from textgym_benchmarks.summary import Summary, summarise

REMARKS = "remarks.md"
SHOWN = 15
"""Items of a finding that the page lists; it tells how many more there are."""

EXPLAINED = """\
- Optimality is (J - J_ref) / (J\\* - J_ref): 0 is the reference, 1 the best that any policy can do at this price of
  KL. It has no lower end. In aggregates, scores below {floor} count as {floor}, or one run would decide a mean; in the
  tables of problems they are what they are.
- The interquartile mean is that of the middle half of all runs; every problem weighs the same. Its interval comes from
  a bootstrap over the runs within each problem ({draws} draws): what other seeds would give, not other problems.
- With three seeds intervals are too narrow. That of one problem is the range of its three runs: it holds the median of
  all seeds with probability 3/4, as each of the three falls on either side of it alike (1 - 2 / 2^3), and their mean as
  often where they are spread evenly about it. Those of aggregates are too narrow by 18% (the square root of 2/3): with
  normal scores they hold the truth 89 times in 100, not 95. A star marks the interval of a single run.
- Above reference: how often a run scores more than the reference, which has 0 by definition. Above the best: how often
  a run beats one of the first agent's on the same problem. Ties count half.
- Tokens scored: those of every completion that the reward has scored while the agent learned, the completions of a
  search among them, each as often as it was scored; for an agent that learns from given texts, those that it read.
  Scored an answer: those of the completions that the finished agent had scored to find one answer, a mean; with
  best-of-n n times the mean length, with one that just writes 0. Evaluations count in neither.
- At equal tokens: the least that any run used which learns; curves are read off there by linear interpolation.
- Tokens to 0.5 and 0.9: median over runs, with runs that never get there as infinitely long; "never" where at least
  half do not, 0 where the agent is there before it learns. A problem counts as reached where the median run gets there.
- A rank with "(n of m runs)" stands on n scores of m planned runs: the others failed, are missing or have none.
- Tokens per CPU second and CPU seconds are those of learning, without evaluations and the estimate of J\\*.
- A failed run is in no mean; "failures as {floor}" is the interquartile mean with each of them counted as {floor}. An
  agent without a KL has no optimality and no rank, nor has one on a task whose J\\* is not known.
- A dash: the suite does not ask for it, or there is nothing to compute it from.
"""


EQUAL = """\
Mean optimality over seeds when every agent has had as many tokens scored, read off the learning curves. A dash: no
curve gets that far.
"""


@dataclass(frozen=True)
class ResultsPage:
    """Writes a page of Markdown from a file of results."""

    results: tyro.conf.Positional[Path]
    """What `python -m textgym_benchmarks.results.store` wrote."""
    out: Path = Path("benchmarks/RESULTS.md")
    """The page; it is replaced."""
    remarks: Path | None = None
    """Markdown by hand that the page includes; by default remarks.md beside the results, if it is there."""


def results_page(path: Path, remarks: Path | None = None) -> str:
    """The page; the same file gives the same page to the last byte.

    Args:
        path: a file of results. remarks: Markdown to include; None: remarks.md beside the file, if it is there.
    Raises: ValueError naming the file that cannot be read.
    """
    results = load_results(path)
    if path.is_dir():
        raise ValueError(f"path={str(path)!r}: is a folder; allowed is a file of exported results")
    suite: Mapping[str, Any] = read_json(path).get("suite", {})
    summary = summarise(results)
    written = _remarks(path.parent / REMARKS if remarks is None else remarks, remarks is not None)
    parts = [
        f"# Results of {text(suite.get('name') or path.stem)}\n",
        f"{text(suite.get('description') or '')}\n" if suite.get("description") else "",
        "Written by `python -m textgym_benchmarks.results.page`; what is below is computed, but for the remarks.\n",
        *([f"## Remarks\n\n{written}"] if written else []),
        f"## Made with\n\n{_facts(suite, summary, results)}",
        f"## How to make it again\n\n{_commands(str(suite.get('name') or path.stem), path)}",
        f"## Leaderboard\n\n{_leaderboard(summary)}",
        *[_family(summary, family) for family in summary.families],
        f"## At equal tokens\n\n{EQUAL}\n{equal_table(summary)}",
        f"## What fails, and what surprises\n\n{_findings(summary)}",
        f"## How to read the numbers\n\n{_explained(summary)}",
        f"## Each problem\n\n{_problems(summary)}",
    ]
    return "\n".join(part for part in parts if part)


def _remarks(path: Path, needed: bool) -> str:
    if not path.exists():
        if needed:
            raise ValueError(f"remarks={str(path)!r}: there is no such file")
        return ""
    return path.read_text(encoding="utf-8").strip() + "\n"


def _facts(suite: Mapping[str, Any], summary: Summary, results: Sequence[Result]) -> str:
    counts = summary.counts
    hours = sum(result.timing.get("cpu_seconds") or 0.0 for result in results if result.timing) / 3600.0
    cells = f"{counts.planned:,}: {counts.done:,} done, {counts.failed:,} failed, {counts.missing:,} missing"
    seeds = sorted({len(entry.runs) for entry in summary.entries})
    rows = [
        ("machine", "; ".join(text(machine) for machine in summary.machines) or "not recorded"),
        ("started", text(suite.get("started") or "not recorded")),
        ("cells", cells),
        ("seeds", " or ".join(str(number) for number in seeds)),
        ("CPU time of all cells", f"{fixed(hours, 1)} hours"),
        *((text(name), ", ".join(text(each) for each in found)) for name, found in summary.versions.items()),
    ]
    return table(("", ""), rows).replace("| --- | --: |", "| --- | --- |")


def _commands(name: str, path: Path) -> str:
    # Only plain names go into a block of code, where nothing can be escaped.
    suite = name if name.replace("-", "").isalnum() else "SUITE"
    return (
        "```sh\n"
        f"textgym bench --suite {suite}\n"
        f"python -m textgym_benchmarks.results.store runs/bench-{suite} --out benchmarks/results/{suite}.json\n"
        f"python -m textgym_benchmarks.results.page benchmarks/results/{suite}.json\n"
        f"textgym report benchmarks/results/{suite}.json --out runs/report-{suite}\n"
        "```\n"
    )


def _leaderboard(summary: Summary) -> str:
    common, total = len(summary.common), len(summary.problems)
    over = (
        "all problems" if common == total else f"the {common} of {total} problems that all of them were given"
    )
    parts = []
    if common:
        parts.append(f"Ranked over {over}, by the interquartile mean of optimality with its 95% interval.\n")
        parts.append(ranking_table(summary.leaderboard))
    if 0 < common < total:
        parts.append(f"The {common}: {', '.join(text(label) for label in summary.common)}.\n")
    parts.append("Every agent over everything that it was given; rows over other problems do not compare.\n")
    parts.append(own_table(summary.leaderboard))
    return "\n".join(parts)


def _family(summary: Summary, family: str) -> str:
    (best,) = (each for each in summary.best if each.family == family)
    lines = [f"## {text(family).capitalize()}\n", "Mean optimality over seeds, not clipped.\n"]
    if best.agent is not None:
        labels = tuple(problem.label for problem in summary.problems if problem.family == family)
        problems = ", ".join(text(label) for label in best.problems)
        problems = "all of them" if best.problems == labels else problems
        among = (
            f"Best of {len(best.agents)} agents on {problems}"
            if len(best.agents) > 1
            else f"Only one agent was given {problems}"
        )
        lines.append(
            f"{among}: {text(best.agent)}, mean {fixed(best.mean)} (clipped at {summary.floor:g}).\n"
        )
    return "\n".join([*lines, family_table(summary, family)])


def _findings(summary: Summary) -> str:
    parts = []
    for finding in summary.findings:
        if not finding.items:
            parts.append(f"- {text(finding.title)}: none.")
            continue
        parts.append(f"- {text(finding.title)} ({len(finding.items)}):")
        parts += [f"  - {text(item)}" for item in finding.items[:SHOWN]]
        if len(finding.items) > SHOWN:
            parts.append(f"  - and {len(finding.items) - SHOWN} more, which the tables below show.")
    return "\n".join(parts) + "\n"


def _explained(summary: Summary) -> str:
    return EXPLAINED.format(floor=f"{summary.floor:g}", draws=f"{REPLICATES:,}")


def _problems(summary: Summary) -> str:
    parts = []
    for problem in summary.problems:
        budget = f"{problem.episodes:,} episodes"
        parts.append(f"### {text(problem.label)}\n\n{budget}.\n\n{problem_table(summary, problem.index)}")
    return "\n".join(parts)


def main() -> None:
    """Writes the page."""
    settings = tyro.cli(ResultsPage, description=ResultsPage.__doc__)
    page = results_page(settings.results, settings.remarks)
    write_text(settings.out, page)
    print(f"{settings.out}: {len(page):,} characters")


if __name__ == "__main__":
    main()
