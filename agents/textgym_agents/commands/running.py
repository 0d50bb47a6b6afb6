"""Shared parts of the training commands: live lines, run folders and summaries."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE
from types import TracebackType
from typing import Final, Self

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from textgym.commands.console import UsageError, note, number, output, table, untrusted, use_all_cores
from textgym.commands.flags import with_config
from textgym.evaluate import MEASURES, EvaluationResult
from textgym.files import plain
from textgym.optimum import Optimum
from textgym_agents.config import OnPolicyConfig
from textgym_agents.progress import figure, metrics_line
from textgym_agents.protocol import Metrics
from textgym_agents.training.folder import RunFolder, run_folder

_LOG = logging.getLogger(__name__)
_CARDS: Final = (24, 80)  # GB of the memory of common accelerators
Row = Mapping[str, float | None]
"""Flat measures under `eval/...`, or the metrics of an iteration."""


def measures_table(
    columns: Mapping[str, Row],
    names: list[str] | None = None,
    labels: Mapping[str, str] = MEASURES,
    title: str = "measure",
) -> Table:
    """Return a row per measure and a column per policy, with 95% intervals; what failed, in completions.

    Args:
        columns: heading -> flat measures under `eval/...`.
        names: of the measures; None shows all that are there, and the reward's terms.
        labels: name -> label of every measure. title: stands above them.
    """
    found = table(title, *map(number, columns))
    wanted = names or [name for name in labels if any(row.get(f"eval/{name}") is not None for row in columns.values())]
    for name in wanted:
        found.add_row(labels[name], *(cell(row, name) for row in columns.values()))
    groups = () if names else (("terms", "term", "-"), ("failures", "failures:", "0"))
    for group, title, absent in groups:
        prefix = f"eval/{group}/"
        for key in dict.fromkeys(key for row in columns.values() for key in row if key.startswith(prefix)):
            name = key.removeprefix("eval/")
            cells = [cell(row, name) if key in row else absent for row in columns.values()]
            found.add_row(untrusted(f"  {title} {key.removeprefix(prefix)}"), *cells)
    return found


def how_measured(evaluation: EvaluationResult, optimum: Optimum) -> str:
    """Return which measures of an evaluation are exact and which were sampled, and why a KL is infinite."""
    if evaluation.exact:
        turns = optimum.solution is not None and optimum.solution.tree.task.turns is not None
        stops = "the share that ended by itself"
        text = f"Exact, over all answers: reward, KL, J, entropy, length{'' if turns else f' and {stops}'}. "
        text += f"Sampled: {f'{stops}, ' if turns else ''}terms, distinct words, and gold where it is not the reward."
    else:
        text = "Sampled. Rewards, KL, J, optimality, entropy and length have 95% intervals, except with one completion "
        text += "per prompt and where all completions of a prompt agree. The other numbers have none."
        text += " J* is exact." if optimum.exact else ""
    if evaluation.kl is not None and math.isinf(evaluation.kl.mean):
        text += " KL is infinite: the policy writes tokens that have probability 0 under the reference."
    return text


def cell(row: Row, name: str) -> str:
    """Return a measure as text: "0.912 [0.901, 0.922]", without the bracket where it has no interval, or "-"."""
    value, low, high = (row.get(f"eval/{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    interval = "" if low is None or high is None else f" [{low:z.3f}, {high:z.3f}]"
    return f"{value:z.3f}{interval}"


class Display:
    """A `Watcher` that prints progress: a bar over the budget, or plain lines without a terminal."""

    def __init__(self, total: int = 1, unit: str = "steps") -> None:
        self._console = output()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=total)
        self._live: Live | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""
        _LOG.info(text)
        self._progress.update(self._task, description=text)
        if self._live is None:
            self._say(text)

    def note(self, text: str) -> None:
        """See `Watcher.note`."""
        if self._live is None:
            note(text)
        else:
            self._live.console.print(untrusted(text))

    def _picture(self) -> Group:
        return Group(self._progress)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)


_TABLE = {
    "objective/scores": "reward of the batch",
    "objective/kl": "KL to the reference, nats",
    "objective/rlhf_reward": "reward - beta KL",
    "objective/entropy": "entropy, nats per answer",
    "completion_length": "tokens per answer",
    "val/num_eos_tokens": "answers that ended by themselves",
    "policy/approxkl_avg": "KL of the update, nats per token",
    "policy/clipfrac_avg": "share of clipped ratios",
    "loss/value_avg": "value loss",
    "lr": "learning rate",
    "eval/reward": "reward, held-out prompts",
    "eval/kl": "KL, held-out prompts",
    "eval/optimality": "optimality, held-out prompts",
}


class TrainDisplay(Display):
    """Shows a training's metrics as a table above the progress bar, in episodes. Args: episodes: the budget."""

    def __init__(self, episodes: int) -> None:
        super().__init__(episodes, "episodes")
        self._episodes = episodes
        self._row: Metrics = {}

    def iteration(self, row: Metrics) -> None:
        """See `Watcher.iteration`."""
        self._row |= {name: value for name, value in row.items() if value is not None}
        self._progress.update(self._task, completed=min(row["episode"], self._episodes))
        if self._live is None:
            self._say(f"episode {row['episode']:.0f}  {metrics_line(row)}")

    def _picture(self) -> Group:
        grid = Table.grid(padding=(0, 3))
        grid.add_column()
        grid.add_column(justify="right")
        for name, label in _TABLE.items():
            if name in self._row:
                grid.add_row(label, figure(name, self._row[name]))
        return Group(grid, self._progress)


