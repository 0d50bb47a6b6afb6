"""Supervised fine-tuning: a language model learns the completions of demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from textgym.checks import Floats, JsonObject
from textgym.lm.backbone import is_peft
from textgym.lm.categorical import streamed
from textgym.lm.causal import choose_device
from textgym.lm.checked import choose_backbone
from textgym.lm.scoring import Encoded, encode_pair, end_id, pad_right
from textgym.preferences import Demonstration, Reading, read_demonstrations
from textgym.vocab import Vocabulary
from textgym.world.demonstrations import task_demonstrations
from textgym_agents.lm.lora import merged, trained_parameters
from textgym_agents.lm.trainer import Batch, SupervisedLoss, SupervisedTrainer, steps_done
from textgym_agents.protocol import Metrics
from textgym_agents.rlhf.inputs import SplitRows, load_base_lm, longest_row, prepared, save_model_folder, split_rows
from textgym_agents.rlhf.runs import SupervisedRun
from textgym_agents.rlhf.settings import SFTSettings, peak_learning_rate
from textgym_agents.training.loop import Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WORLD = "world:"
IGNORED = -100  # the label of tokens that are not to be learnt: prompts and padding


def train_sft(
    settings: SFTSettings, out: str | Path, watcher: Watcher | None = None, resume: bool = False
) -> JsonObject:
    """Fine-tune a model and write a run's folder; the model is in its `model/`, and a LoRA adapter in `adapter/`, too.

    Args:
        out: a new folder, or that of the interrupted run to go on with.
        watcher: follows the run; None for nobody.
        resume: whether to go on; the result is that of a run that was not interrupted.
    Returns: result.json: measures `before` and `after` on held-out prompts, and counts.
    Raises: ValueError or OSError for settings, data or a folder that cannot be used; TrainingInterrupted after Ctrl-C.
    """
    run = SupervisedRun("sft", settings, out, watcher, resume)
    with run.guarded():
        return _train(settings, Path(out), run)


def read_data(settings: SFTSettings) -> Reading[Demonstration]:
    """Return the demonstrations that `settings.data` names. Raises: ValueError or FileNotFoundError."""
    if not settings.data.startswith(_WORLD):
        return read_demonstrations(settings.data, settings.on_broken)
    task = settings.data.removeprefix(_WORLD)
    drawn = task_demonstrations(task, settings.demonstrations, settings.seed)
    return Reading([Demonstration(*row) for row in drawn], [])


def encode_demonstration(row: Demonstration, vocabulary: Vocabulary, max_length: int) -> Encoded:
    """Return a demonstration's tokens as a policy would write them, the end included where it came to its end.

    Raises: ValueError if it cannot be encoded, or nothing of the completion fits.
    """
    encoded = encode_pair(vocabulary, row.prompt, row.completion, row.ended, end_id(vocabulary), max_length)
    if len(encoded.ids) == encoded.prompt_tokens:
        raise ValueError(f"nothing of the completion fits into max_length={max_length} tokens")
    return encoded


def _train(settings: SFTSettings, out: Path, run: SupervisedRun) -> JsonObject:
    run.watcher.stage("reading the data")
    reading = read_data(settings)
    model, vocabulary = load_base_lm(settings.base, settings.chat)
    has_base = not is_peft(model)
    if settings.lora_rank is not None and is_peft(model):
        model = merged(model)
    model, adapter = prepared(model, settings, settings.seed)
    length = longest_row(model, settings.max_length)
    rows = split_rows(
        reading,
        lambda row: encode_demonstration(row, vocabulary, length),
        lambda item: [item],
        settings,
        length,
        run.watcher,
    )
    device = choose_device(settings.device)
    loss = CompletionLoss(model, vocabulary.after_ids[-1] if vocabulary.after_ids else None).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rate = peak_learning_rate(settings, trained_parameters(model))
    lengths = [len(row.ids) for row in rows.train]
    fit = SupervisedTrainer(
        loss, rows.train, lengths, settings, rate, settings.seed, run.checkpoints / "model", run.devices
    )
    read = [] if settings.data.startswith(_WORLD) else [settings.data]
    with run.writing(read, steps_done(fit.folder)) as folder:
        run.train(folder, fit, lambda: measure(loss, rows, settings.batch), 0, fit.steps)
        if adapter is not None:
            if has_base:
                save_model_folder(out / "adapter", adapter, settings.base)
            model = merged(adapter)
        elif is_peft(model):
            model = merged(model)
        save_model_folder(out / "model", model, settings.base)
        if not run.devices.leads:
            return {}
        logged = folder.metrics()
        before, after = (
            {name: value for name, value in row.items() if name.startswith("eval/")} for row in (logged[0], logged[-1])
        )
        trained = {"steps": fit.steps, "learning_rate": rate, "parameters": parameters, "device": str(device)}
        return run.finish(folder, {"before": before, "after": after, "data": rows.report} | trained)


class CompletionLoss(SupervisedLoss[Encoded]):
    """Cross entropy of completion tokens, nats; an item is a token.

    Args:
        model: a causal LM or an encoder-decoder.
        prompt_end: the token that ends prompts, for an encoder-decoder.
    """

    methods = ("by_token",)

    def __init__(self, model: PreTrainedModel, prompt_end: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._backbone = choose_backbone(model, lean=False)
        self._backbone.prompt_end = prompt_end

    def forward(self, **batch: Tensor) -> Tensor:
        """Return the sum over the tokens with a label.

        Args:
            batch: input_ids (B, T) int64, padded on the right; attention_mask (B, T), 1 at real tokens; labels (B, T)
                int64, the ids of completion tokens, `IGNORED` elsewhere.
        """
        return type(self).by_token(self, batch)[0].sum()

    def by_token(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of the N tokens with a label, nats, and whether each is the likeliest one, (N,)."""
        labels = batch["labels"]
        rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)  # position t predicts token t + 1
        features = self._backbone.features(batch["input_ids"], rows, columns)

        def of_some(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._backbone.read_out(features)[0].float()  # (n, V)
            return functional.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

        losses, hits = streamed(of_some, features, self._backbone.vocab_size, labels[rows, columns + 1])
        return losses, hits

    def count(self, batch: Batch) -> int:
        """Return the number of tokens to be learnt."""
        return int((batch["labels"] != IGNORED).sum())

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Return rows as one batch, as long as the longest of them."""
        input_ids, lengths = pad_right([row.ids for row in rows])
        place = torch.arange(input_ids.shape[1])[None]
        starts = torch.tensor([row.prompt_tokens for row in rows])[:, None]
        real = place < lengths[:, None]
        labels = input_ids.masked_fill(~real | (place < starts), IGNORED)
        labels[:, 0] = IGNORED  # nothing stands before it where the prompt was cut away
        return {"input_ids": input_ids, "attention_mask": real.long(), "labels": labels}


def measure(loss: CompletionLoss, rows: SplitRows[Encoded], batch: int) -> Metrics:
    """Return loss in nats per token, perplexity and token accuracy on the held-out rows, with 95% intervals.

    Without held-out rows there is nothing to measure: {}.
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
def token_sums(loss: CompletionLoss, rows: Sequence[Encoded], batch: int) -> Floats:
    """Return of every row's completion the sum of losses, how many tokens are the likeliest ones, and their number.

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
        found = loss.by_token({name: value.to(device) for name, value in inputs.items()})
        losses, hits = (column.double().cpu() for column in found)
        owners = torch.repeat_interleave(torch.arange(len(chosen)), counts)
        for column, values in ((0, losses), (1, hits), (2, torch.ones_like(hits))):
            sums[chosen, column] = torch.zeros(len(chosen)).double().index_add(0, owners, values).numpy()
    loss.train(was_training)
    return sums


def _ratio(sums: Floats, counts: Floats, prompts: Sequence[str]) -> tuple[float, float, float]:
    """Return sum over sum, and its 95% interval with prompts as the units that were drawn.

    Source: Cochran (1977), Sampling Techniques, eq. 6.13 (variance of a ratio).
    """
    value = float(sums.sum() / counts.sum())
    names, units = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    if len(names) < 2:
        return value, math.nan, math.nan
    residuals = np.bincount(units, sums - value * counts)
    error = math.sqrt(len(names) / (len(names) - 1) * float((residuals**2).sum())) / float(counts.sum())
    return value, value - 1.96 * error, value + 1.96 * error
