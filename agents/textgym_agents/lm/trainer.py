"""The supervised trainer: a plain loop over rows whose order is laid out beforehand, with whole checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Ints
from textgym.files import recover_folder
from textgym_agents.config import Decay, FitConfig
from textgym_agents.lm.agent import apply_gradient
from textgym_agents.lm.checkpoint import (
    module_tensors,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
)
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.parts import read_parts, with_prefix, without_prefix, write_parts
from textgym_agents.lm.sharding import release, shard
from textgym_agents.lm.start import fingerprint, has_fingerprint
from textgym_agents.protocol import Metrics
from textgym_agents.saving import Saved, count, read_saved

Row = TypeVar("Row")
Batch = dict[str, Tensor]
_NAME = "supervised training"  # of the checkpoints


class SupervisedLoss(nn.Module, ABC, Generic[Row]):
    """A model with the loss that it is trained on."""

    methods: ClassVar[Sequence[str]] = ()
    """Names of the methods of `roots` that run the model, beside `forward`."""

    @abstractmethod
    def forward(self, **batch: Tensor) -> Tensor:
        """Return the sum of the losses of a batch's items, a scalar."""

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Return the number of items in a batch."""

    def roots(self) -> list[nn.Module]:
        """Return the modules that are called one after the other, and have all parameters between them."""
        return [self]

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Return rows as one batch."""


