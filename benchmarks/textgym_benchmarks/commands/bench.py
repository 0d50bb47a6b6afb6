"""Run a suite of cells (task, reward, agent, budget, seed) on all cores or a cluster; resume where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from textgym.commands.console import duration, folded, note, number, one_line, output, table, untrusted
from textgym.commands.flags import import_user_module, parse
from textgym.prompts import HeldOut
from textgym.registry import SUITES
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.runner import BenchWatcher, Progress, Status, busy_share, run_suite
from textgym_benchmarks.suites import cost, make_suite
from textgym_benchmarks.summaries.grid import finals

EXIT_FAILED = 1
_COLUMN = 12  # characters of a column of the last table, about
_NAMED = 5  # failed cells that the last line names

_SYMBOLS = {
    "done": ("+", "green"),
    "failed": ("x", "bold red"),
    "running": (">", "cyan"),
    "busy": ("o", "yellow"),
    "waiting": (".", "dim"),
}


@dataclass(frozen=True)
class BenchFlags:
    """Run the cells of a suite that have no result yet. The same command continues with the cells that are left.

    Example: textgym bench --suite quick --agents rloo my_module:MyAgent
    """

    suite: str = "quick"
    """Name of the suite, --list shows all; or module:function, which returns one of your own."""
    agents: tuple[str, ...] | None = None
    """Only these agents of the suite, by default all; module:Class adds your own, with its tasks and budgets."""
    seeds: int | None = None
    """Runs of each row, seeds from 0; by default the suite's."""
    engine: Literal["serial", "pool", "ray"] = "pool"
    """Where cells run: in this process, in processes of this machine, or on Ray."""
    workers: int | None = None
    """Processes; by default one for each core."""
    address: str | None = None
    """Of a Ray cluster, as in ray://host:10001; by default Ray is started on this machine."""
    split: HeldOut = "eval"
    """Which held-out prompts: those to report, or those to choose settings on, with other seeds."""
    out: Path | None = None
    """Folder of the results, by default runs/bench-SUITE (-tune for that split). Nothing there is ever overwritten."""
    retry_failed: bool = False
    """Also run cells again that failed."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint of the cells that run now, for eval and inspect."""
    list: bool = False
    """Show the suites, and run nothing."""


def main(arguments: Sequence[str]) -> None:
    """Run the command. Raises: SystemExit with 1 if a cell failed."""
    flags = parse(BenchFlags, [*arguments], "bench")
    if flags.list:
        output().print(suites_table())
        return
    for name in (flags.suite, *(flags.agents or ())):
        if ":" in name:
            import_user_module(name.partition(":")[0])
    out = flags.out or Path("runs") / f"bench-{flags.suite.rpartition(':')[2]}{'-tune' * (flags.split == 'tune')}"
    results = run_suite(
        flags.suite,
        out,
        flags.agents,
        flags.engine,
        flags.workers,
        flags.seeds,
        split=flags.split,
        address=flags.address,
        retry_failed=flags.retry_failed,
        save=flags.keep_checkpoints,
        watcher=LiveTable(),
    )
    console = output()
    for part in summary_tables(results, console.width):
        console.print(part)
    busy = busy_share(out)
    if busy is not None:
        console.print(f"share of the cores busy in the last run: {busy:.2f}", markup=False)
    console.print(untrusted(f"results: {out}; textgym report {out} shows more"), soft_wrap=True)
    _report_trouble(results)


def suites_table() -> Table:
    """Return the suites with their sizes and what they cost."""
    sizes = map(number, ("cells", "tasks", "agents", "seeds"))
    found = table("suite", *sizes, "CPU time, about", "what it is")
    for name in SUITES:
        try:
            suite = make_suite(name)
        except Exception as error:  # One broken plug-in must not hide the other suites.
            found.add_row(name, *"-----", untrusted(one_line(error)))
            continue
        counts = [len({getattr(cell, kind) for cell in suite.cells}) for kind in ("id", "agent", "seed")]
        seconds = sum(cost(cell) for cell in suite.cells)
        found.add_row(name, f"{len(suite.cells):,}", *map(str, counts), duration(seconds), suite.description)
    return found


