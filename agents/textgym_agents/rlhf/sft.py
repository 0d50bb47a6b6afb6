"""Supervised fine-tuning: a language model learns the completions of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.lm.causal import choose_device
from textgym.lm.llama import recompute_layers
from textgym.lm.scoring import Encoded
from textgym.preferences import Demonstration, Reading, read_demonstrations
from textgym.vocab import Vocabulary
from textgym.world.demonstrations import task_demonstrations
from textgym_agents.protocol import Metrics
from textgym_agents.rlhf.data import Split, encode_demonstration, left_out, note_cuts, split_rows, usable
from textgym_agents.rlhf.losses import CompletionLoss
from textgym_agents.rlhf.models import load_base_lm, longest_row, save_model_folder
from textgym_agents.rlhf.session import Session, digest
from textgym_agents.rlhf.settings import SFTSettings, peak_learning_rate
from textgym_agents.rlhf.trainer import Fit, steps_done
from textgym_agents.training.loop import Watcher

_WORLD = "world:"


def train_sft(
    settings: SFTSettings, out: str | Path, watcher: Watcher | None = None, resume: bool = False
) -> dict[str, Any]:
    """Fine-tunes a model and writes a run's folder; the model is in its `model/`.

    Args:
        settings: what to train.
        out: a new folder, or that of the interrupted run to go on with.
        watcher: is told what happens; None for nobody.
        resume: go on; the result is that of a run that was not interrupted.
    Returns: result.json: measures `before` and `after` on held-out prompts, and counts.
    Raises: ValueError or OSError for settings, data or a folder that do not do; TrainingInterrupted after Ctrl-C.
    """
    session = Session("sft", settings, out, watcher, resume)
    with session.guarded():
        return _run(settings, Path(out), session)


def read_data(settings: SFTSettings) -> Reading[Demonstration]:
    """The demonstrations that `settings.data` names.

    Raises: ValueError or FileNotFoundError.
    """
    if not settings.data.startswith(_WORLD):
        return read_demonstrations(settings.data, settings.on_broken)
    task = settings.data.removeprefix(_WORLD)
    drawn = task_demonstrations(task, settings.demonstrations, settings.seed)
    return Reading([Demonstration(*row) for row in drawn], [])


def _run(settings: SFTSettings, out: Path, session: Session) -> dict[str, Any]:
    session.watcher.stage("reading the data")
    reading = read_data(settings)
    model, vocabulary = load_base_lm(settings.base)
    if settings.gradient_checkpointing:
        recompute_layers(model)
    max_length = longest_row(model, settings.max_length)
    rows = _encode(reading, settings, vocabulary, max_length, session.watcher)
    note_cuts(rows.report, max_length, session.watcher)
    device = choose_device(settings.device)
    loss = CompletionLoss(model.to(device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = peak_learning_rate(settings, parameters)
    lengths = [len(row.ids) for row in rows.train]
    fit = Fit(loss, rows.train, lengths, settings, rate, settings.seed, session.checkpoints)
    done = steps_done(fit.folder)
    read = {} if settings.data.startswith(_WORLD) else {settings.data: digest(settings.data)}
    with session.writing(read, -1 if done is None else done) as folder:
        session.train(folder, fit, lambda: measure(loss, rows, settings.batch), 0, fit.steps)
        save_model_folder(out / "model", model, settings.base)
        logged = folder.metrics()
        before, after = (
            {name: value for name, value in row.items() if name.startswith("eval/")}
            for row in (logged[0], logged[-1])
        )
        broken = left_out(reading, len(rows.train) + len(rows.held_out))
        counts = rows.report | {"broken_rows": broken, "max_length": max_length}
        trained = {"steps": fit.steps, "learning_rate": rate, "parameters": parameters, "device": str(device)}
        return session.finish(folder, {"before": before, "after": after, "data": counts} | trained)


def _encode(
    reading: Reading[Demonstration],
    settings: SFTSettings,
    vocabulary: Vocabulary,
    max_length: int,
    watcher: Watcher,
) -> Split[Encoded]:
    prompts, items = usable(
        reading, lambda row: encode_demonstration(row, vocabulary, max_length), settings, watcher
    )
    return split_rows(prompts, items, lambda item: [item], settings)


def measure(loss: CompletionLoss, rows: Split[Encoded], batch: int) -> Metrics:
    """Loss in nats per token, perplexity and token accuracy on the held-out rows, with 95% intervals.

    Without held-out rows there is nothing to measure: no entry is made.
    """
    if not rows.held_out:
        return {}
    sums = token_sums(loss, rows.held_out, batch)
    result: Metrics = {}
    for name, column in (("loss", 0), ("token_accuracy", 1)):
        value, low, high = _ratio(sums[:, column], sums[:, 2], rows.held_out_prompts)
        result |= {f"eval/{name}": value, f"eval/{name}_low": low, f"eval/{name}_high": high}
    for end in ("", "_low", "_high"):
        result[f"eval/perplexity{end}"] = math.exp(min(result[f"eval/loss{end}"], 700.0))
    return result


@torch.no_grad()
def token_sums(loss: CompletionLoss, rows: Sequence[Encoded], batch: int) -> NDArray[np.float64]:
    """Of every row's completion: the sum of losses, how many tokens are the likeliest ones, and their number.

    Returns: (rows, 3) float64.
    """
    was_training, device = loss.training, next(loss.parameters()).device
    loss.eval()
    sums = np.zeros((len(rows), 3))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
    for start in range(0, len(rows), batch):
        chosen = order[start : start + batch]
        inputs = loss.collate([rows[row] for row in chosen])
        counts = (inputs["labels"] >= 0).sum(1)
        logits, targets = loss.predictions(**{name: value.to(device) for name, value in inputs.items()})
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
        hits = (logits.argmax(-1) == targets).double().cpu()
        owners = torch.repeat_interleave(torch.arange(len(chosen)), counts)
        for column, values in ((0, losses), (1, hits), (2, torch.ones_like(hits))):
            sums[chosen, column] = torch.zeros(len(chosen)).double().index_add(0, owners, values).numpy()
    loss.train(was_training)
    return sums


def _ratio(
    sums: NDArray[np.float64], counts: NDArray[np.float64], prompts: Sequence[str]
) -> tuple[float, float, float]:
    """Sum over sum, and its 95% interval with prompts as the units that were drawn.

    Source: Cochran (1977), Sampling Techniques, eq. 6.13 (variance of a ratio).
    """
    value = float(sums.sum() / counts.sum())
    names, units = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    if len(names) < 2:
        return value, math.nan, math.nan
    residuals = np.bincount(units, sums - value * counts)
    error = math.sqrt(len(names) / (len(names) - 1) * float((residuals**2).sum())) / float(counts.sum())
    return value, value - 1.96 * error, value + 1.96 * error
