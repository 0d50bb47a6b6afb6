"""Write RESULTS.md from committed results: `python -m textgym_benchmarks.results.page FILE --out RESULTS.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from textgym.commands.console import script
from textgym.files import write_text
from textgym_benchmarks.pages import markdown
from textgym_benchmarks.results.store import load_results, suite_summary
from textgym_benchmarks.statistics import REPLICATES
from textgym_benchmarks.summaries import summarise
from textgym_benchmarks.summaries.charts import EqualSpending
from textgym_benchmarks.summaries.entries import best_first

REMARKS = "remarks.md"


@dataclass(frozen=True)
class ResultsPage:
    """Write a page of Markdown from a file of results."""

    results: tyro.conf.Positional[Path]
    """The file that `python -m textgym_benchmarks.results.store` wrote."""
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
    hours = sum(result.timing.get("cpu_seconds") or 0.0 for result in results if result.timing) / 3600.0

    def with_curve(rows: Sequence[EqualSpending]) -> list[str]:
        return [agent for agent in summary.agents if any(each.optimality.get(agent) is not None for each in rows)]

    return markdown("textgym_benchmarks.results", "results.md").render(
        name=str(suite.get("name") or path.stem),
        suite=suite,
        summary=summary,
        remarks=by_hand.read_text(encoding="utf-8").strip() if by_hand.exists() else "",
        hours=hours,
        with_curve=with_curve,
        by_place={(entry.problem, entry.agent): entry for entry in summary.entries},
        best_first=best_first,
        floor=f"{summary.floor:g}",
        draws=f"{REPLICATES:,}",
    )


def main() -> None:
    """Run `python -m textgym_benchmarks.results.page`."""
    settings = tyro.cli(ResultsPage, description=ResultsPage.__doc__)
    page = results_page(settings.results, settings.remarks)
    write_text(settings.out, page)
    print(f"{settings.out}: {len(page):,} characters")


if __name__ == "__main__":
    script(main)
