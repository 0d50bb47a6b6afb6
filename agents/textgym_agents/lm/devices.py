"""The processes that learn together, each with a device of its own, over torch.distributed.

Any launcher serves that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does. In a process
that was started alone everything here gives back what it was given. A rank is the number of a process, the first is 0.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from textgym.checks import Ints, JsonObject
from textgym.task import Task

_BUCKET = 2**24
"""Numbers that are added up in one message, 64 MiB of float32."""
_PATIENCE = timedelta(days=7)
"""How long a rank waits for another, which may be evaluating; a dead one is noticed at once."""


class Devices:
    """The ranks that share the episodes, or the rows, of one training.

    Each rank plays and learns from its own part of a batch, and holds all that is small: whole batches of rewards,
    log-probabilities and advantages, so that whitening, baselines and metrics are those of one process. Gradients are
    added up, of losses that were divided by the counts of the whole mini-batch. All methods but `own` and `deal` are
    called by all ranks, in the same order.

    Attributes:
        rank, world: number of this process, and of all.
        before: called before the ranks exchange anything; see `textgym_agents.lm.sharding`.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self.before: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, prints and writes files."""
        return self.rank == 0

    def own(self, rows: Ints, total: int) -> Ints:
        """Return those of some rows of a batch that this rank has played. Args: total: rows of the batch."""
        return rows if self.world == 1 else rows[rows // (total // self.world) == self.rank]

    def deal(self, rows: Ints) -> tuple[Ints, float]:
        """Return every world-th of some rows, and the weight of their loss: 1, or 0 where a row had to be borrowed."""
        dealt = rows[self.rank :: self.world]
        return (dealt, 1.0) if len(dealt) else (rows[:1], 0.0)

    def gather(self, part: Tensor) -> Tensor:
        """Return the parts (n, ...) of all ranks, one after the other. They may differ in n alone."""
        if self.world == 1:
            return part
        self.before()
        sizes = [torch.zeros(1, dtype=torch.long, device=part.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(part)], device=part.device))
        counts = [int(size) for size in sizes]
        sent = part.byte() if part.dtype == torch.bool else part
        padded = sent.new_zeros((max(counts), *part.shape[1:]))
        padded[: len(part)] = sent
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([each[:count] for each, count in zip(parts, counts, strict=True)]).to(part.dtype)

    def gather_array(self, part: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the arrays (n, ...) of all ranks, one after the other."""
        return part if self.world == 1 else self.gather(torch.from_numpy(np.ascontiguousarray(part))).numpy()

    def gather_json(self, part: JsonObject) -> list[JsonObject]:
        """Return the JSON objects of all ranks."""
        text = json.dumps(part).encode()
        ends = np.cumsum(self.gather_array(np.array([len(text)])))
        whole = self.gather_array(np.frombuffer(text, dtype=np.uint8).copy()).tobytes()
        return [json.loads(whole[end - size : end]) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]

    def add_up(self, numbers: Tensor) -> Tensor:
        """Return the sums of a tensor's entries over all ranks."""
        if self.world == 1:
            return numbers
        self.before()
        sums = numbers.clone()
        dist.all_reduce(sums)
        return sums

    def sums(self, numbers: Iterable[float]) -> list[float]:
        """Return the sums of some numbers over all ranks."""
        found: list[float] = self.add_up(torch.tensor(list(numbers), dtype=torch.float64)).tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Return whether a flag is up on any rank."""
        return flag if self.world == 1 else self.sums([flag])[0] > 0

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up the gradients of all ranks. A parameter that has one on no rank keeps having none.

        Gradients that are sharded have been added up already, when they were scattered.
        """
        if self.world == 1:
            return
        self.before()
        whole = [each for each in parameters if each.requires_grad and not hasattr(each, "placements")]
        if not whole:
            return
        has = self.add_up(torch.tensor([each.grad is not None for each in whole], dtype=torch.int32))
        wanted = [each for each, count in zip(whole, has.tolist(), strict=True) if count]
        for bucket in _buckets(wanted):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
            dist.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a reward that needs to see the completions of a whole batch, or of all before it."""
        if self.world == 1:
            return
        scorer = task.scorer
        if not scorer.one_by_one:
            what = "compares the completions of a batch" if scorer.pay == "together" else "changes as it scores"
            raise ValueError(
                f"reward {scorer.name!r}: it {what}, of which each of {self.world} devices sees its own part; "
                "allowed are rewards that score every completion by itself"
            )


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters in lists of one type and device, and of `_BUCKET` numbers or one parameter."""
    bucket: list[Tensor] = []
    for each in parameters:
        unlike = bucket and (bucket[0].dtype, bucket[0].device) != (each.dtype, each.device)
        if bucket and (unlike or sum(p.numel() for p in bucket) + each.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


ALONE = Devices()


def world_size() -> int:
    """Return how many processes were started together: 1 where no launcher says so."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))


def join() -> Devices:
    """Return this process's place among those that were started together, connecting them the first time.

    With CUDA, tensors on GPUs go by NCCL, each rank on the GPU of its local rank, and those on the CPU by Gloo.
    """
    if world_size() == 1:
        return ALONE
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        atexit.register(_leave)
    return Devices(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
