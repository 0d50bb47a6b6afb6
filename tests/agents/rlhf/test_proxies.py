"""Proxies of a gold reward: calibration, order, overrated answers, by hand."""

import json
import re

import numpy as np
import pytest
import torch
from textgym_agents.commands.pipelines import _curves
from textgym_agents.rlhf.inputs import freeze_first_layers, resize_model
from textgym_agents.rlhf.overoptimise import (
    ReferenceAnswers,
    best_of_n_curve,
    draw_overoptimisation,
    draw_samples,
    overrated,
    pair_accuracy,
)
from textgym_agents.rlhf.ranking import calibrate
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, OPTConfig, OPTModel

from textgym import make_task
from textgym.files import read_json, write_json
from textgym.lm.causal import load_causal_lm
from textgym.sampling import PromptEpisodes
from textgym.world import MODEL_PATH


def test_calibration_gives_the_proxy_mean_and_spread_of_gold():
    proxy, gold = np.array([[0.0, 4.0]]), np.array([[5.0, 6.0]])
    found = calibrate(proxy, gold)
    # Spread 2 against 0.5; mean 2 * 0.25 + 5 = 5.5.
    assert found == {"scale": pytest.approx(0.25), "offset": pytest.approx(5.0)}


def test_a_proxy_that_says_nothing_is_not_scaled():
    assert calibrate(np.zeros((1, 3)), np.array([[1.0, 2.0, 3.0]])) == {"scale": 1.0, "offset": 2.0}


def test_pair_accuracy_by_hand():
    gold = np.array([[0.0, 1.0, 1.0, 0.5]])  # neighbours: up, equal, down
    assert pair_accuracy(np.array([[0.0, 1.0, 9.0, 8.0]]), gold) == 1.0
    assert pair_accuracy(np.array([[0.0, 1.0, 9.0, 9.5]]), gold) == 0.5
    assert pair_accuracy(np.array([[0.0, 0.0, 9.0, 8.0]]), gold) == 0.75  # a tie is half right
    assert np.isnan(pair_accuracy(np.zeros((1, 2)), np.ones((1, 2))))


def test_best_of_n_by_a_perfect_and_by_a_perverse_proxy():
    gold = np.random.default_rng(0).normal(size=(3, 8))
    samples = ReferenceAnswers(("a", "b", "c"), np.full((3, 8), "", object), gold > 0, gold, np.full(3, 1 / 3))
    perfect, perverse = best_of_n_curve(gold, samples), best_of_n_curve(-gold, samples)
    assert [point["n"] for point in perfect["points"]] == [1, 2]  # 8 samples say nothing of the KL beyond
    # The best of every pair out of 8 has rank k with probability (k - 1) / 28.
    share = np.arange(8) / 28
    assert perfect["points"][-1]["gold"]["mean"] == pytest.approx((np.sort(gold, 1) @ share).mean())
    assert perverse["points"][-1]["gold"]["mean"] == pytest.approx((np.sort(gold, 1)[:, ::-1] @ share).mean())
    assert perfect["points"][-1]["kl"]["mean"] == pytest.approx(np.log(2) - 0.5)  # no two are alike
    assert (perfect["accuracy"], perverse["accuracy"]) == (1.0, 0.0)
    for curve in (perfect, perverse):  # with n = 1 nothing is chosen: both are the mean of gold
        assert curve["points"][0]["gold"]["mean"] == pytest.approx(gold.mean())
        assert curve["points"][0]["proxy"]["mean"] == pytest.approx(gold.mean())


def test_a_proxy_that_no_pair_of_answers_judges_is_shown_without_an_accuracy(tmp_path):
    answers = np.full((2, 4), "a", dtype=object)
    samples = ReferenceAnswers(("p", "q"), answers, np.ones((2, 4), bool), np.zeros((2, 4)), np.full(2, 0.5))
    write_json(tmp_path / "result.json", best_of_n_curve(np.arange(8.0).reshape(2, 4), samples))
    found = read_json(tmp_path / "result.json")
    assert found["accuracy"] is None
    curve = {"layers": 1, "pairs": 2, "method": "best-of-n"} | {name: found[name] for name in ("accuracy", "points")}
    assert list(_curves([curve]).columns[2].cells) == ["-"]
    draw_overoptimisation([curve], tmp_path / "picture.png", "title")
    assert (tmp_path / "picture.png").stat().st_size


