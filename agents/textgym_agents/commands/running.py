"""What commands that train have in common: folders, live lines and summaries."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import arg

from textgym.commands.console import UsageError, note, output, untrusted
from textgym.commands.flags import parse

MEASURES = {
    "reward": "reward",
    "gold": "gold reward",
    "kl": "KL to the reference, nats",
    "objective": "objective J",
    "optimality": "optimality",
    "entropy": "entropy, nats",
    "length": "length, tokens",
    "stop_rate": "ended by itself",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
}
Row = Mapping[str, Any]


def measures_table(columns: Mapping[str, Row], names: list[str] | None = None) -> Table:
    """A row per measure, a column per policy, with 95% intervals; what failed, in completions.

    Args:
        columns: heading -> flat measures under `eval/...`.
        names: of the measures; None shows all that are there, and the reward's terms.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("measure")
    for heading in columns:
        table.add_column(heading, justify="right")
    wanted = names or [
        name for name in MEASURES if any(row.get(f"eval/{name}") is not None for row in columns.values())
    ]
    for name in wanted:
        table.add_row(MEASURES[name], *(cell(row, name) for row in columns.values()))
    if names is None:
        _add_group(table, columns, "terms", "term", "-")
        _add_group(table, columns, "failures", "failures:", "0")
    return table


def how_measured(evaluation: Any, optimum: Any) -> str:
    """Return which measures of an evaluation are exact and which were sampled, in a sentence."""
    if evaluation.exact:
        return (
            "Exact, over all answers: reward, KL, J, entropy, length and how many ended by themselves. "
            "Sampled: terms and distinct words."
        )
    sampled = "Sampled, with 95% intervals (none at one completion a prompt): reward, KL, J and the rest."
    return f"{sampled} J* is exact." if optimum.exact else sampled


def _add_group(table: Table, columns: Mapping[str, Row], group: str, title: str, absent: str) -> None:
    """A row for every measure under `eval/GROUP/`."""
    prefix = f"eval/{group}/"
    for key in dict.fromkeys(key for row in columns.values() for key in row if key.startswith(prefix)):
        label = key.removeprefix(prefix)
        cells = [cell(row, f"{group}/{label}") if key in row else absent for row in columns.values()]
        table.add_row(untrusted(f"  {title} {label}"), *cells)


