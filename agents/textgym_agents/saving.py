"""The one format of saved agents: agent.json, tensors.safetensors, and folders of models beside them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from textgym.checks import JsonObject, TextGymWarning, check_count, is_finite
from textgym.files import check_files, read_json, reading, recover_folder, replace_folder, write_json
from textgym.optimum import fingerprint
from textgym.rewards.base import reward_name
from textgym.task import Task
from textgym_agents.config import MOST

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

FORMAT = 2
"""Of saved agents, and of the folders of runs and suites: their config.json and suite.json hold it."""
HEAD, TENSORS = "agent.json", "tensors.safetensors"
Built = TypeVar("Built")
Arrays = Mapping[str, NDArray[Any]]
LoadedArrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Saved:
    """The content of a saved agent's folder.

    Attributes:
        folder: its path, for the folders of models in it.
        config: the fields of the agent's config.
        state: the agent's other JSON values.
        same_task: whether the task's `fingerprint` is that of the one that it was saved with.
    """

    folder: Path
    config: JsonObject
    state: JsonObject
    same_task: bool

    def arrays(self) -> LoadedArrays:
        """Return the tensors as numpy arrays; {} where none were saved."""
        from safetensors.numpy import load_file

        return load_file(self.folder / TENSORS) if (self.folder / TENSORS).exists() else {}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as torch's, on the CPU; {} where none were saved."""
        from safetensors.torch import load_file

        return load_file(self.folder / TENSORS) if (self.folder / TENSORS).exists() else {}


def write_saved(
    path: str | Path,
    name: str,
    config: DataclassInstance,
    task: Task | None = None,
    *,
    state: Mapping[str, object] | None = None,
    tensors: Arrays | Mapping[str, Tensor] | None = None,
    folders: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write an agent to a folder; what was there is replaced at once, and the new one is on the disk on return.

    Args:
        path: the folder.
        name: of the agent.
        config: its settings.
        task: that it belongs to; the state of the task's reward is saved too.
        state: JSON values that it resumes from.
        tensors: by name, all of numpy or all of torch.
        folders: name -> writes a folder inside this one.
    """

    def write(folder: Path) -> None:
        for part, write_part in (folders or {}).items():
            write_part(folder / part)
        if tensors:
            _save_tensors(tensors, folder / TENSORS)
        head = {"format": FORMAT, "agent": name, "config": asdict(config), "state": dict(state or {})}
        if task is not None:
            head |= {"task": fingerprint(task, "train"), "scorer": task.scorer.state_dict()}
        write_json(folder / HEAD, head)

    replace_folder(Path(path), write)


def read_saved(
    path: str | Path,
    name: str,
    build: Callable[[Saved], Built],
    task: Task | None = None,
    elsewhere: str | None = "this agent was trained on task {had}, it is used on task {now}",
) -> Built:
    """Read an agent that `write_saved` wrote.

    Args:
        path: the folder.
        name: of the agent.
        build: makes it of what the folder holds; whatever it raises becomes one line.
        task: that it is used on; the state of its reward is restored where it is the one that the agent was saved with.
        elsewhere: warning for an agent of another task, what differs follows; None: it does not matter.
    Raises: ValueError, one line, if there is no agent at `path`, it is of another format or class, or it is damaged.
    """
    folder = Path(path)
    recover_folder(folder)
    if not os.path.lexists(folder / HEAD):
        raise ValueError(f"path={str(path)!r}: no saved agent there")
    check_files(folder)
    head = read_json(folder / HEAD)
    if head.get("agent") != name or head.get("format") != FORMAT:
        raise ValueError(
            f"path={str(path)!r}: holds agent {head.get('agent')!r:.80} in format {head.get('format')!r:.80}; "
            f"allowed is {name!r} in format {FORMAT}"
        )
    changes = [] if task is None else task_changes(head.get("task"), fingerprint(task, "train"))
    if task is not None and elsewhere is not None and changes:
        text = elsewhere.format(had=_name(head.get("task")), now=f"{task.name!r}")
        warnings.warn(f"path={str(path)!r}: {text}; they differ in {', '.join(changes)}", TextGymWarning, stacklevel=4)
    with reading(folder, "the saved agent"):
        built = build(Saved(folder, head["config"], head["state"], not changes))
        if task is not None and not changes:
            task.scorer.load_state_dict(head["scorer"])
        return built


def check_format(place: object, held: Mapping[str, object], what: str) -> None:
    """Raise ValueError unless what a folder's JSON file holds is of this format. Args: what: "run" or "suite"."""
    if held.get("format") != FORMAT:
        raise ValueError(
            f"{place}: holds a {what} in format {held.get('format')!r:.40}; allowed is format {FORMAT}: "
            "start anew in another folder, or use the textgym that wrote it"
        )


def _name(task: object) -> str:
    """Return what a message calls the task of a fingerprint, which may be damaged."""
    return f"{task.get('name') if isinstance(task, dict) else task!r:.80}"


def task_signs(task: Task, split: str) -> JsonObject:
    """Return what a run tells its task by: name of a split -> the fingerprint with its prompts, and beta.

    Args:
        split: of the held-out prompts.
    """
    more = {"beta": task.beta, "reward": task.reward_name or reward_name(task.reward)}
    return {each: fingerprint(task, each) | more for each in ("train", split)}


def task_changes(had: object, now: JsonObject) -> list[str]:
    """Return what differs between the fingerprints of two tasks, of which the first may be damaged."""
    before = had if isinstance(had, dict) else {}
    changed = {name: before.get(name) for name, value in now.items() if before.get(name) != value}
    # What is no number nor a short name is a digest.
    return [
        name if name in ("prompts", "vocabulary", "reference", "mask") else f"{name} ({old!r:.80}, now {now[name]!r})"
        for name, old in changed.items()
    ]


def _save_tensors(tensors: Arrays | Mapping[str, Tensor], path: Path) -> None:
    arrays = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, np.ndarray)}
    if arrays:
        from safetensors.numpy import save_file as save_arrays

        assert len(arrays) == len(tensors), "tensors of numpy and of torch in one file"
        save_arrays(arrays, path)
    else:
        from safetensors.torch import save_file

        save_file({n: t.contiguous() for n, t in tensors.items() if not isinstance(t, np.ndarray)}, path)


def count(state: Mapping[str, object], name: str, least: int = 0, most: int = MOST) -> int:
    """Return a counter of a saved state. Raises: KeyError without it; ValueError unless it is in least..most."""
    return check_count(name, state[name], least, most)


def number(state: Mapping[str, object], name: str) -> float:
    """Return a finite number of a saved state. Raises: KeyError without it; ValueError for anything else."""
    value = state[name]
    if not isinstance(value, int | float) or not is_finite(value):
        raise ValueError(f"{name}={value!r:.80}: allowed is a finite number")
    return float(value)


def flag(state: Mapping[str, object], name: str) -> bool:
    """Return a truth value of a saved state. Raises: KeyError without it; ValueError for anything else."""
    value = state[name]
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r:.80}: allowed is true or false")
    return value


def text(state: Mapping[str, object], name: str) -> str:
    """Return a text of a saved state. Raises: KeyError without it; ValueError for anything else."""
    value = state[name]
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r:.80}: allowed is a text")
    return value