def test_overrated_answers_come_first_and_once():
    def array(*values):
        return np.array([values], dtype=np.float64)

    episodes = PromptEpisodes(
        returns=array(1.0, 3.0, 3.0, 0.0),
        gold=array(1.0, 0.5, 0.5, 0.4),
        kl=array(0, 0, 0, 0),
        entropy=array(0, 0, 0, 0),
        lengths=np.ones((1, 4), dtype=np.int64),
        stopped=np.ones((1, 4), dtype=bool),
        completions=np.array([["right", "hack", "hack", "underrated"]], dtype=object),
        written=np.array([["right", "hack", "hack", "underrated"]], dtype=object),
        tokens=np.full((1, 4, 1), -1),
        log_probs=np.zeros((1, 4, 0)),
        terms={},
        weights=np.ones(1),
        prompts=("p",),
        failures={},
    )
    rows = overrated(episodes, offset=0.25)
    assert [row["completion"] for row in rows] == ["hack", "right", "underrated"]
    assert rows[0] == {"prompt": "p", "completion": "hack", "proxy": 3.25, "gold": 0.5}


@pytest.mark.slow
def test_samples_are_of_the_prompts_asked_for():
    samples = draw_samples(make_task("Helpful", max_new_tokens=4), prompts=3, per_prompt=2, seed=0)
    assert samples.completions.shape == samples.gold.shape == samples.ended.shape == (3, 2)
    assert len(set(samples.prompts)) == 3
    assert samples.weights.sum() == pytest.approx(1.0)


def test_a_smaller_model_has_the_first_layers_and_the_tokenizer(tmp_path):
    resize_model("builtin", 1, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 1
    assert (tmp_path / "small" / "tokenizer.json").exists()
    whole = load_causal_lm(MODEL_PATH).state_dict()
    part = load_causal_lm(tmp_path / "small").state_dict()
    assert all((whole[name] == value).all() for name, value in part.items())
    assert sum(v.numel() for v in part.values()) < sum(v.numel() for v in whole.values())
    with pytest.raises(ValueError, match="layers=0: allowed is an integer >= 1"):
        resize_model("builtin", 0, tmp_path / "none")


@pytest.mark.slow
def test_a_deepened_model_says_what_its_base_says(tmp_path):
    state = torch.get_rng_state()
    resize_model("builtin", 5, tmp_path / "deep")
    assert torch.equal(torch.get_rng_state(), state)
    deep, base = load_causal_lm(tmp_path / "deep"), load_causal_lm(MODEL_PATH)
    ids = torch.arange(20).reshape(2, 10) * 7
    assert deep.config.num_hidden_layers == 5
    torch.testing.assert_close(deep(ids).logits, base(ids).logits, rtol=0, atol=1e-6)


def test_frozen_layers_do_not_learn():
    model = load_causal_lm(MODEL_PATH)
    freeze_first_layers(model, 2)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.startswith(("model.layers.2.", "model.norm", "lm_head")) for name in learning)
    with pytest.raises(ValueError, match=r"freeze=4: allowed is 0\.\.3"):
        freeze_first_layers(model, 4)


@pytest.mark.parametrize(("kind", "config"), [(GPT2Model, GPT2Config), (BertModel, BertConfig), (OPTModel, OPTConfig)])
def test_all_embeddings_are_frozen_with_the_first_layers(kind, config):
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}
    size |= {"word_embed_proj_dim": 8, "ffn_dim": 8} if kind is OPTModel else {}
    model = kind(config(**size, intermediate_size=8, max_position_embeddings=16))
    freeze_first_layers(model, 1)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name in learning if re.search(r"embed|wte|wpe", name)]
    assert {name for name in learning if ".1." in name} == {
        name for name, _ in model.named_parameters() if ".1." in name
    }
    assert not [name for name in learning if ".0." in name]
    assert kind is BertModel or any("norm" in name or "ln_f" in name for name in learning)  # what comes last learns
