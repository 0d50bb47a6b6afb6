"""Run a suite of cells (task, reward, agent, budget, seed) on all cores or a cluster; resume after an interruption."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from textgym.checks import JsonObject
from textgym.commands.console import UsageError, duration, folded, note, number, one_line, output, table, untrusted
from textgym.commands.flags import env_options, parse
from textgym.prompts import HeldOut
from textgym.registry import SUITES
from textgym_benchmarks.engines import Job, make_engine
from textgym_benchmarks.results.store import Result
from textgym_benchmarks.run.runner import BenchWatcher, Progress, Status, busy_share, run_suite
from textgym_benchmarks.selection import Product, make_suite, select, suite_file
from textgym_benchmarks.suite import Cell, Suite, from_fields
from textgym_benchmarks.suite_folder import PROBE, cell_folder, cell_result
from textgym_benchmarks.suites import cost
from textgym_benchmarks.summaries.grid import finals, make_grid

EXIT_FAILED = 1
_COLUMN = 12  # characters of a column of the last table, about
_NAMED, _LONGEST = 5, 300  # errors of failed cells that the last line names, and characters of one

_SYMBOLS = {
    "done": ("+", "green"),
    "failed": ("x", "bold red"),
    "running": (">", "cyan"),
    "busy": ("o", "yellow"),
    "waiting": (".", "dim"),
}


@dataclass(frozen=True)
class BenchFlags:
    """Run the cells of a suite that have no result yet. The same command resumes an interrupted run; with more agents,
    rewards, tasks or seeds it adds their cells.

    Example: textgym bench --suite quick --agents rloo my_module:MyAgent
    """

    suite: str | None = None
    """Suite to run, by default quick: a name (--list shows all), a file of your own, *.toml (docs/suites.md), or
    module:function, which returns a suite."""
    tasks: tuple[str, ...] | None = None
    """Instead of a suite, run these tasks with all --rewards and all --agents: names, IDs, or module:ID."""
    rewards: tuple[str, ...] | None = None
    """With --tasks: "default" is each task's own reward; otherwise a registered name, module:function, or JSON as in
    '{"name": "length", ...}'. NAME=REWARD sets the name in tables."""
    agents: tuple[str, ...] | None = None
    """With --tasks: all agents to run. Otherwise the agents of the suite to run, by default all; module:Class adds your
    own, with the suite's tasks and budgets."""
    episodes: int | None = None
    """Training episodes of each cell; by default the suite's, with --tasks 4,096."""
    seeds: int | None = None
    """Number of runs per row, with seeds from 0; by default the suite's, with --tasks 3."""
    set: tuple[str, ...] = ()
    """Settings of agents, as in rloo.learning_rate=1e-3."""
    engine: Literal["serial", "pool", "ray"] = "pool"
    """Where to run cells: serial (this process), pool (processes of this machine), or ray."""
    workers: int | None = None
    """Number of processes; by default one per core."""
    address: str | None = None
    """Address of a Ray cluster, as in ray://host:10001; by default Ray is started on this machine."""
    split: HeldOut | None = None
    """Held-out prompts to evaluate on: eval (to report) or tune (to choose settings, with other seeds); by default the
    suite's, else eval."""
    out: Path | None = None
    """Folder of the results, by default runs/bench-SUITE (with -tune for that split). Existing results are never
    overwritten."""
    retry_failed: bool = False
    """Also rerun cells that failed."""
    keep_checkpoints: bool = False
    """Keep the last checkpoint of each cell that this command runs, for eval and inspect."""
    dry_run: bool = False
    """Run nothing; time a short piece of every kind of cell and estimate the total time and memory."""
    list: bool = False
    """List the suites and run nothing."""


