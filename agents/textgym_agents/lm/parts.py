"""Tensors of which every rank holds a part: in memory as DTensors, in a checkpoint as rows in a file of each rank.

Rows are the entries of dimension 0. A checkpoint of sharded weights has a folder with a file of each rank and a list
of all tensors; any number of processes reads from it what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from textgym.files import check_file, read_json, reading, sync, write_json
from textgym.task import Task
from textgym_agents.lm.devices import Devices
from textgym_agents.saving import Saved, write_saved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SHARDS = "shards"
"""The folder of the files in a checkpoint."""
_LIST = "shards.json"


@dataclass(frozen=True)
class Slices:
    """A tensor in the files of several ranks, each of which holds some of its rows, the entries of dimension 0.

    Attributes:
        key: its name in the files.
        shape: of the whole.
        files: the files that hold it in the order of the rows, the first row of each, and how many it holds.
    """

    key: str
    shape: tuple[int, ...]
    files: Sequence[tuple[safe_open, int, int]]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return rows start..stop - 1, by default all; a number without dimensions is whole. No other row is read."""
        if not self.shape:
            return self.files[0][0].get_tensor(self.key)  # type: ignore[no-any-return,no-untyped-call]
        found: list[Tensor] = []
        for file, first, length in self.files:
            low, high = (min(max(end - first, 0), length) for end in (start, self.shape[0] if stop is None else stop))
            if low < high or not found:  # without rows it has a type all the same
                found.append(file.get_slice(self.key)[low:high])  # type: ignore[no-untyped-call]
        return found[0] if len(found) == 1 else torch.cat(found)


Stored = Tensor | Slices
Named = TypeVar("Named", bound=Stored)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors under names with a prefix."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Named]) -> dict[str, Named]:
    """Return the tensors whose names have a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def is_sharded(module: nn.Module) -> bool:
    """Return whether every rank holds only a part of a module's parameters."""
    return any(isinstance(each, DTensor) for each in module.parameters())


def own_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """Return the first of the rows that this rank holds, and how many they are."""
    mesh = tensor.device_mesh if isinstance(tensor, DTensor) else None
    return _rows(tensor, 1)[0] if mesh is None else _rows(tensor, mesh.size())[mesh.get_local_rank()]


def loaded(stored: Stored) -> Tensor:
    """Return a tensor whole, read from its files if need be."""
    return stored.read() if isinstance(stored, Slices) else stored