@dataclass(frozen=True)
class SupervisedTrainer(Generic[Row]):
    """One supervised training.

    Every step sees the mean loss of its items. The rows of a step, its learning rate and its dropout depend on the seed
    and its number alone, so that a training resumed from a checkpoint ends with the same weights, bit for bit.

    Args:
        loss: what is trained, on its device; parameters that need no gradient stay as they are.
        rows: to learn from.
        lengths: tokens of every row.
        settings: schedule and sizes.
        learning_rate: its peak.
        seed: of the order of rows and of dropout.
        folder: of the checkpoint.
        devices: that share the rows of every part of a step. Each draws its own dropout.
    """

    loss: SupervisedLoss[Row]
    rows: Sequence[Row]
    lengths: Sequence[int]
    settings: FitConfig
    learning_rate: float
    seed: int
    folder: Path
    devices: Devices = ALONE

    def __post_init__(self) -> None:
        if self.devices.world > 1 and self.settings.parallel == "fsdp":
            device = next(self.loss.parameters()).device
            shard(self.devices, self.loss.roots(), device, self.settings.bf16, self.loss.methods)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return steps_of(len(self.rows), self.settings)

    def run(
        self,
        after_step: Callable[[int, Metrics], None],
        interrupted: Callable[[], bool],
        before_save: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train from the last checkpoint, or from the start. Global random state is left as it was.

        Args:
            after_step: gets the number of steps done, and loss, gradient_norm and lr of the last one.
            interrupted: whether to stop after this step, with a checkpoint.
            before_save: called before each checkpoint is written.
        Returns: whether all steps are done.
        Raises: FloatingPointError if a loss or gradient is not finite; ValueError for a checkpoint that is damaged.
        """
        settings, loss = self.settings, self.loss
        order = lay_out(self.lengths, settings.batch, settings.epochs, self.seed)
        optimizer = self._optimizer()
        done = steps_done(self.folder)
        if done is not None:
            read_saved(self.folder, _NAME, lambda saved: self._restore(saved, optimizer))
        loss.train()
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            for step in range(done or 0, self.steps):
                chosen = order[step * settings.batch : (step + 1) * settings.batch]
                after_step(step + 1, self._step(step, chosen, optimizer))
                stopping = self.devices.any(interrupted())
                if stopping or (step + 1) % settings.save_every == 0 or step + 1 == self.steps:
                    before_save()
                    self._save(step + 1, optimizer)
                if stopping:
                    return step + 1 == self.steps
        return True

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW, whose weight decay is for matrices only."""
        release(self.loss)  # which may have been measured
        learned = [parameter for parameter in self.loss.parameters() if parameter.requires_grad]
        groups = [
            {
                "params": [each for each in learned if each.ndim > 1],
                "weight_decay": self.settings.weight_decay,
            },
            {"params": [each for each in learned if each.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, self.learning_rate, eps=self.settings.adam_epsilon, fused=True)

    def _step(self, step: int, chosen: Ints, optimizer: torch.optim.Optimizer) -> Metrics:
        settings = self.settings
        warmup = math.ceil(settings.warmup * self.steps)
        rate = self.learning_rate * rate_factor(settings.schedule, step, self.steps, warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rank = self.devices.rank
        words = [self.seed, 3, step, *([rank] if rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        size = settings.batch // settings.micro_batches
        dealt = [self.devices.deal(chosen[start : start + size]) for start in range(0, len(chosen), size)]
        batches = [(self.loss.collate([self.rows[row] for row in own]), weight) for own, weight in dealt]
        items = int(self.devices.sums([sum(weight * self.loss.count(batch) for batch, weight in batches)])[0])
        metrics = accumulate(optimizer, self._parts(batches), items, self.devices)
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss of step {step + 1} is {metrics['loss']}; a lower learning_rate may help"
            )
        norm = apply_gradient(optimizer, self.devices, settings.max_grad_norm, f"step {step + 1}")
        return metrics | {"gradient_norm": norm, "lr": rate}

    def _parts(self, batches: Sequence[tuple[Batch, float]]) -> Iterator[tuple[Tensor, Metrics]]:
        device = next(self.loss.parameters()).device
        for batch, weight in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss = self.loss(**{name: tensor.to(device) for name, tensor in batch.items()})
            yield weight * loss.float(), {"loss": weight * float(loss.detach())}

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        release(self.loss)
        tensors = with_prefix("model.", module_tensors(self.loss))
        tensors |= with_prefix("optimizer.", optimizer_tensors(optimizer))
        state = {"step": step, "frozen": fingerprint(self.loss)}
        write_parts(self.devices, tensors, self.folder, _NAME, self.settings, state=state)

    def _restore(self, saved: Saved, optimizer: torch.optim.Optimizer) -> None:
        count(saved.state, "step", most=self.steps)
        if not has_fingerprint(self.loss, saved.state.get("frozen")):
            raise ValueError("the weights that are not trained are not those that the training was begun with")
        tensors = read_parts(saved)
        restore_module(self.loss, without_prefix("model.", tensors))
        restore_optimizer(optimizer, without_prefix("optimizer.", tensors))


def steps_of(rows: int, settings: FitConfig) -> int:
    """Return the optimiser steps of a training on so many rows."""
    return math.ceil(rows * settings.epochs / settings.batch)


def steps_done(folder: Path) -> int | None:
    """Return the steps behind the checkpoint in a folder; None without one. Raises: ValueError if it is damaged."""
    recover_folder(folder)
    if not folder.exists():
        return None
    return read_saved(folder, _NAME, lambda saved: count(saved.state, "step", 1))


def rate_factor(schedule: Decay, step: int, steps: int, warmup: int) -> float:
    """Return the share of its peak that the learning rate has at a step, in (0, 1].

    Args:
        schedule: how it falls after the warm-up.
        step: 0..steps - 1. Neither the first nor the last is taken at a rate of 0.
        warmup: steps that it grows over.
    """
    if step + 1 < warmup:
        return (step + 1) / warmup
    passed = (step + 1 - warmup) / max(1, steps + 1 - warmup)
    falls = {
        "linear": 1 - passed,
        "cosine": 0.5 * (1 + math.cos(math.pi * passed)),
        "constant_with_warmup": 1.0,
    }
    return falls[schedule]


def lay_out(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> Ints:
    """Return the rows of all epochs, one after the other: step s has rows s * batch, ... whatever came before.

    Within a step, rows are sorted by length, the longest first, so that its parts are padded little. Which rows a
    step has is independent of their lengths.

    Args:
        lengths: tokens of every row.
        batch: rows per step.
    Returns: (epochs * rows,) row numbers.
    """
    generator = np.random.default_rng([seed, 1])
    order = np.concatenate([generator.permutation(len(lengths)) for _ in range(epochs)])
    size = np.asarray(lengths)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return np.concatenate([part[np.argsort(-size[part], kind="stable")] for part in parts])


def accumulate(
    optimizer: torch.optim.Optimizer,
    parts: Iterable[tuple[Tensor, Metrics]],
    items: int,
    devices: Devices = ALONE,
    weight: float = 1.0,
) -> Metrics:
    """Set the gradient to that of the mean loss of a step's items, whatever its parts are.

    Args:
        optimizer: of the parameters; older gradients are dropped.
        parts: the losses of some of the items, summed where there are several (a tensor of any shape), and what is
            reported of them, summed over the same items. A part is computed when it is asked for.
        items: in all parts of all devices together.
        devices: which have parts of their own; their gradients are added up by `Devices.add_gradients` afterwards.
        weight: of this device's parts; 0 for those that it has borrowed, see `Devices.deal`.
    Returns: the means over all items of what the parts report.
    """
    sums: Metrics = {}
    optimizer.zero_grad(set_to_none=True)
    for losses, reported in parts:
        (weight * losses.sum() / items).backward()
        sums = {name: sums.get(name, 0.0) + value for name, value in reported.items()}
    whole = devices.sums(weight * value for value in sums.values())
    return {name: value / items for name, value in zip(sums, whole, strict=True)}
