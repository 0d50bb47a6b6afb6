"""A supervised training in its run folder, and stages of longer work: start, follow, interrupt, resume."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils.import_utils import is_torch_bf16_gpu_available

from textgym.files import make_folder, plain, read_json, write_json
from textgym.interrupts import TrainingInterrupted, disk_full_at, first_interrupt
from textgym_agents.config import versions
from textgym_agents.protocol import Metrics
from textgym_agents.rlhf.models import own_generators, quiet_transformers
from textgym_agents.rlhf.settings import FitSettings
from textgym_agents.rlhf.trainer import Fit, Logs, remove_checkpoints, steps_done
from textgym_agents.training.folder import RunFolder
from textgym_agents.training.loop import Watcher


class Silent:
    """A `Watcher` that says nothing."""

    def stage(self, text: str) -> None:
        """See `Watcher.stage`."""

    def note(self, text: str) -> None:
        """See `Watcher.note`."""

    def iteration(self, row: Metrics) -> None:
        """See `Watcher.iteration`."""


class Session:
    """One run of `textgym sft` or `textgym reward-model`. Making it touches no file.

    Args:
        command: its name.
        settings: what to train.
        out: the run's folder. resume: whether to go on with the interrupted run there.
        watcher: is told what happens; None for nobody.
    Raises: ValueError if no run can start at `out`, there is none to go on with, or the device has no bfloat16 for
        settings that ask for it.
    """

    def __init__(
        self, command: str, settings: FitSettings, out: str | Path, watcher: Watcher | None, resume: bool
    ) -> None:
        self._command, self._settings, self._out = command, settings, Path(out)
        self.watcher: Watcher = watcher or Silent()
        self._folder: RunFolder | None = RunFolder.reopen(out) if resume else None
        if not resume:
            RunFolder.check_free(out)
        if settings.bf16 and settings.device != "cpu" and not is_torch_bf16_gpu_available():
            raise ValueError(
                f"bf16=True: device={settings.device!r} is no device with bfloat16 here; allowed are bf16=False "
                "and device='cpu'"
            )
        self.checkpoints = self._out / "checkpoints"
        self._started = time.monotonic()
        self._step = 0

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Within it, global generators and logs are left alone; Ctrl-C and a full disk say how to go on."""
        try:
            with disk_full_at(self._out, self._next_command()), own_generators(), quiet_transformers():
                yield
        except KeyboardInterrupt as interrupt:
            if self._folder is None:
                raise
            raise TrainingInterrupted(self._how_to_go_on()) from interrupt

    @contextlib.contextmanager
    def writing(self, read: Mapping[str, str], rewind_to: int) -> Iterator[RunFolder]:
        """Starts the run's folder or checks that an interrupted run is the same, and holds it.

        Args:
            read: what was read, path -> digest; it belongs to the run's identity.
            rewind_to: the last iteration whose metrics stay.
        Raises: ValueError if the interrupted run had other settings or other data.
        """
        config = plain(
            {"command": self._command} | asdict(self._settings) | {"read": read, "versions": versions()}
        )
        resumed = self._folder is not None
        if self._folder is None:
            with disk_full_at(self._out):
                self._folder = RunFolder.create(self._out, config)
        else:
            self._check_same(self._folder.config(), config)
        with self._folder.writing(rewind_to if resumed else None):
            self._started -= self._folder.seconds()
            yield self._folder

    def train(
        self,
        folder: RunFolder,
        fit: Fit,
        evaluate: Callable[[], Metrics],
        first: int,
        total: int,
    ) -> None:
        """All steps of one model; every step is a row of metrics.jsonl.

        Args:
            evaluate: measures the model on the held-out rows.
            first: the iteration of its step 0, the state before learning. total: of the run's last step.
        Raises: KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint written.
        """

        def log(step: int, logs: Logs, measure: bool) -> None:
            self._step = first + step
            row: Metrics = {"iteration": first + step, "iterations": total, "step": step}
            row |= {_NAMES[name]: value for name, value in logs.items() if name in _NAMES}
            if measure:
                row |= evaluate()
            row["seconds"] = time.monotonic() - self._started
            folder.log(row)
            self.watcher.iteration(row)

        every = self._settings.eval_every
        if steps_done(fit.folder) is None:
            self.watcher.stage("measuring before learning")
            log(0, {}, True)
        self.watcher.stage("learning")
        self._step = first + (steps_done(fit.folder) or 0)
        with first_interrupt(
            lambda: self.watcher.note("stopping after this step; Ctrl-C again stops at once")
        ) as interrupted:
            finished = fit.run(
                lambda step, logs: log(step, logs, step == fit.steps or bool(every and step % every == 0)),
                interrupted,
                folder.sync_logs,
            )
        if not finished:
            raise interrupted.error()

    def finish(self, folder: RunFolder, result: Mapping[str, Any]) -> dict[str, Any]:
        """Writes result.json and removes the checkpoints. Returns: what was written."""
        whole: dict[str, Any] = plain(dict(result) | {"seconds": folder.seconds(), "versions": versions()})
        folder.finish(whole)
        remove_checkpoints(self.checkpoints)
        return whole

    def _check_same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name, asked in now.items():
            had = before.get(name)
            if name == "versions" or asked == had:
                continue
            if name == "read":
                raise ValueError(f"{self._out}: the data have changed since the run was started")
            raise ValueError(f"{name}={asked!r}: the run in {self._out} was started with {had!r}")

    def _how_to_go_on(self) -> str:
        return f"after {self._step} steps; {self._next_command()}"

    def _next_command(self) -> str:
        words = ["textgym", self._command, *flags_of(self._settings), "--out", str(self._out), "--resume"]
        return f"go on with: {shlex.join(words)}"


