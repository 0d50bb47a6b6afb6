"""Send a run to dashboards by accelerate's trackers: TensorBoard in the run's folder, trackio, wandb."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from textgym.checks import JsonObject, not_one_of, shown
from textgym.files import plain

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

NAMES: Final = ("tensorboard", "trackio", "wandb")


def check_track(track: str) -> None:
    """Check the names of trackers, separated by commas; "" for none.

    TensorBoard is written where it is installed, so that it can be asked for by default.

    Raises: ValueError for an unknown name, or a tracker that is not installed.
    """
    if not isinstance(track, str):
        raise ValueError(f"track={shown(track)}: allowed is a text, as in 'tensorboard,wandb'")
    for name in _names(track):
        if name not in NAMES:
            raise ValueError(not_one_of("track", name, NAMES))
        if name != "tensorboard" and not (find_spec(name) and find_spec("accelerate")):
            raise ValueError(f'track={track!r}: {name} is not installed: pip install "textgym[track]"')


class Trackers:
    """The open trackers of a run, whose folder is written by this process.

    Each has its keys and servers from its own environment variables, such as `WANDB_API_KEY` and `WANDB_MODE=offline`;
    they are read by nothing here. The project is called "textgym", or what `WANDB_PROJECT` or `TRACKIO_PROJECT` says,
    the run as its folder, with a digest that a resumed run keeps.

    Args:
        folder: of the run, with its config.json. config: its settings, JSON values, without versions.
        purge: TensorBoard drops what was logged from this step on; None for a new run.
    """

    def __init__(self, folder: Path, config: JsonObject, purge: int | None) -> None:
        self._open: list[GeneralTracker] = []
        try:
            for name in _names(str(config.get("track", "tensorboard"))):
                self._start(name, folder, config, purge)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """Names of those that are open."""
        return [tracker.name for tracker in self._open]

    def log(self, row: Mapping[str, object], step: int, samples: Sequence[JsonObject] = ()) -> None:
        """Log the numbers of an iteration at its step, and completions as a table `samples`."""
        numbers = {name: value for name, value in plain(row).items() if isinstance(value, int | float)}
        for tracker in self._open:
            table = {"samples": _table(tracker.name, samples)} if samples else {}
            tracker.log({**numbers, **table}, step=step)

    def close(self) -> None:
        """Finish them all."""
        with redirect_stdout(sys.stderr):
            while self._open:
                self._open.pop().finish()

    def _start(self, name: str, folder: Path, config: JsonObject, purge: int | None) -> None:
        own = _arguments(name, folder, purge)
        try:
            from accelerate import PartialState
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            PartialState()  # which its trackers ask whether they are to write
            tracker = LOGGER_TYPE_TO_CLASS[name](**own)
            with redirect_stdout(sys.stderr):
                tracker.start()
        except ImportError:
            if name != "tensorboard":
                raise
            return
        self._open.append(tracker)
        if name != "tensorboard":  # which would make a run of its own of them
            settings = {key: value for key, value in config.items() if key not in ("versions", "task")}
            tracker.store_init_configuration(settings)


def _table(name: str, samples: Sequence[JsonObject]) -> object:
    """Return completions as what a tracker shows as a table."""
    columns = [*dict.fromkeys(name for row in samples for name in row if name not in ("iteration", "terms"))]
    cells = [[row.get(column) for column in columns] for row in samples]
    if name == "tensorboard":
        lines: list[list[object]] = [[*columns], ["---"] * len(columns), *cells]
        return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    table: object = importlib.import_module(name).Table(columns=columns, data=cells)
    return table


def _names(track: str) -> list[str]:
    return [*dict.fromkeys(name.strip() for name in track.split(",") if name.strip())]


def _arguments(name: str, folder: Path, purge: int | None) -> dict[str, object]:
    """Return the arguments of a tracker's constructor."""
    if name == "tensorboard":
        return {"run_name": name, "logging_dir": str(folder), "purge_step": purge}
    # config.json is written once, so a resumed run has the same digest, and another run of this name another one.
    written = (folder / "config.json").stat().st_mtime_ns
    digest = hashlib.sha256(f"{folder.name} {written}".encode()).hexdigest()[:8]
    project = os.environ.get(f"{name.upper()}_PROJECT", "textgym")
    same: dict[str, object] = {"run_name": project, "name": f"{folder.resolve().name}-{digest}", "resume": "allow"}
    if name == "trackio":
        return same | {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    from wandb import Settings

    quiet = Settings(console="off", silent=True, disable_code=True, disable_git=True)
    return same | {"id": digest, "dir": str(folder), "settings": quiet}


def _cell(value: object) -> str:
    """Return a value as a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", "<br>")
