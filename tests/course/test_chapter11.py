"""The numbers of chapter 11, each computed anew: the models' with transformers, DPO's minimum by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from course_tools import ran

from textgym.world.corpus import END_ID
from textgym.world.rules import HelpfulRules

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def chapter():
    return ran(11)


def comparisons(chapter):
    lines = chapter["comparisons"].read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_11a_fine_tuning_doubles_the_reward_and_stays_at_the_labellers_average(chapter):
    measured = chapter["measured"]
    assert measured["base"]["gold"] == pytest.approx(0.25, abs=0.04)
    assert 0.42 < measured["SFT"]["gold"] < chapter["labellers"] + 0.03
    assert chapter["labellers"] == pytest.approx(0.651, abs=1e-3)
    assert chapter["perplexity"]["after"] < chapter["perplexity"]["before"]
    for name in ("base", "SFT", "PPO"):
        episodes = measured[name]["episodes"]
        prompts = np.repeat(episodes.prompts, episodes.completions.shape[1]).tolist()
        ids = [[END_ID] if stopped else [] for stopped in episodes.stopped.ravel()]
        anew = np.reshape(HelpfulRules()(prompts, episodes.completions.ravel().tolist(), completion_ids=ids), (-1, 8))
        assert measured[name]["gold"] == pytest.approx(episodes.weights @ anew.mean(axis=1), abs=1e-9)


def test_11b_the_annotator_errs_as_often_as_bradley_and_terry_say(chapter):
    gold = np.array([row["scores"] for row in comparisons(chapter)])
    gaps = np.abs(gold[:, 0] - gold[:, 1])
    expected = (1 / (1 + np.exp(gaps / 0.1))).mean()
    assert chapter["wrong"] == pytest.approx((gold[:, 0] < gold[:, 1]).mean())
    assert chapter["wrong"] == pytest.approx(expected, abs=4 * np.sqrt(expected / len(gold)))
    assert len(gold) == len(chapter["collected"].rankings)


def test_11c_the_reward_model_starts_at_log_2_and_learns_the_order(chapter):
    assert chapter["loss"]["before"] == pytest.approx(np.log(2), abs=1e-6)
    assert chapter["accuracy"]["before"] == 0.5
    assert chapter["accuracy"]["after"] > 0.75
    assert chapter["loss"]["after"] < 0.5
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = chapter["folder"] / "reward_model" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = comparisons(chapter)[:200]
    right = []
    for row in rows:
        scores = []
        for text in row["completions"]:
            ids = tokenizer.encode(
                f"<|user|>{row['prompt']}<|end|><|assistant|>{text}<|end|>", add_special_tokens=False
            )
            with torch.no_grad():
                scores.append(float(model(torch.tensor([ids])).logits[0, 0]))
        right.append(scores[0] > scores[1])
    assert np.mean(right) > 0.75


def test_11d_ppo_becomes_better_than_the_labellers_and_its_proxy_better_still(chapter):
    measured, beta = chapter["measured"], chapter["helpful"].beta
    assert measured["PPO"]["gold"] > chapter["labellers"] + 0.1
    assert measured["PPO"]["J"] > measured["SFT"]["J"] + 0.2 > measured["base"]["J"]
    assert chapter["proxies"]["PPO"] > measured["PPO"]["gold"]
    for row in measured.values():
        assert row["J"] == pytest.approx(row["gold"] - beta * row["KL"])
    assert measured["SFT"]["KL"] == pytest.approx(0, abs=1e-6)


def test_11e_the_kl_of_ppo_is_the_mean_log_ratio_of_its_own_answers(chapter):
    agree = chapter["play"](
        chapter["ppo"], chapter["helpful"], per_prompt=8, seed=0, reference=chapter["sft"], others=[chapter["sft"]]
    )
    written = agree.log_probs[:, :8]
    ratios = (written[..., 0] - written[..., 1]).mean(axis=1)
    assert chapter["measured"]["PPO"]["KL"] == pytest.approx(agree.weights @ ratios, abs=0.25)


def test_11f_the_minimum_of_dpo_is_the_gibbs_optimum(chapter):
    assert chapter["first_loss"] == pytest.approx(np.log(2), abs=1e-9)
    weights = np.array([0.4, 0.3, 0.2, 0.1]) * np.exp(np.array([0.0, 1.0, 0.5, 2.0]) / 0.5)
    assert chapter["found"].numpy() == pytest.approx(weights / weights.sum(), abs=1e-6)


def test_11g_dpo_comes_most_of_the_way(chapter):
    measured = chapter["measured"]
    assert measured["DPO"]["J"] > measured["SFT"]["J"] + 0.15
    assert measured["DPO"]["gold"] > measured["SFT"]["gold"] + 0.1