_NAMES = {"loss": "loss", "grad_norm": "gradient_norm", "learning_rate": "lr"}


def flags_of(settings: FitSettings) -> list[str]:
    """The command-line words that differ from the defaults of the settings."""
    default = type(settings)(data=settings.data)
    words = ["--data", settings.data]
    for name, value in asdict(settings).items():
        if value == getattr(default, name):
            continue
        flag = name.replace("_", "-")
        words += (
            [f"--{flag}" if value else f"--no-{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return words


def digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(rows: object) -> str:
    """SHA-256 of anything that JSON can hold, hexadecimal."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: of its folder.
        title: for people.
        run: called with the folder, and whether a run in it was interrupted. It writes `result.json` last.
    """

    name: str
    title: str
    run: Callable[[Path, bool], object]


def check_folder(out: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless work with these settings can begin in `out`, or was begun there."""
    if not (out / "config.json").exists():
        RunFolder.check_free(out)
        return
    before = read_json(out / "config.json")
    for name, asked in settings.items():
        if before.get(name) != asked:
            raise ValueError(f"{name}={asked!r}: the work in {out} was started with {before.get(name)!r}")


def begin(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes config.json, unless the work was begun already."""
    make_folder(out)
    if not (out / "config.json").exists():
        write_json(out / "config.json", {**settings, "versions": versions()})


def run_stages(out: Path, stages: Iterable[Stage], watcher: Watcher) -> None:
    """Runs in order whatever is not complete yet; a stage may read the folders of those before it.

    Raises: TrainingInterrupted after Ctrl-C or SIGTERM.
    """
    for stage in stages:
        folder = out / stage.name
        state = RunFolder(folder).state()
        if state == "finished":
            watcher.note(f"{stage.title}: complete in {folder}")
            continue
        watcher.note(f"{stage.title}: {'going on' if state == 'interrupted' else 'writing'} in {folder}")
        try:
            stage.run(folder, state == "interrupted")
        except KeyboardInterrupt as interrupt:
            raise TrainingInterrupted(
                f"in the stage {stage.title}; the same command with --out {out} goes on"
            ) from interrupt
