"""Stages of a longer piece of work: each a folder, skipped when it is complete, taken up again when it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textgym.files import make_folder, read_json, write_json
from textgym.interrupts import TrainingInterrupted
from textgym_agents.runs import RunFolder
from textgym_agents.settings import versions
from textgym_agents.training import Watcher


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
