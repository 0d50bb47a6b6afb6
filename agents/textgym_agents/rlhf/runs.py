"""Run folders of RLHF: a supervised training in its folder, and longer work in stages, each in a folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from transformers.utils.import_utils import is_torch_bf16_gpu_available

from textgym.checks import JsonObject
from textgym.files import make_folder, plain, read_json, write_json
from textgym.interrupts import TrainingInterrupted, disk_full_at, first_interrupt, heeded
from textgym.rows import numbered_rows, row_source
from textgym.sources import versions
from textgym.task import Task
from textgym_agents.lm.devices import join
from textgym_agents.lm.trainer import SupervisedTrainer, steps_done
from textgym_agents.protocol import Metrics
from textgym_agents.registry import make_env
from textgym_agents.rlhf.settings import FitSettings, OveroptimiseSettings, RLHFSettings
from textgym_agents.saving import FORMAT
from textgym_agents.training.folder import RunFolder, Unwritten
from textgym_agents.training.loop import SilentWatcher, Watcher
from textgym_agents.training.ranks import refuse_ranks

Settings = TypeVar("Settings", RLHFSettings, OveroptimiseSettings)


class SupervisedRun:
    """One run of `textgym sft` or `textgym reward-model`. Making it touches no file.

    Args:
        watcher: follows the run; None for nobody.
        resume: whether to go on with the interrupted run at `out`.
    Raises: ValueError if no run can start at `out`, there is none to go on with, or the device has no bfloat16 for
        settings that ask for it.
    """

    def __init__(
        self, command: str, settings: FitSettings, out: str | Path, watcher: Watcher | None, resume: bool
    ) -> None:
        self._command, self._settings, self._out = command, settings, Path(out)
        self.watcher: Watcher = watcher or SilentWatcher()
        self._folder: RunFolder | None = RunFolder.reopen(out) if resume else None
        if not resume:
            RunFolder.check_free(out)
        if settings.bf16 and settings.device != "cpu" and not is_torch_bf16_gpu_available():
            raise ValueError(
                f"bf16=True: device={settings.device!r} is no device with bfloat16 here; allowed are bf16=False "
                "and device='cpu'"
            )
        self.devices = join()  # once every process has looked at the folder, which the first one makes
        self.checkpoints = self._out / "checkpoints"
        self._started = time.monotonic()
        self._step = 0

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Give Ctrl-C and a full disk in the block a message that says how to go on."""
        words = ["textgym", self._command, *flags_of(self._settings), "--out", str(self._out), "--resume"]
        go_on = f"go on with: {shlex.join(words)}"
        try:
            with disk_full_at(self._out, go_on):
                yield
        except KeyboardInterrupt as interrupt:
            if self._folder is None:
                raise
            raise TrainingInterrupted(f"after {self._step} steps; {go_on}") from interrupt

    @contextlib.contextmanager
    def writing(self, read: Iterable[str], last: int | None) -> Iterator[RunFolder]:
        """Start the run's folder, or check that the interrupted run is the same, and hold it in the block.

        Args:
            read: the files that were read; their content belongs to the run's identity.
            last: the last iteration whose metrics stay; None drops them all.
        Raises: ValueError if the interrupted run had other settings or other data.
        """
        if not self.devices.leads:
            yield Unwritten(self._out)
            return
        digests = {file: digest(file) for file in read}
        config = plain({"command": self._command} | asdict(self._settings) | {"read": digests})
        resumed = self._folder is not None
        if self._folder is None:
            with disk_full_at(self._out):
                self._folder = RunFolder.create(self._out, config | {"versions": versions()})
        else:
            check_same(self._out, config)
        with self._folder.writing((-1 if last is None else last) if resumed else None):
            self._started -= self._folder.seconds()
            yield self._folder

    def train(
        self,
        folder: RunFolder,
        fit: SupervisedTrainer[Any],
        evaluate: Callable[[], Metrics],
        first: int,
        total: int,
    ) -> None:
        """Take all steps of one model; every step is a row of metrics.jsonl.

        Args:
            evaluate: measures the model on the held-out rows.
            first: the iteration of its step 0, the state before learning.
            total: the iteration of the run's last step.
        Raises: KeyboardInterrupt after Ctrl-C or SIGTERM, with a checkpoint written.
        """
        every = self._settings.eval_every

        def log(step: int, metrics: Metrics) -> None:
            self._step = first + step
            row: Metrics = {"iteration": first + step, "iterations": total, "step": step} | metrics
            if step in (0, fit.steps) or (every and step % every == 0):
                row |= evaluate()
            row["seconds"] = time.monotonic() - self._started
            folder.log(row)
            self.watcher.iteration(row)

        done = steps_done(fit.folder)
        if done is None:
            self.watcher.stage("evaluating before learning")
            log(0, {})
        self.watcher.stage("learning")
        self._step = first + (done or 0)
        with first_interrupt(
            lambda: self.watcher.note("stopping after this step; press Ctrl-C again to stop at once")
        ) as interrupted:
            if not fit.run(log, interrupted, folder.sync_logs) or (interrupted() and first + fit.steps < total):
                raise interrupted.error()

    def finish(self, folder: RunFolder, result: Mapping[str, object]) -> JsonObject:
        """Write result.json and remove the checkpoints. Returns: what was written."""
        whole: JsonObject = plain(dict(result) | {"seconds": folder.seconds(), "versions": versions()})
        folder.finish(whole)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return whole


