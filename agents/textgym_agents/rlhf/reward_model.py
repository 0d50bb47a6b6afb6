"""Reward models from rankings: one, or an ensemble, trained one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Floats, JsonObject
from textgym.files import read_json
from textgym.lm.causal import choose_device
from textgym.lm.scoring import (
    Encoded,
    encode_exchange,
    first_tokens,
    load_reward_model,
    pad_right,
    reads_last_token,
    sequence_scores,
    start_reward_model,
)
from textgym.preferences import Ranking, read_demonstrations, read_rankings
from textgym.vocab import Vocabulary
from textgym_agents.config import MOST_SEED
from textgym_agents.lm.lora import merged, trained_parameters
from textgym_agents.lm.trainer import Batch, SupervisedLoss, SupervisedTrainer, steps_done, steps_of
from textgym_agents.protocol import Metrics
from textgym_agents.rlhf.inputs import (
    base_name,
    freeze_first_layers,
    longest_row,
    prepared,
    read_rows,
    save_model_folder,
    split_rows,
)
from textgym_agents.rlhf.ranking import Bin, draw_reliability, measure_rankings, ranking_loss
from textgym_agents.rlhf.runs import SupervisedRun
from textgym_agents.rlhf.settings import RankingLoss, RewardModelSettings, peak_learning_rate
from textgym_agents.training.loop import Watcher

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REFERENCE_ANSWERS = 4096  # their mean score is known to 1/64 of the scores' spread
_MEMBER_SEEDS = 1000  # between the seeds of an ensemble's members


def train_reward_model(
    settings: RewardModelSettings, out: str | Path, watcher: Watcher | None = None, resume: bool = False
) -> JsonObject:
    """Train reward models and write a run's folder: `model/`, or `model-0/`, `model-1/`, ... for an ensemble.

    Args:
        out: a new folder, or that of the interrupted run to go on with.
        watcher: follows the run; None for nobody.
        resume: whether to go on; the result is that of a run that was not interrupted.
    Returns: result.json: measures `before` and `after` on held-out prompts (an ensemble's are those of its mean
        score, its `members` have their own), counts, and `models`, the names of the folders.
    Raises: ValueError or OSError for settings, data or a folder that cannot be used; TrainingInterrupted after Ctrl-C.
    """
    run = SupervisedRun("reward-model", settings, out, watcher, resume)
    with run.guarded():
        return _Ensemble(settings, Path(out), run).train()


class RankedRow(NamedTuple):
    """The answers to one prompt, best first.

    Args:
        answers: K, each with its prompt.
        margin: reward units that are asked of every pair.
    """

    answers: tuple[Encoded, ...]
    margin: float = 0.0


def encode_ranking(row: Ranking, vocabulary: Vocabulary, max_length: int, margin: float | None) -> RankedRow:
    """Return a ranking's tokens as a reward model reads them; its margin is `margin`, or else its own, or else 0.

    Raises: ValueError if it cannot be encoded.
    """
    ended = row.ended or (True,) * len(row.completions)
    answers = tuple(
        encode_exchange(vocabulary, row.prompt, text, whole, max_length)
        for text, whole in zip(row.completions, ended, strict=True)
    )
    return RankedRow(answers, (row.margin or 0.0) if margin is None else margin)


class PreferenceLoss(SupervisedLoss[RankedRow]):
    """The loss of a reward model; an item is a ranking.

    Args:
        model: a sequence classifier with one label.
        kind, centering: see `ranking_loss`.
        has_margins: whether the rows' margins count.
    """

    def __init__(self, model: PreTrainedModel, kind: RankingLoss, centering: float, has_margins: bool) -> None:
        super().__init__()
        self.model = model
        self._kind, self._centering, self._has_margins = kind, centering, has_margins

    def forward(self, **batch: Tensor) -> Tensor:
        """Return the sum over the rankings.

        Args:
            batch: input_ids (N, T) int64, the answers of all G rankings one after the other, padded on the right;
                lengths and firsts (N,) int64; mask (G, K) bool with N times True; margins (G,) float.
        """
        mask = batch["mask"]
        flat = sequence_scores(self.model, batch["input_ids"], batch["lengths"], batch["firsts"])
        scores = flat.new_zeros(mask.shape).masked_scatter(mask, flat)
        asked = batch["margins"] if self._has_margins else None
        return ranking_loss(scores, mask, asked, self._kind, self._centering).sum()

    def roots(self) -> list[nn.Module]:
        """See `SupervisedLoss.roots`. Scores are read by the two parts of a model, not by the whole."""
        model = self.model
        return [model.base_model, cast(nn.Module, model.score)] if reads_last_token(model) else [model]

    def count(self, batch: Batch) -> int:
        """Return the number of rankings."""
        return len(batch["mask"])

    def collate(self, rows: Sequence[RankedRow]) -> Batch:
        """Return rankings as one batch, as long as the longest answer."""
        answers = [answer for row in rows for answer in row.answers]
        input_ids, lengths = pad_right([answer.ids for answer in answers])
        counts = torch.tensor([len(row.answers) for row in rows])
        return {
            "input_ids": input_ids,
            "lengths": lengths,
            "firsts": first_tokens(answers),
            "mask": torch.arange(int(counts.max()))[None] < counts[:, None],
            "margins": torch.tensor([row.margin for row in rows], dtype=torch.float32),
        }


@torch.no_grad()
def answer_scores(model: PreTrainedModel, answers: Sequence[Encoded], batch: int) -> Floats:
    """Return a model's scores (N,) of answers, in evaluation mode; answers of like length share a batch."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    scores = np.zeros(len(answers))
    order = sorted(range(len(answers)), key=lambda row: len(answers[row].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids, lengths = pad_right([answers[row].ids for row in chosen])
        firsts = first_tokens([answers[row] for row in chosen])
        found = sequence_scores(model, ids.to(device), lengths.to(device), firsts.to(device))
        scores[chosen] = found.double().cpu().numpy()
    model.train(was_training)
    return scores


class _Ensemble:
    """The models of one run: members are trained one after the other, and a complete one is a folder."""

    def __init__(self, settings: RewardModelSettings, out: Path, run: SupervisedRun) -> None:
        self._settings, self._run, self._out = settings, run, out
        count = settings.members
        self._names = ["model"] if count == 1 else [f"model-{member}" for member in range(count)]
        self._device = choose_device(settings.device)
        run.watcher.stage("reading the data")
        reading = read_rankings(settings.data, settings.on_broken)
        model, vocabulary = self._start(0)
        self._vocabulary, self._length = vocabulary, longest_row(model, settings.max_length)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        fitted = self._prepared(model, 0)[0]
        self._rate = peak_learning_rate(settings, trained_parameters(fitted))
        self._rows = split_rows(
            reading,
            lambda row: encode_ranking(row, vocabulary, self._length, settings.margin),
            lambda item: item.answers,
            settings,
            self._length,
            run.watcher,
        )
        has_margins = any(row.margin for row in self._rows.train)
        if has_margins and settings.loss == "plackett_luce":
            run.watcher.note("loss='plackett_luce' has no margin: those of the data are not used")
        self._has_margins = has_margins and settings.loss == "pairwise"
        self._references = self._reference_answers()
        self._steps = steps_of(len(self._rows.train), settings)

    def train(self) -> JsonObject:
        """Train the members that are not complete, and return result.json."""
        settings, run = self._settings, self._run
        done = sum((self._out / name).is_dir() for name in self._names)
        rows_each = self._steps + 1  # of metrics.jsonl
        at = steps_done(run.checkpoints / self._names[done]) if done < len(self._names) else None
        files = [settings.data, *([settings.reference_samples] if settings.reference_samples else [])]
        with run.writing(files, done * rows_each + (-1 if at is None else at)) as folder:
            for member in range(done, len(self._names)):
                model, adapter = self._prepared(self._start(member)[0], member)
                total = rows_each * len(self._names) - 1
                run.train(folder, self._fit(member, model), partial(self._logged, model), member * rows_each, total)
                run.watcher.stage("scoring the reference answers")
                model = model if adapter is None else merged(adapter)
                files_beside = {"reward.json": self._centre(model, member)}
                save_model_folder(self._out / self._names[member], model, settings.base, files_beside)
            return run.finish(folder, self._result()) if run.devices.leads else {}

    def _reference_answers(self) -> list[Encoded]:
        """Return the answers whose mean score becomes 0."""
        path, settings = self._settings.reference_samples, self._settings
        answers = [answer for row in self._rows.train for answer in row.answers]
        if path is not None:
            samples = read_demonstrations(path, settings.on_broken)
            _, answers = read_rows(
                samples,
                lambda row: encode_exchange(self._vocabulary, row.prompt, row.completion, row.ended, self._length),
                settings,
                self._run.watcher,
                "reference_samples",
            )
            left_out = len(samples.problems) + len(samples.rows) - len(answers)
            self._rows.report["broken_reference_samples"] = left_out
        chosen = np.random.default_rng([settings.seed, 2]).permutation(len(answers))
        return [answers[index] for index in chosen[:_REFERENCE_ANSWERS]]

    def _seed(self, member: int) -> int:
        return (self._settings.seed + _MEMBER_SEEDS * member) % (MOST_SEED + 1)

    def _start(self, member: int) -> tuple[PreTrainedModel, Vocabulary]:
        # A head of zeros would start all members of an ensemble alike; a single model starts without an opinion.
        seed = self._seed(member) if self._settings.members > 1 else None
        model, vocabulary = start_reward_model(base_name(self._settings.base), seed)
        return nn.Module.to(model, self._device), vocabulary

    def _prepared(self, model: PreTrainedModel, member: int) -> tuple[PreTrainedModel, PreTrainedModel | None]:
        """Return a model ready to be trained, and PEFT's around it: see `prepared`. Its head is trained whole."""
        freeze_first_layers(model, self._settings.freeze)
        head = nn.ModuleList(part for part in model.children() if part is not model.base_model)
        return prepared(model, self._settings, self._seed(member), head)

    def _fit(self, member: int, model: PreTrainedModel) -> SupervisedTrainer[RankedRow]:
        settings, rows = self._settings, self._rows.train
        loss = PreferenceLoss(model, settings.loss, settings.centering, self._has_margins)
        lengths = [max(len(answer.ids) for answer in row.answers) for row in rows]
        folder = self._run.checkpoints / self._names[member]
        return SupervisedTrainer(
            loss, rows, lengths, settings, self._rate, self._seed(member), folder, self._run.devices
        )

    def _logged(self, model: PreTrainedModel) -> Metrics:
        """Return measures of one model on the held-out rows, as they are logged."""
        found = self._measures([self._held_out_scores(model)])
        return {f"eval/{name}": value for name, value in found.items() if isinstance(value, float)}

    def _held_out_scores(self, model: PreTrainedModel) -> Floats:
        answers = [answer for row in self._rows.held_out for answer in row.answers]
        return answer_scores(model, answers, self._settings.batch)

    def _measures(self, scores: Sequence[Floats]) -> JsonObject:
        """Return measures of the mean of several models' scores on the held-out answers; {} without any."""
        if not self._rows.held_out:
            return {}
        ends = np.cumsum([len(row.answers) for row in self._rows.held_out])[:-1]
        groups = [list(part) for part in np.split(np.mean(scores, axis=0), ends)]
        tokens = [[len(a.ids) - a.prompt_tokens for a in row.answers] for row in self._rows.held_out]
        return measure_rankings(groups, tokens, seed=self._settings.seed, prompts=self._rows.held_out_prompts)

    def _centre(self, model: PreTrainedModel, member: int) -> JsonObject:
        """Return what makes scores comparable: their mean over reference answers, and their spread there."""
        scores = answer_scores(model, self._references, self._settings.batch)
        return {
            "offset": float(scores.mean()),
            "std": float(scores.std()),
            "samples": len(scores),
            "source": self._settings.reference_samples or self._settings.data,
            "seed": self._seed(member),
        }

    def _result(self) -> JsonObject:
        before, after, members = [], [], []
        for member, name in enumerate(self._names):
            before.append(self._held_out_scores(self._start(member)[0]))
            model = load_reward_model(self._out / name)[0].to(self._device)  # type: ignore[arg-type]
            centre = read_json(self._out / name / "reward.json")
            after.append(self._held_out_scores(model) - centre["offset"])
            pair = {"before": self._measures(before[-1:]), "after": self._measures(after[-1:])}
            members.append({when: _flat(found) for when, found in pair.items()} | {"centre": centre})
        last = self._measures(after)
        self._draw(last)
        return {
            "before": _flat(self._measures(before)),
            "after": _flat(last),
            "reliability": last.get("reliability"),
            "members": members,
            "models": self._names,
            "data": self._rows.report,
            "steps": self._steps,
            "learning_rate": self._rate,
            "parameters": self._parameters,
            "device": str(self._device),
        }

    def _draw(self, measures: JsonObject) -> None:
        if not measures:
            return
        try:
            curve = [Bin(**entry) for entry in measures["reliability"]]
            title = f"{Path(self._settings.data).name}, held-out prompts"
            draw_reliability(curve, self._out / "reliability.png", title)
        except ModuleNotFoundError:
            self._run.watcher.note('no reliability.png is drawn: pip install "textgym[report]"')


def _flat(measures: JsonObject) -> Metrics:
    return {f"eval/{name}": value for name, value in measures.items() if name != "reliability"}