def cell(row: Row, name: str) -> str:
    """A measure as text: "0.912 [0.901, 0.922]", without the bracket where it has no interval, or "-"."""
    value, low, high = (row.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    # A difference of 1e-18 is no "-0.000".
    text = f"{value + 0.0:.3f}".replace("-0.000", "0.000")
    return (
        text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")
    )


_LINES = 20  # that a whole training prints where there is no terminal
_SHOWN = {"loss": "loss", "eval/loss": "held-out loss", "eval/accuracy": "held-out accuracy"}


@dataclass(frozen=True)
class OutFlags:
    """Where a run is written."""

    out: Path | None = None
    """The run's folder; by default the next free runs/NAME-N. What is there is never overwritten."""
    resume: bool = False
    """Go on with the interrupted run in --out, with the settings that it was started with."""


def parse_fit(
    kind: type[Any], arguments: list[str], command: str, text: str
) -> tuple[Any, Path | None, bool]:
    """The settings, the run's folder (None for the next free one) and whether to resume, from command-line words.

    Args:
        kind: the class of the settings. text: of `--help`.
    Raises: UsageError, or ValueError for a setting out of range.
    """
    parts: list[Any] = [
        ("settings", Annotated[kind, arg(name="")]),
        ("flags", OutFlags, dataclasses.field()),
    ]
    combined = make_dataclass("Fit", parts, frozen=True)
    combined.__doc__ = text
    given: Any = parse(combined, arguments, command)
    flags: OutFlags = given.flags
    if not flags.resume:
        return given.settings, flags.out, False
    if flags.out is None:
        raise UsageError("--resume: --out must name the folder of the interrupted run")
    return _stored(given.settings, flags.out, command), flags.out, True


def _stored(asked: Any, out: Path, command: str) -> Any:
    """The settings that a run was started with.

    Raises: UsageError if the run is another command's, or a flag asks for something else.
    """
    from textgym_agents.training.folder import RunFolder

    config = RunFolder.reopen(out).config()
    if config.get("command") != command:
        held = config.get("command", "another command")
        raise UsageError(f"--resume: {out} holds a run of {held}, not of {command}")
    values = {}
    for field in fields(asked):
        wanted = getattr(asked, field.name)
        had = config.get(field.name, field.default)
        if wanted not in (had, field.default):
            flag = field.name.replace("_", "-")
            raise UsageError(f"--{flag} {wanted!r}: the run in {out} was started with {had!r}")
        values[field.name] = had
    return type(asked)(**values)


class FitDisplay:
    """A `Watcher` for people: a bar, or plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = output()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=1)
        self._live = self._console.is_terminal
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""
        if self._live:
            self._progress.update(self._task, description=text)
        else:
            self._say(text)

    def note(self, text: str) -> None:
        """See `Watcher.note`."""
        if self._live:
            self._progress.console.print(untrusted(text))
        else:
            note(text)

    def iteration(self, row: Mapping[str, Any]) -> None:
        """See `Watcher.iteration`."""
        done, total = row["iteration"], row["iterations"]
        cells = [f"{label} {row[name]:.4g}" for name, label in _SHOWN.items() if row.get(name) is not None]
        if self._live:
            self._progress.update(self._task, completed=done, total=total, description="  ".join(cells))
        elif (
            any(name.startswith("eval/") for name in row)
            or done % max(1, total // _LINES) == 0
            or done == total
        ):
            self._say(f"step {done}/{total}  {'  '.join(cells)}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)


def before_after(result: Mapping[str, Any], measures: Mapping[str, str]) -> Table:
    """A row per measure, before and after learning, with 95% intervals where there are any.

    Args:
        result: of a training.
        measures: name -> label.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("held-out prompts")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for name, label in measures.items():
        cells = [cell(result[column], name) for column in ("before", "after")]
        if cells != ["-", "-"]:
            table.add_row(label, *cells)
    return table


def print_result(result: Mapping[str, Any], measures: Mapping[str, str], out: Path) -> None:
    """The measures before and after learning, what they are from, and where everything is."""
    console = output()
    data = result["data"]
    if data["held_out_rows"]:
        console.print(before_after(result, measures))
    else:
        console.print("no prompts were held out, so nothing was measured")
    console.print(
        untrusted(
            f"{data['train_rows']} rows to learn from, {data['held_out_rows']} held out; "
            f"{data['broken_rows']} left out, {data['rows_cut']} cut to {data['max_length']} tokens"
        )
    )
    console.print(untrusted(f"{result['steps']} steps in {result['seconds']:.0f} s; run folder: {out}"))


_EVERY = 10  # iterations of a long training between two lines


class PipelineDisplay(FitDisplay):
    """A `Watcher` for people that reads the rows of every kind of training.

    Args:
        episodes: the budget of the reinforcement learning among the stages.
    """

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self._episodes = episodes

    def iteration(self, row: Mapping[str, Any]) -> None:
        """See `Watcher.iteration`."""
        if "episode" not in row:
            super().iteration(row)
            return
        names = {
            "objective/scores": "reward",
            "objective/kl": "kl",
            "eval/reward": "held-out reward",
            "eval/gold": "held-out gold",
        }
        cells = [f"{label} {row[name]:.4g}" for name, label in names.items() if row.get(name) is not None]
        done = min(row["episode"], self._episodes)
        if self._live:
            self._progress.update(
                self._task, completed=done, total=self._episodes, description="  ".join(cells)
            )
        elif row["iteration"] % _EVERY == 0 or "eval/reward" in row or done == self._episodes:
            self._say(f"episode {done:.0f}/{self._episodes}  {'  '.join(cells)}")
