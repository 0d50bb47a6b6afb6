"""Reward models from rankings: one, or an ensemble, trained one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from textgym.files import read_json
from textgym.lm.causal import choose_device
from textgym.lm.llama import recompute_layers
from textgym.lm.scoring import Encoded, load_reward_model, pad_right, sequence_scores, start_reward_model
from textgym.preferences import Ranking, Reading, read_demonstrations, read_rankings
from textgym.vocab import Vocabulary
from textgym_agents.protocol import Metrics
from textgym_agents.rlhf.data import (
    Split,
    encode_answer,
    encode_ranking,
    left_out,
    note_cuts,
    split_rows,
    usable,
)
from textgym_agents.rlhf.losses import PreferenceLoss, RankedRow
from textgym_agents.rlhf.measures import Bin, draw_reliability, measure_rankings
from textgym_agents.rlhf.models import base_name, freeze_first_layers, longest_row, save_model_folder
from textgym_agents.rlhf.session import Session, digest
from textgym_agents.rlhf.settings import SEEDS, RewardModelSettings, peak_learning_rate
from textgym_agents.rlhf.trainer import Fit, steps_done
from textgym_agents.training.loop import Watcher

_REFERENCE_ANSWERS = 4096  # their mean score is known to 1/64 of the scores' spread
_MEMBER_SEEDS = 1000  # between the seeds of an ensemble's members
Floats = NDArray[np.float64]


def train_reward_model(
    settings: RewardModelSettings, out: str | Path, watcher: Watcher | None = None, resume: bool = False
) -> dict[str, Any]:
    """Trains reward models and writes a run's folder: `model/`, or `model-0/`, `model-1/`, ... for an ensemble.

    Args:
        settings: what to train.
        out: a new folder, or that of the interrupted run to go on with.
        watcher: is told what happens; None for nobody.
        resume: go on; the result is that of a run that was not interrupted.
    Returns: result.json: measures `before` and `after` on held-out prompts (an ensemble's are those of its mean
        score, its `members` have their own), counts, and `models`, the names of the folders.
    Raises: ValueError or OSError for settings, data or a folder that do not do; TrainingInterrupted after Ctrl-C.
    """
    session = Session("reward-model", settings, out, watcher, resume)
    with session.guarded():
        return _Work(settings, Path(out), session).run()


class _Work:
    def __init__(self, settings: RewardModelSettings, out: Path, session: Session) -> None:
        self._settings, self._session = settings, session
        count = settings.members
        names = ["model"] if count == 1 else [f"model-{member}" for member in range(count)]
        self._folders = [out / name for name in names]
        self._picture = out / "reliability.png"
        self._device = choose_device(settings.device)
        session.watcher.stage("reading the data")
        self._reading = read_rankings(settings.data, settings.on_broken)
        model, self._vocabulary = self._start(0)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._rate = peak_learning_rate(settings, self._parameters)
        self._max_length = longest_row(model, settings.max_length)
        self._rows = self._encode(self._reading)
        self._broken = {
            "broken_rows": left_out(self._reading, len(self._rows.train) + len(self._rows.held_out))
        }
        self._references = self._reference_answers()
        self._has_margins = settings.loss == "pairwise" and any(row.margin for row in self._rows.train)

    def run(self) -> dict[str, Any]:
        settings, session = self._settings, self._session
        done = sum(folder.is_dir() for folder in self._folders)
        fits = [self._fit(member) for member in range(settings.members)]
        rows_each = fits[0].steps + 1  # of metrics.jsonl
        at = steps_done(fits[done].folder) if done < len(fits) else None
        files = [settings.data, *([settings.reference_samples] if settings.reference_samples else [])]
        last = done * rows_each + (-1 if at is None else at)
        with session.writing({file: digest(file) for file in files}, last) as folder:
            for member in range(done, len(fits)):
                model = self._start(member)[0].to(self._device)
                fits[member].loss.model = model
                evaluate = partial(self._logged, model)
                total = rows_each * len(fits) - 1
                session.train(folder, fits[member], evaluate, member * rows_each, total)
                session.watcher.stage("scoring the reference answers")
                files_beside = {"reward.json": self._centre(model, member)}
                save_model_folder(self._folders[member], model, settings.base, files_beside)
            return session.finish(folder, self._result(fits[0].steps))

    def _encode(self, reading: Reading[Ranking]) -> Split[RankedRow]:
        settings, watcher = self._settings, self._session.watcher
        prompts, items = usable(
            reading,
            lambda row: encode_ranking(row, self._vocabulary, self._max_length, settings.margin),
            settings,
            watcher,
        )
        if settings.loss == "plackett_luce" and any(item.margin for item in items):
            watcher.note("loss='plackett_luce' has no margin: those of the data are not used")
        rows = split_rows(prompts, items, lambda item: item.answers, settings)
        note_cuts(rows.report, self._max_length, watcher)
        return rows

    def _reference_answers(self) -> list[Encoded]:
        path = self._settings.reference_samples
        if path is None:
            answers = [answer for row in self._rows.train for answer in row.answers]
        else:
            samples = read_demonstrations(path, self._settings.on_broken)
            _, answers = usable(
                samples,
                lambda row: encode_answer(row, self._vocabulary, self._max_length),
                self._settings,
                self._session.watcher,
                "reference_samples",
            )
            self._broken["broken_reference_samples"] = left_out(samples, len(answers))
        chosen = np.random.default_rng([self._settings.seed, 2]).permutation(len(answers))
        return [answers[index] for index in chosen[:_REFERENCE_ANSWERS]]

    def _seed(self, member: int) -> int:
        return (self._settings.seed + _MEMBER_SEEDS * member) % SEEDS

    def _start(self, member: int) -> tuple[Any, Vocabulary]:
        # A head of zeros would start all members of an ensemble alike; a single model starts without an opinion.
        seed = self._seed(member) if self._settings.members > 1 else None
        model, vocabulary = start_reward_model(base_name(self._settings.base), seed)
        freeze_first_layers(model, self._settings.freeze)
        if self._settings.gradient_checkpointing:
            recompute_layers(model)
        return model, vocabulary

    def _fit(self, member: int) -> Fit:
        settings = self._settings
        loss = PreferenceLoss(torch.nn.Identity(), settings.loss, settings.centering, self._has_margins)
        lengths = [row.length for row in self._rows.train]
        folder = self._session.checkpoints / f"member-{member}"
        return Fit(loss, self._rows.train, lengths, settings, self._rate, self._seed(member), folder)

    def _logged(self, model: Any) -> Metrics:
        """Measures of one model on the held-out rows, as they are logged."""
        found = self._measures([self._held_out_scores(model)])
        return {f"eval/{name}": value for name, value in found.items() if isinstance(value, float)}

    def _held_out_scores(self, model: Any) -> Floats:
        answers = [answer for row in self._rows.held_out for answer in row.answers]
        return answer_scores(model, answers, self._settings.batch)

    def _measures(self, scores: Sequence[Floats]) -> dict[str, Any]:
        """Measures of the mean of several models' scores on the held-out answers; {} without any."""
        if not self._rows.held_out:
            return {}
        ends = np.cumsum([len(row.answers) for row in self._rows.held_out])[:-1]
        groups = [list(part) for part in np.split(np.mean(scores, axis=0), ends)]
        tokens = [[len(a.ids) - a.prompt_tokens for a in row.answers] for row in self._rows.held_out]
        return measure_rankings(groups, tokens, seed=self._settings.seed)

    def _centre(self, model: Any, member: int) -> dict[str, Any]:
        """What makes scores comparable: their mean over reference answers, and their spread there."""
        scores = answer_scores(model, self._references, self._settings.batch)
        source = self._settings.reference_samples or self._settings.data
        return {
            "offset": float(scores.mean()),
            "std": float(scores.std()),
            "samples": len(scores),
            "source": source,
            "seed": self._seed(member),
        }

    def _result(self, steps: int) -> dict[str, Any]:
        before, after, members = [], [], []
        for member, folder in enumerate(self._folders):
            before.append(self._held_out_scores(self._start(member)[0].to(self._device)))
            model = load_reward_model(folder)[0].to(self._device)  # type: ignore[arg-type]
            centre = read_json(folder / "reward.json")
            after.append(self._held_out_scores(model) - centre["offset"])
            pair = {"before": self._measures(before[-1:]), "after": self._measures(after[-1:])}
            members.append({name: _flat(found) for name, found in pair.items()} | {"centre": centre})
        last = self._measures(after)
        self._draw(last)
        return {
            "before": _flat(self._measures(before)),
            "after": _flat(last),
            "reliability": last.get("reliability"),
            "members": members,
            "models": [folder.name for folder in self._folders],
            "data": self._rows.report | self._broken | {"max_length": self._max_length},
            "steps": steps,
            "learning_rate": self._rate,
            "parameters": self._parameters,
            "device": str(self._device),
        }

    def _draw(self, measures: dict[str, Any]) -> None:
        if not measures:
            return
        try:
            curve = [Bin(**entry) for entry in measures["reliability"]]
            draw_reliability(curve, self._picture, f"{Path(self._settings.data).name}, held-out prompts")
        except ModuleNotFoundError:
            self._session.watcher.note('no reliability.png is drawn: pip install "textgym[report]"')


def _flat(measures: dict[str, Any]) -> Metrics:
    return {f"eval/{name}": value for name, value in measures.items() if name != "reliability"}


@torch.no_grad()
def answer_scores(model: Any, answers: Sequence[Encoded], batch: int) -> Floats:
    """A model's scores (N,) of answers, in evaluation mode; answers of like length share a batch."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    scores = np.zeros(len(answers))
    order = sorted(range(len(answers)), key=lambda row: len(answers[row].ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids, lengths = pad_right([answers[row].ids for row in chosen])
        scores[chosen] = sequence_scores(model, ids.to(device), lengths.to(device)).double().cpu().numpy()
    model.train(was_training)
    return scores