def flags_of(settings: FitSettings) -> list[str]:
    """Return the command-line words for what differs from the defaults of the settings."""
    default = type(settings)(data=settings.data)
    words = ["--data", settings.data]
    for name, value in asdict(settings).items():
        flag = name.replace("_", "-")
        if value == getattr(default, name):
            continue
        if isinstance(value, bool) and isinstance(getattr(default, name), bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def digest(source: str | Path) -> str:
    """Return the SHA-256, hexadecimal, of a file that a source of `textgym.rows` names, or else of its rows."""
    place = Path(row_source(source).place)
    if place.is_dir() or not place.exists():
        return hashlib.sha256("\n".join(repr(read()) for _, read in numbered_rows(source)).encode()).hexdigest()
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same(out: Path, config: Mapping[str, object]) -> None:
    """Raise ValueError unless the run in a folder is of this format, and was started with these settings and data.

    What says nothing of the run may differ: where it computes, and how many demonstrations beside a file of them.
    """
    before = RunFolder(out).config()
    of_a_file = not str(config.get("data", "world:")).startswith("world:")
    free = {"device"} | ({"demonstrations"} if of_a_file else set())
    free |= {"demonstration_count"} if config.get("demonstrations") else set()
    for name, asked in config.items():
        had = before.get(name)
        if asked == had or name in free:
            continue
        if name == "read":
            raise ValueError(f"{out}: the data have changed since the run was started")
        raise ValueError(f"{name}={asked!r}: the run in {out} was started with {had!r}")


@dataclass(frozen=True)
class Stage:
    """One stage of longer work.

    Args:
        name: of its folder.
        title: for people.
        run: called with the folder, and whether a run in it was interrupted. It writes `result.json` last.
    """

    name: str
    title: str
    run: Callable[[Path, bool], object]


def run_stages(out: Path, stages: Iterable[Stage], watcher: Watcher) -> None:
    """Run in order whatever is not complete yet; a stage may read the folders of those before it.

    Raises: TrainingInterrupted after Ctrl-C or SIGTERM.
    """
    for stage in stages:
        folder = out / stage.name
        state = RunFolder(folder).state()
        if state == "finished":
            watcher.note(f"{stage.title}: complete in {folder}")
            continue
        watcher.note(f"{stage.title}: {'resuming' if state == 'interrupted' else 'writing'} in {folder}")
        try:
            with heeded():
                stage.run(folder, state == "interrupted")
        except KeyboardInterrupt as interrupt:
            raise TrainingInterrupted(
                f"in the stage {stage.title}; the same command with --out {out} goes on"
            ) from interrupt


class StagedRun(ABC, Generic[Settings]):
    """Work in stages in one folder. Making it checks what can be checked and touches no file.

    Args:
        out: a new folder, or one in which the same work was begun.
        env: options of the environment, JSON values.
    Raises: ValueError if `out` holds something else, or the environment's task does not serve.
    """

    command: ClassVar[str]

    def __init__(
        self, env_id: str, settings: Settings, out: str | Path, watcher: Watcher, env: Mapping[str, Any] | None = None
    ) -> None:
        refuse_ranks(f"textgym {self.command}")
        self.env_id, self.watcher = env_id, watcher
        self.settings: Settings = settings
        self.out, self.env_options = Path(out).resolve(), dict(env or {})
        about = {"command": self.command, "format": FORMAT, "id": env_id, "env": self.env_options}
        self._config: JsonObject = plain(about | asdict(settings))
        if (self.out / "config.json").exists():
            check_same(Path(out), self._config)
        else:
            RunFolder.check_free(out)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make the task and check it. Raises: ValueError if it does not serve; FileNotFoundError."""

    def run(self) -> JsonObject:
        """Run whatever is not complete, and return result.json. Raises: TrainingInterrupted after Ctrl-C."""
        make_folder(self.out)
        if not (self.out / "config.json").exists():
            write_json(self.out / "config.json", self._config | {"versions": versions()})
        run_stages(self.out, self.stages(), self.watcher)
        result = self.out / "result.json"
        if not result.exists():
            write_json(result, self.result())
        return read_json(result)

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Return the stages in order."""

    @abstractmethod
    def result(self) -> JsonObject:
        """Return the content of result.json, once all stages are complete."""

    def make_task(self, **options: object) -> Task:
        """Return the environment's task; `options` come before those that were given."""
        task: Task = make_env(self.env_id, 1, **{**self.env_options, **options}).unwrapped.task
        return task