def main(arguments: Sequence[str]) -> None:
    """Run the command. Raises: SystemExit with 1 if a cell failed."""
    flags = parse(BenchFlags, [*arguments], "bench")
    if flags.list:
        output().print(suites_table())
        return
    suite, left_out = chosen_suite(flags)
    split = flags.split or suite.evaluation.split
    of_product = flags.tasks is not None or (flags.suite or "").endswith(".toml")
    stem = suite.name if of_product else (flags.suite or "quick").rpartition(":")[2]
    out = flags.out or Path("runs") / f"bench-{stem}{'-tune' * (split == 'tune')}"
    if flags.dry_run:
        dry_run(replace(suite, evaluation=replace(suite.evaluation, split=split)), out, flags)
        return
    logging.getLogger(__name__).info("cells are running")
    results = run_suite(
        suite,
        out,
        engine=flags.engine,
        workers=flags.workers,
        split=split,
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
        console.print(f"share of busy cores in the last run: {busy:.2f}", markup=False)
    console.print(untrusted(f"results: {out}; textgym report {out} shows more"), soft_wrap=True)
    _report_trouble(results)
    if left_out:
        raise SystemExit(EXIT_FAILED)


def dry_run(suite: Suite, out: Path, flags: BenchFlags) -> None:
    """Print the cells of a suite by kind, and what those to run will take, judged by a probe of each kind."""
    console, engine = output(), make_engine(flags.engine, flags.workers, flags.address)
    kinds: dict[str, list[Cell]] = {}
    for cell in suite.cells:
        result = cell_result(cell_folder(out, cell))
        if result is None or (flags.retry_failed and result["status"] == "failed"):
            kinds.setdefault(replace(cell, seed=0).key, []).append(cell)
    left = f"{sum(map(len, kinds.values()))} {'to run' if flags.retry_failed else 'without a result'}"
    console.print(f"{len(suite.cells)} cells, {left}; a short piece of each kind is timed", markup=False)
    evaluation = asdict(suite.evaluation)
    jobs = [Job(key, PROBE, {"cell": cells[0].to_json(), "evaluation": evaluation}) for key, cells in kinds.items()]
    rows = table(
        Column("task", no_wrap=True),
        folded("agent"),
        *map(number, ("episodes", "cells", "CPU s each", "J*, s", "GiB")),
    )
    seconds, peaks, optima = [], [], {}
    begun = 0
    for event in engine.run(jobs):
        cells = kinds[event.key]
        what = f"{cells[0].task}, {cells[0].name}"
        if event.kind == "started":
            begun += 1
            console.print(untrusted(f"{begun} of {len(jobs)}: {what}"))
        if event.kind != "finished":
            continue
        shown = ["fails", "-", "-"]
        if event.failure is None:
            found: JsonObject = event.value  # type: ignore[assignment]
            seconds += [found["learning"] + found["measuring"]] * len(cells)
            peaks += [found["peak"] / 2**30] * len(cells)
            optima[cells[0].task] = found["optimum"]
            shown = [f"{seconds[-1]:,.1f}", f"{found['optimum']:,.1f}", f"{peaks[-1]:.2f}"]
        else:
            note(one_line(f"{what}: {event.failure.type}: {event.failure.message}")[:_LONGEST])
        names = map(untrusted, (cells[0].task, cells[0].name))
        rows.add_row(*names, f"{cells[0].episodes:,}", str(len(cells)), *shown)
    console.print(rows)
    if seconds:
        whole = sum(seconds) + sum(optima.values())
        wall = max(whole / engine.workers, *seconds)
        at_once = sum(sorted(peaks)[-engine.workers :])
        console.print(
            "An estimate, assuming constant speed on cores that nothing else uses: "
            f"{duration(whole)} of CPU time, {duration(wall)} on {min(engine.workers, len(seconds))} cores; "
            f"{at_once:.1f} GiB at once. Nothing was written.",
            soft_wrap=True,
        )


def chosen_suite(flags: BenchFlags) -> tuple[Suite, bool]:
    """Return the suite that flags ask for, and whether something was left out that does not exist.

    Raises: UsageError for flags that do not go together; whatever making the suite raises.
    """
    name = flags.suite or "quick"
    asked: JsonObject = {"tasks": flags.tasks, "rewards": flags.rewards, "agents": flags.agents}
    asked |= {"episodes": flags.episodes, "seeds": flags.seeds, "settings": _settings(flags.set)}
    given: JsonObject = {key: value for key, value in asked.items() if value is not None}
    from_file = suite_file(name) if name.endswith(".toml") else {}
    if from_file or flags.tasks is not None:
        if flags.tasks is not None and flags.suite is not None and not from_file:
            raise UsageError(f"--tasks: goes with no --suite but a file's; leave out --suite {name} or --tasks")
        own = from_file.get("settings")
        if flags.set and isinstance(own, dict) and all(isinstance(each, dict) for each in own.values()):
            new = given["settings"]
            given["settings"] = {agent: {**own.get(agent, {}), **new.get(agent, {})} for agent in own | new}
        wanted = from_fields(Product, from_file | given)
        output().print(f"tasks: {len(wanted.tasks)}, rewards: {len(wanted.rewards)}; looking at which go together")
        suite, left_out = wanted.suite()
        for reason, those in left_out.items():
            note(f"left out: {'; '.join(those)}: {reason}")
        return suite, bool(left_out)
    if flags.rewards is not None:
        raise UsageError("--rewards: goes with --tasks, as in --tasks Helpful --rewards rules model")
    output().print(untrusted(f"suite {name}"))
    return select(make_suite(name), flags.agents, flags.seeds, flags.episodes, given.get("settings")), False


def _settings(words: Sequence[str]) -> dict[str, JsonObject] | None:
    """Return agent -> settings. Raises: UsageError for a word of another form."""
    found: dict[str, JsonObject] = {}
    for word in words:
        place, equals, value = word.partition("=")
        agent, dot, name = place.rpartition(".")
        if not (equals and dot and agent):
            raise UsageError(f"--set {word!r}: allowed is AGENT.SETTING=VALUE, as in rloo.learning_rate=1e-3")
        found.setdefault(agent, {}).update(env_options([f"{name}={value}"], "--set", taken=()))
    return found or None


def suites_table() -> Table:
    """Return the suites with their sizes and what they cost."""
    sizes = map(number, ("cells", "tasks", "agents", "seeds"))
    found = table("suite", *sizes, "CPU time, about", folded("what it is"))
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
    grid = make_grid(results)
    tasks, agents = [problem.label for problem in grid.problems], grid.agents
    at_once = max((width - max(map(len, tasks))) // _COLUMN, 1)
    tables = []
    for start in range(0, len(agents), at_once):
        shown = agents[start : start + at_once]
        heads = (folded(untrusted(agent), justify="right") for agent in shown)
        found = table(Column("task", no_wrap=True), *heads, title="optimality, mean over seeds")
        for problem in grid.problems:
            found.add_row(untrusted(problem.label), *(_summary(grid.of(agent, problem.index)) for agent in shown))
        tables.append(found)
    return tables


def _summary(results: Sequence[Result]) -> str:
    """Return a cell of the table, as in "0.912", "0.912, 1 unknown, 1 failed", "-", and "" where none was asked for."""
    scores = finals(results, "optimality")
    counts = Counter(result.status for result in results)
    parts = [f"{fmean(scores):.3f}" if scores else "-"] if counts["done"] else []
    parts += [f"{counts['done'] - len(scores)} unknown"] * (0 < len(scores) < counts["done"])
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
        note(f"{len(missing)} of {len(results)} cells are still running in another process: run this again later")
    failed = [result for result in results if result.status == "failed"]
    if failed:
        alike: dict[str, list[str]] = {}
        for result in failed:
            error = result.error or {}
            alike.setdefault(one_line(f"{error['type']}: {error['message']}")[:_LONGEST], []).append(result.cell.key)
        named = [f"{keys[0]}{f' and {len(keys) - 1} more' * (len(keys) > 1)} ({why})" for why, keys in alike.items()]
        more = f" and {len(named) - _NAMED} other errors" if len(named) > _NAMED else ""
        told = "; ".join(named[:_NAMED])
        note(f"{len(failed)} of {len(results)} cells failed: {told}{more}; --retry-failed reruns them")
    if failed or missing:
        raise SystemExit(EXIT_FAILED)


class LiveTable(BenchWatcher):
    """Shows the progress of a run: a live table, or plain lines without a terminal."""

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