def summary_tables(results: Sequence[Result], width: int) -> list[Table]:
    """Return mean optimality over the seeds by task and agent, with counts of the cells that failed or are missing.

    Agents that do not fit into `width` characters go into another table.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.task, result.cell.name), []).append(result)
    tasks = list(dict.fromkeys(task for task, _ in groups))
    agents = list(dict.fromkeys(agent for _, agent in groups))
    at_once = max((width - max(map(len, tasks))) // _COLUMN, 1)
    tables = []
    for start in range(0, len(agents), at_once):
        shown = agents[start : start + at_once]
        heads = (folded(untrusted(agent), justify="right") for agent in shown)
        found = table(Column("task", no_wrap=True), *heads, title="optimality, mean over seeds")
        for task in tasks:
            found.add_row(untrusted(task), *(_summary(groups.get((task, agent), [])) for agent in shown))
        tables.append(found)
    return tables


def _summary(results: Sequence[Result]) -> str:
    """Return a cell of the table, as in "0.912", "0.912, 1 failed", "-", and "" where nothing was asked for."""
    scores = finals(results, "optimality")
    counts = Counter(result.status for result in results)
    parts = [f"{fmean(scores):.3f}" if scores else "-"] if counts["done"] else []
    return ", ".join(parts + [f"{counts[status]} {status}" for status in ("failed", "missing") if counts[status]])


def _report_trouble(results: Sequence[Result]) -> None:
    """Print a line each for cells of different sources, missing ones and failed ones.

    Raises: SystemExit with 1 if a cell failed or is missing.
    """
    sources = {result.versions.get("source", "unknown") for result in results if result.status == "done"}
    if len(sources) > 1:
        note(f"the cells were run from different sources of textgym: {', '.join(sorted(sources))}")
    missing = [result for result in results if result.status == "missing"]
    if missing:
        note(f"{len(missing)} of {len(results)} cells are still at work in another process: run this again later")
    failed = [result for result in results if result.status == "failed"]
    if failed:
        named = [f"{result.cell.key} ({(result.error or {})['type']})" for result in failed[:_NAMED]]
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        note(f"{len(failed)} of {len(results)} cells failed: {', '.join(named)}{more}; --retry-failed tries them again")
    if failed or missing:
        raise SystemExit(EXIT_FAILED)


class LiveTable(BenchWatcher):
    """Shows the run to people: a table that is kept up to date, or plain lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = output()
        self._progress = Progress((), 1)
        self._live: Live | None = None
        self._started = time.monotonic()

    def begin(self, progress: Progress) -> None:
        """See `BenchWatcher.begin`."""
        self._progress = progress
        self._started = time.monotonic()
        if not self._console.is_terminal:
            self._say(headline(progress))
            return
        self._live = Live(
            get_renderable=self._picture, console=self._console, refresh_per_second=2, vertical_overflow="crop"
        )
        self._live.start()

    def changed(self, key: str) -> None:
        """See `BenchWatcher.changed`."""
        progress = self._progress
        if self._live is not None or progress.status[key] in ("running", "waiting"):
            return
        score, error = progress.optimality.get(key), progress.errors.get(key)
        outcome = "" if score is None else f"  optimality {score:.3f}"
        outcome += "" if error is None else f"  {error}"
        self._say(f"{progress.status[key]}  {key}{outcome}  ({headline(progress)})")

    def note(self, text: str) -> None:
        """See `BenchWatcher.note`."""
        if self._live is None:
            note(text)
        else:
            self._console.print(untrusted(text))

    def end(self) -> None:
        """See `BenchWatcher.end`."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(untrusted(f"{time.monotonic() - self._started:6.1f} s  {text}"), soft_wrap=True)

    def _picture(self) -> Group:
        seconds = time.monotonic() - self._started
        status = Text(f"{headline(self._progress)}; {duration(seconds)} so far")
        legend = Text()
        for name, (symbol, style) in _SYMBOLS.items():
            legend.append(symbol, style).append(f" {'at work elsewhere' if name == 'busy' else name}  ")
        # Lines beyond the terminal's height are cropped: what matters most comes first.
        return Group(status, legend, grid(self._progress))


def grid(progress: Progress) -> Table:
    """Return a table with a row per task, a column per agent, and a mark per seed."""
    tasks = dict.fromkeys(cell.task for cell in progress.cells.values())
    agents = dict.fromkeys(cell.name for cell in progress.cells.values())
    symbols = {(task, agent): Text() for task in tasks for agent in agents}
    for key, cell in progress.cells.items():
        symbols[cell.task, cell.name].append(*_SYMBOLS[progress.status[key]])
    marks = table(Column("task", no_wrap=True), *(folded(untrusted(agent)) for agent in agents))
    for task in tasks:
        marks.add_row(untrusted(task), *(symbols[task, agent] for agent in agents))
    return marks


def headline(progress: Progress) -> str:
    """Return counts, and the time that is left."""
    counts = [f"{progress.count('done')} of {len(progress.cells)} done"]
    words: Mapping[Status, str] = {"running": "running", "failed": "failed", "busy": "at work elsewhere"}
    counts += [f"{number} {word}" for status, word in words.items() if (number := progress.count(status))]
    left = progress.time_left()
    if left is not None and progress.count("waiting") + progress.count("running"):
        counts.append(f"about {duration(left)} left")
    return ", ".join(counts)
