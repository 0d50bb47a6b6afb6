"""Makes the report of a benchmark: leaderboard, curves, charts, samples, as pages that open offline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from textgym.commands.console import note, output, untrusted
from textgym.commands.flags import parse


@dataclass(frozen=True)
class ReportFlags:
    """Make a report of results: one folder of pages that opens offline, in any browser."""

    run: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `textgym bench` or `textgym train`, or files of exported results; all of them go into one report."""
    out: Path | None = None
    """The folder; by default `report` in the first RUN, or beside it where that is a file. A report there is built
    anew, nothing else is ever replaced."""


def main(arguments: list[str]) -> None:
    """Run the command."""
    flags = parse(ReportFlags, arguments, "report")
    from textgym_benchmarks.report import build_report, default_folder

    out = default_folder(flags.run) if flags.out is None else flags.out
    sources = build_report(flags.run, out)
    if sources.repeated:
        note(f"{len(sources.repeated)} cells are in several of the runs; the first finished one is shown")
    fates = [result.status for result in sources.results]
    counts = ", ".join(f"{fates.count(fate)} {fate}" for fate in ("done", "failed", "missing") if fate in fates)
    output().print(untrusted(f"cells: {counts}"))
    output().print(untrusted(f"report: {out / 'index.html'}"), soft_wrap=True)
