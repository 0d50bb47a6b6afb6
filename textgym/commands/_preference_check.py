"""What is in a file of preferences or demonstrations, and which of its rows are broken."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from textgym.commands._console import output, untrusted
from textgym.commands._errors import UsageError

_LISTED = 20  # Broken rows that are shown.


def check_file(path: Path, as_json: bool) -> None:
    """Prints what the file holds. Raises: UsageError, after that, if a row is broken."""
    from textgym.preferences import read_demonstrations, read_rankings

    reading: Any = read_rankings(path, on_broken="skip")
    if not reading.rows:
        demonstrations = read_demonstrations(path, on_broken="skip")
        reading = demonstrations if demonstrations.rows else reading
    report = _report(reading)
    if as_json:
        problems = [asdict(problem) for problem in reading.problems]
        print(json.dumps(report | {"problems": problems}, indent=2, allow_nan=False))
    else:
        console = output()
        console.print(untrusted(f"{path}: format {reading.format or 'unknown'}"))
        console.print(_table(report))
        for problem in reading.problems[:_LISTED]:
            console.print(untrusted(f"line {problem.line}: {problem.message}"))
        if len(reading.problems) > _LISTED:
            console.print(f"and {len(reading.problems) - _LISTED} more")
    if reading.problems:
        total = len(reading.rows) + len(reading.problems)
        raise UsageError(f"{path}: {len(reading.problems)} of {total} rows are broken")


def _report(reading: Any) -> dict[str, Any]:
    from textgym.preferences import Ranking, disagreement
    from textgym.preferences.statistics import longer_wins, several_turns, text_lengths

    rows = reading.rows
    report: dict[str, Any] = {"format": reading.format, "rows": len(rows), "broken": len(reading.problems)}
    report["characters"] = text_lengths(rows)
    if not rows or not isinstance(rows[0], Ranking):
        return report
    sizes = [len(row.completions) for row in rows]
    report |= {
        "prompts": len({row.prompt for row in rows}),
        "completions": [min(sizes), max(sizes)],
        "longer_wins": longer_wins(rows),
        "cut_off": sum(not ended for row in rows for ended in row.ended or ()),
    }
    if reading.format == "hh":
        report["several_turns"] = several_turns(rows)
    if any(row.scores for row in rows):
        report["disagreement"] = disagreement(rows)
    return report


def _table(report: dict[str, Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_row("good rows", str(report["rows"]))
    table.add_row("broken rows", str(report["broken"]))
    if "prompts" in report:
        low, high = report["completions"]
        table.add_row("different prompts", str(report["prompts"]))
        table.add_row("completions in a row", str(low) if low == high else f"{low} to {high}")
    for name, values in report["characters"].items():
        shown = f"{values['mean']:.0f} / {values['median']:.0f} / {values['max']:.0f}"
        table.add_row(f"{name}: mean / median / longest, characters", shown)
    for name, label in (
        ("longer_wins", "the longer one is preferred, of all pairs"),
        ("disagreement", "preferred against its score, of all pairs"),
    ):
        if name in report:
            table.add_row(label, f"{report[name]:.1%}")
    for name, label in (
        ("cut_off", "completions marked as cut off"),
        ("several_turns", "rows that part before the last turn"),
    ):
        if name in report:
            table.add_row(label, str(report[name]))
    return table
