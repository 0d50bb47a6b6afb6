"""Say what is wrong with a run: eighteen conditions, each ok, an alarm, or not judged (`textgym doctor`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, folded, output, table, untrusted
from textgym.commands.flags import parse
from textgym.files import read_lines
from textgym_agents.training.doctor import Diagnosis, Doctor
from textgym_agents.training.folder import RunFolder


@dataclass(frozen=True)
class DoctorFlags:
    """Say what is wrong with a run, finished or not: its metrics are read from the first iteration to the last.

    An alarm shows the iteration at which it set in, the number, what that means, and which setting to change.
    `textgym train` says the same while it learns.

    Example: textgym doctor runs/helpful-v0-rloo-1
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run."""
    strict: bool = False
    """Exit with status 1 if there is an alarm, also one that is over."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> None:
    """Run the command. Raises: UsageError for a folder without a run; SystemExit with `--strict` and an alarm."""
    flags = parse(DoctorFlags, arguments, "doctor")
    found, samples = examine(Path(flags.run))
    if flags.json:
        print(json.dumps([each.json() for each in found], indent=2))
    else:
        _show(found, samples)
    if flags.strict and any(each.alarms for each in found):
        raise SystemExit(1)


def examine(path: Path) -> tuple[list[Diagnosis], list[JsonObject]]:
    """Return what is known of every condition in a run, and its samples.

    Raises: UsageError for a folder that is no run.
    """
    folder = RunFolder(path)
    if folder.state() == "none":
        raise UsageError(f"RUN {str(path)!r}: no run is there; allowed is a folder that textgym train has written")
    doctor = Doctor(max_grad_norm=folder.config().get("config", {}).get("max_grad_norm"))
    for row in folder.metrics():
        doctor.see(row)
    return doctor.findings(), read_lines(path / "samples.jsonl")


def _show(found: Sequence[Diagnosis], samples: Sequence[JsonObject]) -> None:
    """Print a row for each condition, below an alarm what it means, and a completion written since the first alarm."""
    rows, since = table("condition", folded("verdict")), [each.since for one in found for each in one.alarms]
    for each in found:
        rows.add_row(each.condition.name, each.verdict)
        if each.alarms:
            rows.add_row("", f"{each.condition.meaning}; {each.condition.advice}")
    console, ill = output(), sum(bool(each.alarms) for each in found)
    console.print(rows)
    written = [row for row in samples if since and row["iteration"] >= min(since)]
    if written:
        console.print(untrusted(f"written at iteration {written[0]['iteration']}: {written[0]['completion']!r:.200}"))
    missing = sum(bool(each.missing) for each in found)
    console.print(f"{ill} alarms, {len(found) - ill - missing} ok, {missing} not judged")
