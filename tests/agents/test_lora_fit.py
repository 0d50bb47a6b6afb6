"""Supervised training with an adapter, and PPO with one behind it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from agents.lora_tools import helpful_env, lora_config
from agents.rlhf.fit_tools import Stops, pair_file, weights
from cli_tools import run
from textgym_agents import make_agent
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings
from textgym_agents.rlhf.sft import train_sft

from textgym.interrupts import TrainingInterrupted
from textgym.lm.causal import load_causal_lm
from textgym.task import make_reference
from textgym.world import MODEL_PATH

peft = pytest.importorskip("peft")


@pytest.mark.long
def test_sft_with_lora_then_ppo_with_lora_begins_at_a_kl_of_0(capsys, tmp_path):
    pair_file(tmp_path / "pairs.jsonl")
    words = ("--epochs", "2", "--batch", "8", "--micro-batches", "2", "--device", "cpu", "--lora-rank", "4")
    out = tmp_path / "sft"
    assert run(capsys, "sft", "--data", str(tmp_path / "pairs.jsonl"), *words, "--out", str(out))[0] == 0
    result = json.loads((out / "result.json").read_text())
    assert result["after"]["eval/loss"] < result["before"]["eval/loss"]
    kept = []
    for name in ("model", "adapter"):  # merged, and as the adapter alone
        env = helpful_env(reference=str(out / name))
        agent = make_agent("lm-ppo", env, lora_config(batch=8, lora_rank=4))
        assert agent.reference.model is agent.policy.model
        rows = []
        agent.learn(env, 8, rows.append)
        assert abs(rows[0]["objective/kl"]) < 1e-5
        observation, _ = env.reset(seed=3)
        kept.append(agent.reference.log_probs(observation))
        base = make_reference(env.unwrapped.task, device="cpu").log_probs(observation)
        np.testing.assert_allclose(kept[-1], base, atol=1e-4)
    np.testing.assert_allclose(kept[0], kept[1], atol=1e-4)
    start = make_reference(helpful_env().unwrapped.task).log_probs(observation)
    assert np.abs(np.exp(kept[0]) - np.exp(start)).max() > 1e-3


@pytest.mark.long
def test_interrupted_sft_with_lora_ends_with_the_same_weights(tmp_path):
    plan = SFTSettings(
        pair_file(tmp_path / "pairs.jsonl"), lora_rank=2, batch=8, micro_batches=2, epochs=2, save_every=3, device="cpu"
    )
    train_sft(plan, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted):
        train_sft(plan, tmp_path / "cut", Stops(4))
    (kept,) = (tmp_path / "cut" / "checkpoints").rglob("tensors.safetensors")
    assert kept.stat().st_size < (tmp_path / "whole" / "model" / "model.safetensors").stat().st_size / 2
    train_sft(plan, tmp_path / "cut", resume=True)
    assert weights(tmp_path / "cut" / "model") == weights(tmp_path / "whole" / "model")


@pytest.mark.long
@pytest.mark.slow
def test_a_reward_model_with_lora_learns_and_loads_as_any_other(capsys, tmp_path):
    from textgym.lm.scoring import load_reward_model

    pair_file(tmp_path / "pairs.jsonl")
    words = ("--epochs", "6", "--batch", "8", "--micro-batches", "2", "--device", "cpu", "--lora-rank", "4")
    out = tmp_path / "rm"
    code = run(capsys, "reward-model", "--data", str(tmp_path / "pairs.jsonl"), *words, "--out", str(out))[0]
    assert code == 0
    result = json.loads((out / "result.json").read_text())
    assert result["after"]["eval/log_loss"] < result["before"]["eval/log_loss"]
    model, _ = load_reward_model(out / "model")
    assert not [name for name in model.state_dict() if "lora" in name]
    assert model.score.weight.abs().max() > 0
    base = load_causal_lm(MODEL_PATH).model.layers[0].self_attn.q_proj.weight
    assert (model.model.layers[0].self_attn.q_proj.weight - base).abs().max() > 1e-5  # the head is not all that learned


@pytest.mark.long
def test_every_layer_of_a_new_head_is_trained_beside_the_adapter(tmp_path):
    from safetensors.numpy import load_file
    from textgym_agents.rlhf.reward_model import train_reward_model
    from transformers import RobertaConfig, RobertaModel

    size = json.loads((MODEL_PATH / "config.json").read_text())["vocab_size"]
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    RobertaModel(RobertaConfig(vocab_size=size, **config), add_pooling_layer=False).save_pretrained(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(MODEL_PATH / name, tmp_path / "base" / name)
    found = []
    for number, rate in enumerate((1e-9, 1e-2)):
        options = {"base": str(tmp_path / "base"), "batch": 8, "epochs": 1, "device": "cpu", "learning_rate": rate}
        settings = RewardModelSettings(
            pair_file(tmp_path / "pairs.jsonl", 16), **options, lora_rank=2, lora_targets="query,value"
        )
        train_reward_model(settings, tmp_path / f"run-{number}")
        found.append(load_file(tmp_path / f"run-{number}" / "model" / "model.safetensors"))
    moved = {name for name, tensor in found[0].items() if np.abs(tensor - found[1][name]).max() > 1e-4}
    assert {"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight"} <= moved
    assert not [name for name in moved if "embeddings" in name]
