"""Diagnose a run: eighteen conditions, each ok, an alarm, or not judged (`textgym doctor`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, folded, number, output, table, untrusted
from textgym.commands.flags import parse
from textgym.files import read_lines
from textgym.render import counted
from textgym_agents.training.doctor import Diagnosis, Doctor
from textgym_agents.training.folder import RunFolder


@dataclass(frozen=True)
class DoctorFlags:
    """Diagnose a run, finished or not, from its metrics of all iterations.

    An alarm shows the iteration at which it began, the value, what it means, and which setting to change. `textgym
    train` prints the same alarms during training. For several runs, such as the cells of a suite, only the alarms are
    listed, with the last measured optimality.

    Example: textgym doctor runs/helpful-v0-rloo-1
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """One or more run folders."""
    strict: bool = False
    """Exit with status 1 if any run had an alarm, even one that is over; otherwise with 0."""
    json: bool = False
    """Print JSON."""


def main(arguments: list[str]) -> None:
    """Run the command. Raises: UsageError for a folder without a run; SystemExit with `--strict` and an alarm."""
    flags = parse(DoctorFlags, arguments, "doctor")
    if not flags.runs:
        raise UsageError("RUN: none is given; allowed is one folder of a run or more")
    found = {name: examine(Path(name)) for name in flags.runs}
    if flags.json:
        said = {name: [each.json() for each in one.findings] for name, one in found.items()}
        print(json.dumps(said if len(found) > 1 else said[flags.runs[0]], indent=2))
    elif len(found) > 1:
        _list(found)
    else:
        _show(found[flags.runs[0]])
    if flags.strict and any(each.alarms for one in found.values() for each in one.findings):
        raise SystemExit(1)


class Examined(NamedTuple):
    """A run: the findings for every condition, the saved completions, and the last measured optimality."""

    findings: list[Diagnosis]
    samples: list[JsonObject]
    optimality: float | None


def examine(path: Path) -> Examined:
    """Return what is known of a run. Raises: UsageError for a folder that is none."""
    folder = RunFolder(path)
    if folder.state() == "none":
        raise UsageError(f"RUN {str(path)!r}: no run is there; allowed is a folder that textgym train has written")
    doctor = Doctor(max_grad_norm=folder.config().get("config", {}).get("max_grad_norm"))
    optimality = None
    for row in folder.metrics():
        doctor.see(row)
        optimality = row.get("eval/optimality", optimality)
    return Examined(doctor.findings(), read_lines(path / "samples.jsonl"), optimality)


def _list(found: Mapping[str, Examined]) -> None:
    """Print a row for each alarm of several runs."""
    rows = table(folded("run"), number("optimality"), folded("alarm"))
    for name, one in found.items():
        path = Path(name)
        short = path.parent.name if path.name == "run" else path.name  # a cell's run has its name above it
        optimality = "-" if one.optimality is None else f"{round(one.optimality, 3) + 0.0:.3f}"
        for each in one.findings:
            if each.alarms:
                rows.add_row(untrusted(short), optimality, f"{each.condition.name}: {each.verdict}")
    console, ill = output(), sum(any(each.alarms for each in one.findings) for one in found.values())
    console.print(rows)
    console.print(f"{ill} of {len(found)} runs {'has' if ill == 1 else 'have'} alarms")


def _show(examined: Examined) -> None:
    """Print a row for each condition, below an alarm what it means, and a completion written since the first alarm."""
    found, samples = examined.findings, examined.samples
    rows, since = table("condition", folded("verdict")), [each.since for one in found for each in one.alarms]
    for each in found:
        rows.add_row(each.condition.name, each.verdict)
        if each.alarms:
            rows.add_row("", "\n".join(each.reasons))
    console, ill = output(), sum(bool(each.alarms) for each in found)
    console.print(rows)
    written = [row for row in samples if since and row["iteration"] >= min(since)]
    if written:
        console.print(untrusted(f"written at iteration {written[0]['iteration']}: {written[0]['completion']!r:.200}"))
    missing = sum(not each.judged for each in found)
    console.print(f"{counted(ill, 'alarm')}, {len(found) - ill - missing} ok, {missing} not judged")