def part_like(full: Stored, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor that all ranks can read, where `like` is sharded; else the tensor."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return loaded(full)
    if isinstance(full, Slices):
        mesh = like.device_mesh
        first, length = own_rows(like)
        local = full.read(first, first + length).to(like.device, copy=True)
        part: Tensor = DTensor.from_local(
            local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return part
    placed: Tensor = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return placed


@torch.no_grad()
def load_whole(module: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Load a module's whole state, of which each rank may keep a part. Raises: RuntimeError for what does not fit."""
    own = cast("Mapping[str, Tensor]", module.state_dict(keep_vars=True))
    if not any(isinstance(each, DTensor | Slices) for each in (*own.values(), *tensors.values())):
        module.load_state_dict(tensors)
        return
    if own.keys() != tensors.keys():
        raise RuntimeError(
            f"the tensor {sorted(own.keys() ^ tensors.keys())[0]!r} is missing, or is none of the model's"
        )
    for name, target in own.items():
        if tensors[name].shape != target.shape:
            raise RuntimeError(f"{name!r} has the shape {tuple(tensors[name].shape)}, not {tuple(target.shape)}")
        target.copy_(part_like(tensors[name], target))


def _rows(tensor: Tensor, world: int) -> list[tuple[int, int]]:
    """Return the first row and the number of rows that each rank holds; of a tensor that is not cut the first all."""
    total = tensor.shape[0] if tensor.ndim else 1
    size = math.ceil(total / world) if isinstance(tensor, DTensor) else total
    firsts = [min(rank * size, total) for rank in range(world)]
    return [(first, min(size, total - first)) for first in firsts]


# Checkpoints


def _shard_file(folder: Path, rank: int) -> Path:
    return folder / f"shard-{rank}.safetensors"


def write_parts(
    devices: Devices,
    tensors: Mapping[str, Tensor],
    path: str | Path,
    name: str,
    config: DataclassInstance,
    task: Task | None = None,
    *,
    state: Mapping[str, object],
    folders: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write a checkpoint by `write_saved`, whose arguments these are; of sharded tensors each rank writes its own part.

    All ranks call this. The first gives `path`, and puts all in place when every rank has written.
    """
    if not any(isinstance(each, DTensor) for each in tensors.values()):
        if devices.leads:
            write_saved(path, name, config, task, state=state, tensors=tensors, folders=folders)
    elif devices.leads:
        parts = {SHARDS: lambda folder: _write_slices(devices, folder, tensors)}
        write_saved(path, name, config, task, state=state, folders={**(folders or {}), **parts})
    else:
        _write_slices(devices, None, tensors)


def read_parts(saved: Saved) -> Mapping[str, Stored]:
    """Return the tensors of a checkpoint; those that ranks have written in parts are still to be read."""
    return read_slices(saved.folder / SHARDS) or saved.tensors()


def _write_slices(devices: Devices, folder: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a folder: each rank its own rows of those that are sharded, the first rank the others too.

    Tensors that are one object under several names are written once. All ranks call this. When the first returns, all
    files are on the disk.

    Args:
        folder: to be made, which all ranks see; None on all ranks but the first, which names it.
    Raises: ValueError on a rank that does not see the folder.
    """
    if folder is not None:
        folder.mkdir(parents=True)
    place = Path(devices.gather_json({"folder": str(folder and folder.absolute())})[0]["folder"])
    if not place.is_dir():
        raise ValueError(f"{place}: rank {devices.rank} sees no such folder; allowed is one that all processes share")
    keys: dict[int, str] = {}
    for name, tensor in tensors.items():
        keys.setdefault(id(tensor), name)
    own = {key: tensors[key].detach() for key in keys.values() if devices.leads or isinstance(tensors[key], DTensor)}
    path = _shard_file(place, devices.rank)
    save_file({key: own_part(tensor).contiguous() for key, tensor in own.items()}, path)
    sync(path)
    devices.sums([0.0])  # all have written theirs
    if not devices.leads:
        return
    with safe_open(path, "pt") as file:
        about = {
            name: {
                "key": keys[id(tensor)],
                "dtype": file.get_slice(keys[id(tensor)]).get_dtype(),
                "shape": list(tensor.shape),
                "rows": _rows(tensor, devices.world),
            }
            for name, tensor in tensors.items()
        }
    write_json(place / _LIST, {"world": devices.world, "tensors": about})


def read_slices(folder: Path) -> dict[str, Slices]:
    """Return the tensors that ranks have written to a folder, still to be read; {} without the folder.

    Raises: ValueError that names the file which is missing or damaged.
    """
    if not folder.is_dir():
        return {}
    head = read_json(folder / _LIST)
    with reading(folder / _LIST, "the list of tensors"):
        files = [_opened(_shard_file(folder, rank)) for rank in range(head["world"])]
        return {name: _slices(folder, files, **about) for name, about in head["tensors"].items()}


def _opened(path: Path) -> safe_open:
    check_file(path)
    with reading(path, "the shard"):
        return safe_open(path, "pt")


def _slices(
    folder: Path, files: Sequence[safe_open], key: str, dtype: str, shape: list[int], rows: list[list[int]]
) -> Slices:
    """Return a tensor that the files hold as they are said to. Raises: ValueError that names the file if not."""
    found, total = [], 0
    for rank, (file, (first, length)) in enumerate(zip(files, rows, strict=True)):
        if first != total:
            raise ValueError(f"{key!r} has rows up to {total}, and then from {first}")
        total += length
        if rank and not length:
            continue
        with reading(_shard_file(folder, rank), "the shard"):
            held = file.get_slice(key)  # type: ignore[no-untyped-call]
            if [held.get_dtype(), *held.get_shape()] != [dtype, *([length, *shape[1:]] if shape else [])]:
                raise ValueError(f"{key!r} is {held.get_dtype()} {held.get_shape()}")
        found.append((file, first, length))
    if total != (shape[0] if shape else 1):
        raise ValueError(f"{key!r} has {total} rows of {shape[0]}")
    return Slices(key, tuple(shape), found)
