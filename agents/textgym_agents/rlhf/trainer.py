"""transformers' Trainer for our losses: exact means, a fixed order of rows, checkpoints that are never half written."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from textgym.files import check_files, make_folder, read_json, reading, recover_folder, replace_folder
from textgym_agents.rlhf.data import lay_out
from textgym_agents.rlhf.settings import FitSettings

Batch = dict[str, Tensor]
Logs = Mapping[str, float]
_WEIGHTS = "model.safetensors"


class Loss(Protocol):
    """What is trained: an `nn.Module` around a model."""

    def __call__(self, **batch: Tensor) -> Tensor:
        """The sum of the losses of a batch's items."""

    def count(self, batch: Batch) -> int:
        """The number of items in a batch."""

    def collate(self, rows: list[Any]) -> Batch:
        """Rows as one batch."""


@dataclass(frozen=True)
class Fit:
    """One training.

    Args:
        loss: an `nn.Module`; its parameters are changed.
        rows: to learn from. lengths: their tokens.
        settings: schedule and sizes. learning_rate: its peak.
        seed: of the order of rows and of dropout.
        folder: of the checkpoints.
    """

    loss: Any
    rows: Sequence[Any]
    lengths: Sequence[int]
    settings: FitSettings
    learning_rate: float
    seed: int
    folder: Path

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return math.ceil(len(self.rows) * self.settings.epochs / self.settings.batch)

    def run(
        self,
        after_step: Callable[[int, Logs], None],
        interrupted: Callable[[], bool],
        before_save: Callable[[], None] = lambda: None,
    ) -> bool:
        """Trains from the last checkpoint, or from the start; to be called within `own_generators`.

        Args:
            after_step: gets the number of steps done and what is to be logged of the last one.
            interrupted: whether to stop after this step, with a checkpoint.
            before_save: called before each checkpoint is written.
        Returns: whether all steps are done.
        Raises: ArithmeticError if the loss is no finite number.
        """
        order = lay_out(self.lengths, self.settings.batch, self.settings.epochs, self.seed)
        make_folder(self.folder)
        trainer = _Trainer(
            self.loss,
            self.folder,
            before_save,
            args=_arguments(self),
            data_collator=self.loss.collate,
            train_dataset=_Rows([self.rows[row] for row in order]),
            callbacks=[_Follow(after_step, interrupted)],
        )
        trainer.remove_callback(PrinterCallback)
        last = last_checkpoint(self.folder)
        if last is not None:
            _check_checkpoint(last, trainer.args)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        return bool(trainer.state.global_step >= self.steps)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a training with its checkpoints in `folder` goes on from; None if there is none."""
    recover_folder(folder / "last")
    return next(iter(sorted((folder / "last").glob("checkpoint-*"))), None)


def steps_done(folder: Path) -> int | None:
    """The steps that the last checkpoint stands behind; None without one."""
    last = last_checkpoint(folder)
    with reading(folder, "the checkpoint"):
        return None if last is None else int(last.name.rpartition("-")[2])


def _check_checkpoint(folder: Path, arguments: TrainingArguments) -> None:
    """Raises ValueError unless the state in a checkpoint is one that these arguments lead to."""
    with reading(folder, "the checkpoint"):
        check_files(folder)
        state = read_json(folder / "trainer_state.json")
        step = int(folder.name.rpartition("-")[2])
        for name, needed in (
            ("global_step", step),
            ("train_batch_size", arguments.per_device_train_batch_size),
        ):
            if state[name] != needed:
                raise ValueError(f"trainer_state.json: {name}={state[name]!r:.80}; allowed is {needed}")
        TrainerState.load_from_json(str(folder / "trainer_state.json"))


def _arguments(fit: Fit) -> TrainingArguments:
    settings = fit.settings
    arguments = TrainingArguments(
        output_dir=str(fit.folder),
        num_train_epochs=1,  # the order of the rows holds all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings.batch // settings.micro_batches,
        gradient_accumulation_steps=settings.micro_batches,
        learning_rate=fit.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * fit.steps),
        weight_decay=settings.weight_decay,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        use_cpu=settings.device == "cpu",
        seed=fit.seed,
        data_seed=fit.seed,
        save_strategy="steps",
        save_steps=settings.save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    # One process, one device: several GPUs would each need their share of every ranking.
    assert arguments.device is not None
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _Rows(Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


class _Trainer(Trainer):
    """Trainer with the mean over all items of a step, whatever its parts are, and with whole checkpoints."""

    loss_is_scaled_for_ga = True

    def __init__(self, loss: Any, folder: Path, before_save: Callable[[], None], **options: Any) -> None:
        super().__init__(model=loss, **options)
        self.model_accepts_loss_kwargs = True
        self._loss, self._folder, self._before_save = loss, folder, before_save
        self._target: Path | None = None  # where a checkpoint is being written

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return samples, sum(self._loss.count(batch) for batch in samples)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        return model(**inputs) / num_items_in_batch

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule one step ahead: Trainer's own takes its first step at a learning rate of 0."""
        scheduler: Any = super().create_scheduler(num_training_steps + 1, optimizer)
        rates = [partial(_ahead, rate) for rate in scheduler.lr_lambdas]
        scheduler.lr_lambdas = rates
        now = [base * rate(0) for base, rate in zip(scheduler.base_lrs, rates, strict=True)]
        for group, value in zip(scheduler.optimizer.param_groups, now, strict=True):
            group["lr"] = value
        scheduler._last_lr = now  # what is logged
        return scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Trainer writes file by file where the checkpoint is to be; a kill would leave half of one there.
        def write(folder: Path) -> None:
            self._target = folder
            try:
                super(_Trainer, self)._save_checkpoint(model, trial)
            finally:
                self._target = None

        self._before_save()
        replace_folder(self._folder / "last", write)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._target or self._folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without training_args.bin, a pickle that nothing reads.
        folder = Path(output_dir or self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self._loss, str(folder / _WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(Path(resume_from_checkpoint), "the checkpoint"):
            load_model(self._loss, str(Path(resume_from_checkpoint) / _WEIGHTS))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or ""), "the checkpoint"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or ""), "the checkpoint"):
            super()._load_rng_state(checkpoint)


def _ahead(rate: Callable[[int], float], step: int) -> float:
    return rate(step + 1)


class _Follow(TrainerCallback):
    def __init__(self, after_step: Callable[[int, Logs], None], interrupted: Callable[[], bool]) -> None:
        self._after_step, self._interrupted = after_step, interrupted

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._interrupted():
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        logs: Logs = others["logs"]
        if "loss" not in logs:  # the summary at the end
            return
        if not math.isfinite(logs["loss"]):
            raise ArithmeticError(
                f"the loss of step {state.global_step} is {logs['loss']}; a lower learning_rate may help"
            )
        self._after_step(state.global_step, logs)


def remove_checkpoints(folder: Path) -> None:
    """Removes a finished training's checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