_LINES = 20  # that a whole supervised training prints where there is no terminal
_EVERY = 10  # iterations of reinforcement learning between two lines
_FIT = {"loss": "loss", "eval/loss": "held-out loss", "eval/accuracy": "held-out accuracy"}
_STAGE = {
    "objective/scores": "reward",
    "objective/kl": "kl",
    "eval/reward": "held-out reward",
    "eval/gold": "held-out gold",
}


class FitDisplay(Display):
    """Shows a supervised training, or a pipeline of trainings, in one line.

    Args:
        episodes: the budget of the reinforcement-learning stages.
    """

    def __init__(self, episodes: int = 0) -> None:
        super().__init__()
        self._episodes = episodes

    def iteration(self, row: Metrics) -> None:
        """See `Watcher.iteration`."""
        if "episode" in row:
            done, total, every, name, labels = row["episode"], self._episodes, _EVERY, "episode", _STAGE
            done, measured = min(done, total), "eval/reward" in row
        else:
            done, total, name, labels = row["iteration"], int(row["iterations"]), "step", _FIT
            every, measured = max(1, total // _LINES), any(key.startswith("eval/") for key in row)
        cells = metrics_line(row, labels)
        self._progress.update(self._task, completed=done, total=total, description=cells)
        if self._live is None and (measured or row["iteration"] % every == 0 or done == total):
            self._say(f"{name} {done:.0f}/{total}  {cells}")


def interrupted_run(out: Path | None) -> RunFolder:
    """Return the run that --resume continues. Raises: UsageError without --out; see `RunFolder.reopen`."""
    if out is None:
        raise UsageError("--resume: --out must name the folder of the interrupted run")
    return RunFolder.reopen(out)


def refuse_change(folder: RunFolder, name: str, asked: object, had: object) -> None:
    """Raise UsageError if a resumed run is asked for another setting than it was started with.

    Args: asked, had: values of the setting.
    """
    if plain(asked) != plain(had):
        flag = "ID" if name == "id" else f"--{name.replace('_', '-')}"
        raise UsageError(f"{flag} {asked!r}: the run in {folder.path} was started with {had!r}")


@contextlib.contextmanager
def watched_run(out: Path | None, name: str, display: Display) -> Iterator[Path]:
    """Yield the folder of a run, while its progress is shown and torch uses all cores. Args: see `run_folder`."""
    use_all_cores()
    with run_folder(out, name) as folder, display:
        yield folder


@contextlib.contextmanager
def live_report(folder: Path, display: Display) -> Iterator[None]:
    """Serve the live report of a run within the block, by a process of its own, which ends when we do, however we do.

    Ctrl-C is left to the training.
    """
    command = [sys.executable, "-P", "-m", "textgym", "report", str(folder), "--live", "--until-eof"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline()
        display.note(address.rstrip() or "no live report of this run; the run continues without it")
        yield


def show_estimate(
    model: str, config: OnPolicyConfig, prompt_tokens: int, new_tokens: int, masked: bool, as_json: bool = False
) -> None:
    """Print what a run needs in memory."""
    from textgym_agents.lm.memory import GIB, LIBRARIES, estimate, plan_of
    from textgym_agents.lm.shapes import model_config

    plan = plan_of(config, prompt_tokens, new_tokens, masked)
    found = estimate(model_config(model, plan.lora_rank), plan)
    if as_json:
        print(json.dumps(asdict(found) | {"peak": found.peak, "libraries": LIBRARIES}, indent=2))
        return
    rows = table("part", number("GiB"))
    for name, size in found.parts.items():
        rows.add_row(name, f"{size / GIB:.2f}")
    rows.add_section()
    for name, size in found.phases.items():
        rows.add_row(f"peak of {name}", f"{size / GIB:.2f}")
    console = output()
    console.print(untrusted(f"{model}: {found.parameters:,} parameters"))
    console.print(rows)
    for place, size in found.elsewhere.items():
        console.print(untrusted(f"on {place}, not included below: weights of the reference, {size / GIB:.2f} GiB"))
    whole = found.peak + LIBRARIES
    console.print(f"total, with {LIBRARIES / GIB:.1f} GiB of libraries: {whole / GIB:.2f} GiB ({whole / 1e9:.1f} GB)")
    for card in _CARDS:
        room = card * 10**9 - whole
        console.print(f"{card} GB: " + ("fits" if room >= 0 else f"{-room / 1e9:.1f} GB too small"))


def named_agent(arguments: list[str]) -> str:
    """Return the value of `--agent` among command-line words: the other flags depend on it."""
    return flag_value(arguments, "--agent") or "lm-ppo"


def flag_value(arguments: list[str], flag: str) -> str | None:
    """Return the last value of a flag among command-line words, or of its key in the file of `--config`."""
    found = None
    words = with_config(arguments)
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found
