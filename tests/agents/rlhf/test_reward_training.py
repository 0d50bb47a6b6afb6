"""Reward models: rankings in one batch, the loss of every ranking, ensembles, the same result after a stop."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.rlhf.fit_tools import (
    PICKLES,
    Stops,
    dropout_base,
    pair_file,
    result_of,
    rows_of,
    weights,
    write_rows,
)
from chat_tools import applied, chat_tokenizer
from lm.tiny_rewards import save_chat_reward_model
from textgym_agents.rlhf import reward_model as training
from textgym_agents.rlhf.reward_model import PreferenceLoss, RankedRow, answer_scores, train_reward_model
from textgym_agents.rlhf.runs import SupervisedRun
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings

from textgym.interrupts import TrainingInterrupted
from textgym.lm import scoring
from textgym.lm.reward_model import RewardModel
from textgym.lm.scoring import Encoded, load_reward_model, pad_right, sequence_scores, start_reward_model
from textgym.world import MODEL_PATH

QUICK = {"batch": 8, "micro_batches": 2, "epochs": 2, "save_every": 3, "device": "cpu"}


def answer(*ids: int) -> Encoded:
    return Encoded(list(ids), 1, 0)


ROWS = [
    RankedRow((answer(5, 9, 2), answer(5, 7, 8, 8, 2)), 0.5),
    RankedRow((answer(6, 3, 3, 2), answer(6, 4, 2), answer(6, 2))),
]


def alone(model, encoded):
    ids = torch.tensor([encoded.ids])
    return float(sequence_scores(model, ids, torch.tensor([ids.shape[1]])).detach())


@pytest.mark.parametrize("kind", ["pairwise", "plackett_luce"])
def test_a_batch_of_rankings_is_the_sum_of_its_rankings(kind):
    model, _ = start_reward_model(MODEL_PATH, seed=1)
    loss = PreferenceLoss(model, kind, 0.1, has_margins=kind == "pairwise")
    (a, b), (c, d, e) = ([alone(model, answer) for answer in row.answers] for row in ROWS)

    def pair(x, y, margin=0.0):
        return math.log1p(math.exp(-(x - y - margin)))

    if kind == "pairwise":
        want = pair(a, b, 0.5) + (pair(c, d) + pair(c, e) + pair(d, e)) / 3
    else:
        exp = [math.exp(score) for score in (c, d, e)]
        want = pair(a, b) - math.log(exp[0] / sum(exp)) - math.log(exp[1] / (exp[1] + exp[2]))
    want += 0.1 * ((a + b) ** 2 + ((c + d) ** 2 + (c + e) ** 2 + (d + e) ** 2) / 3)
    batch = loss.collate(ROWS)
    assert float(loss(**batch).detach()) == pytest.approx(want, rel=1e-4)
    assert loss.count(batch) == 2
    flat = [answer for row in ROWS for answer in row.answers]
    np.testing.assert_allclose(answer_scores(model, flat, 2), [a, b, c, d, e], atol=1e-5)


def test_a_new_head_says_nothing():
    model, _ = start_reward_model(MODEL_PATH)
    loss = PreferenceLoss(model, "pairwise", 0.0, has_margins=False)
    assert float(loss(**loss.collate(ROWS)).detach()) == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.slow
def test_it_scores_exactly_what_it_was_trained_on(tmp_path, monkeypatch):
    tokenizer = chat_tokenizer("byte-level", "gemma")
    base = tmp_path / "base"
    save_chat_reward_model(base, tokenizer)
    data = pair_file(tmp_path / "pairs.jsonl", 8)
    trained, scored = set(), set()

    def noted(rows):
        def pad(ids, *rest):
            rows.update(map(tuple, ids))
            return pad_right(ids, *rest)

        return pad

    monkeypatch.setattr(training, "pad_right", noted(trained))
    options = {"data": data, "base": str(base), "batch": 4, "held_out": 0.0, "device": "cpu"}
    train_reward_model(RewardModelSettings(**options), tmp_path / "run")
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    monkeypatch.setattr(scoring, "pad_right", noted(scored))
    reward = RewardModel(tmp_path / "run" / "model", device="cpu")
    for answer in ("chosen", "rejected"):
        reward([row["prompt"] for row in rows], [row[answer] for row in rows])
    both = {(row["prompt"], row[answer]) for row in rows for answer in ("chosen", "rejected")}
    assert trained == scored == {tuple(applied(tokenizer, *pair)) for pair in both}


@pytest.mark.long
def test_gradient_checkpointing_trains_the_same_model(tmp_path):
    data = pair_file(tmp_path / "pairs.jsonl", 16)
    found = []
    for asked in (False, True):
        options = {"data": data, "base": dropout_base(tmp_path / "base"), "batch": 8, "device": "cpu"}
        settings = RewardModelSettings(**options, gradient_checkpointing=asked)
        train_reward_model(settings, tmp_path / f"run-{asked}")
        found.append(load_reward_model(tmp_path / f"run-{asked}" / "model")[0].state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-6, rtol=1e-5, msg=name)


def test_margins_and_plackett_luce_exclude_each_other():
    with pytest.raises(ValueError, match="margin"):
        RewardModelSettings(data="x", loss="plackett_luce", margin=1.0)
    with pytest.raises(ValueError, match="plackett_luce"):
        RewardModelSettings(data="x", loss="listwise")


def test_settings_that_nothing_uses_or_that_turn_the_meaning_round_are_named():
    with pytest.raises(ValueError, match=r"margin=-1\.0: allowed is None or a finite number >= 0"):
        RewardModelSettings(data="x", margin=-1.0)
    with pytest.raises(ValueError, match="reference_samples='': allowed is None or the path"):
        RewardModelSettings(data="x", reference_samples="")
    with pytest.raises(ValueError, match="demonstrations=7: allowed is 2000 without data='world"):
        SFTSettings(data="x.jsonl", demonstrations=7)
    assert SFTSettings(data="world:Helpful", demonstrations=7).demonstrations == 7


@pytest.mark.long
def test_it_learns_what_is_preferred_and_scores_around_zero(tmp_path):
    plan = RewardModelSettings(pair_file(tmp_path / "pairs.jsonl", 80), **{**QUICK, "epochs": 6})
    result = train_reward_model(plan, tmp_path / "run")
    assert result["before"]["eval/log_loss"] == pytest.approx(math.log(2))
    assert result["after"]["eval/accuracy"] > 0.9
    assert result["after"]["eval/pairs"] == result["data"]["held_out_rows"]
    assert result["models"] == ["model"]
    model, vocabulary = load_reward_model(tmp_path / "run/model")
    centre = json.loads((tmp_path / "run/model/reward.json").read_text())
    assert centre["samples"] == 2 * result["data"]["train_rows"]
    ids = [*vocabulary.encode_prompt("What is 7?"), *vocabulary.codec.encode("No."), vocabulary.stop_ids[0]]
    score = alone(model, Encoded(ids, 1, 0))
    assert abs(score - centre["offset"]) < 4 * centre["std"]
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(PICKLES)]
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("members", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_after_an_interruption_the_result_is_the_same(tmp_path, members):
    rows = [
        {"prompt": f"What is {number}?", "completions": ["It is big.", "Sure.", "No."][: 2 + number % 2]}
        for number in range(30)
    ]
    plan = RewardModelSettings(
        write_rows(tmp_path / "rankings.jsonl", rows),
        base=dropout_base(tmp_path / "base"),
        members=members,
        loss="plackett_luce",
        **QUICK,
    )
    train_reward_model(plan, tmp_path / "whole")
    names = result_of(tmp_path / "whole")["models"]
    assert len({weights(tmp_path / "whole" / name) for name in names}) == members
    steps = result_of(tmp_path / "whole")["steps"]
    for number, stop in enumerate((5, steps) if members == 1 else (steps + 1, steps + 5)):
        run = tmp_path / f"cut-{number}"
        with pytest.raises(TrainingInterrupted, match=r"textgym reward-model --data .* --resume"):
            train_reward_model(plan, run, Stops(stop))
        train_reward_model(plan, run, resume=True)
        for name in names:
            assert weights(run / name) == weights(tmp_path / "whole" / name)
        assert rows_of(run) == rows_of(tmp_path / "whole")
        assert result_of(run) == result_of(tmp_path / "whole")


def test_reference_samples_that_do_not_do_are_named(tmp_path):
    samples = write_rows(tmp_path / "samples.jsonl", [{"prompt": "", "completion": "b"}])
    data = pair_file(tmp_path / "pairs.jsonl", 10)
    for on_broken, said in (
        ("skip", f"reference_samples='{samples}': no usable row"),
        ("stop", f"{samples}, line 1: "),
    ):
        plan = RewardModelSettings(data, reference_samples=samples, on_broken=on_broken, device="cpu")
        with pytest.raises(ValueError, match=re.escape(said)):
            train_reward_model(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_the_seeds_of_all_members_are_seeds(tmp_path, monkeypatch):
    plan = RewardModelSettings(pair_file(tmp_path / "pairs.jsonl", 10), seed=2**32 - 1, members=2, device="cpu")
    seeds = []
    monkeypatch.setattr(SupervisedRun, "train", lambda self, folder, fit, *rest: seeds.append(fit.seed))
    monkeypatch.setattr(SupervisedRun, "finish", lambda self, folder, result: dict(result))
    train_reward_model(plan, tmp_path / "run")
    assert seeds == [2**32 - 1, 999]


@pytest.mark.slow
def test_reference_samples_centre_the_scores(tmp_path):
    good = {"prompt": "What is 1?", "completion": "It is small."}
    rows = [good, {"prompt": "", "completion": "It cannot be encoded."}, {"prompt": "broken"}]
    samples, watcher = write_rows(tmp_path / "samples.jsonl", rows), Stops(-1)
    plan = RewardModelSettings(pair_file(tmp_path / "pairs.jsonl"), reference_samples=samples, **{**QUICK, "epochs": 1})
    result = train_reward_model(plan, tmp_path / "run", watcher)
    assert (result["data"]["broken_rows"], result["data"]["broken_reference_samples"]) == (0, 2)
    assert [note.partition(": ")[2].partition(": ")[0] for note in watcher.notes] == [
        f"{samples}, line 3",
        f"{samples}, line 2",
    ]
    model, vocabulary = load_reward_model(tmp_path / "run/model")
    centre = json.loads((tmp_path / "run/model/reward.json").read_text())
    ids = [*vocabulary.encode_prompt("What is 1?"), *vocabulary.codec.encode("It is small.")]
    assert centre["offset"] == pytest.approx(alone(model, Encoded([*ids, vocabulary.stop_ids[0]], 1, 0)), abs=1e-5)
    assert (centre["samples"], centre["std"]) == (1, 0.0)


class PressesCtrlC(Stops):
    """Sends the signal itself, as a terminal does."""

    def iteration(self, row):
        if row["iteration"] == self._iteration:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize("at", [1, 3])
def test_ctrl_c_in_the_last_step_of_a_member_stops_before_the_next(tmp_path, at):
    plan = RewardModelSettings(pair_file(tmp_path / "pairs.jsonl", 20), members=2, batch=8, device="cpu")
    with pytest.raises(TrainingInterrupted):
        train_reward_model(plan, tmp_path / "run", PressesCtrlC(at))
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == list(range(at + 1))
    assert train_reward_model(plan, tmp_path / "run", resume=True)["models"] == ["model-0", "model-1"]


def test_the_rate_by_size_counts_what_is_not_frozen(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(training, "peak_learning_rate", lambda settings, count: counted.append(count) or 1e-3)
    layers = json.loads((MODEL_PATH / "config.json").read_text())["num_hidden_layers"]
    for number, freeze in enumerate((0, layers)):
        plan = RewardModelSettings(pair_file(tmp_path / "pairs.jsonl", 8), freeze=freeze, epochs=1, device="cpu")
        train_reward_model(plan, tmp_path / f"run{number}")
    assert counted[1] < 0.5 * counted[0]
