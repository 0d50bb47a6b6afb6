"""LoRA by settings: the reference is the policy without its adapter; what is held, saved, resumed and exported."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.rlhf.fit_tools import pair_file
from cli_tools import assert_one_line, environment, run
from lm.tiny_models import tiny_gpt2, tiny_llama
from textgym_agents import load_agent, make_agent, make_env
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.export import export_model
from textgym_agents.lm.start import fingerprint
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings

from textgym import TokenVectorEnv, make_task
from textgym.evaluate import evaluate
from textgym.task import make_reference

peft = pytest.importorskip("peft")
IDS = torch.tensor([[0, 1, 2, 3, 1, 0]])


def lora_config(**changes):
    settings = {"batch": 16, "device": "cpu", "minibatches": 1, "lora_rank": 2, "learning_rate": 0.01}
    return LMPPOConfig(**{**settings, **changes})


def helpful_env(count=8, **options):
    return make_env("textgym/Helpful-v0", count, max_new_tokens=8, **options)


def plain_logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_adapter_alone_is_trained_and_the_reference_is_the_model_under_it(task, env, make):
    agent = LMPPO(task, lora_config(), model=make(4))
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    rows = []
    agent.learn(env, 16, rows.append)
    assert abs(rows[0]["objective/kl"]) < 1e-5
    agent.learn(env, 16, rows.append)
    assert rows[1]["objective/kl"] > 1e-4
    changed = {name for name, tensor in agent.policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("lora_B" in name for name in changed)
    assert all("lora_" in name or name.startswith("value_head") for name in changed)
    # The plain model, which the agent never saw again, is the independent word on what the reference says.
    where = (torch.zeros(5, dtype=torch.int64), torch.arange(5))
    with torch.no_grad():
        logits = agent.reference.states(IDS, *where)[0]
        own = agent.policy.states(IDS, *where)[0]
    torch.testing.assert_close(logits, plain_logits(make(4))[0, :5], atol=1e-4, rtol=1e-4)
    assert (own - logits).abs().max() > 1e-3


def test_policy_and_reference_are_one_module_and_say_the_same_at_the_start(task):
    agent = LMPPO(task, lora_config(), model=tiny_llama(4))
    assert agent.reference.model is agent.policy.model
    assert [name for name, _ in agent.reference.named_parameters()] == ["value_head.weight", "value_head.bias"]
    where = (torch.zeros(5, dtype=torch.int64), torch.arange(5))
    with torch.no_grad():
        assert torch.equal(agent.policy.states(IDS, *where)[0], agent.reference.states(IDS, *where)[0])


def test_the_caches_of_policy_and_reference_are_their_own(task, env):
    agent = LMPPO(task, lora_config(), model=tiny_llama(4))
    agent.learn(env, 32)
    observation, _ = env.reset(seed=0)
    while True:  # asked in turns, as by an evaluation
        for lm in (agent.policy, agent.reference):
            lengths = np.count_nonzero(observation["attention_mask"], axis=1)
            ids, rows = torch.tensor(observation["input_ids"]), torch.arange(len(lengths))
            with torch.no_grad():
                want = lm.states(ids, rows, torch.tensor(lengths - 1))[0].log_softmax(-1)
            np.testing.assert_allclose(lm.log_probs(observation), want.numpy(), atol=1e-4)
        observation, _, ended, _, _ = env.step(agent.act(observation))
        if ended.all():
            break


def test_an_adapter_of_the_start_is_merged_and_belongs_to_the_reference(task, env, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    given = peft.get_peft_model(tiny_llama(4), config).eval()
    want = plain_logits(given)
    agent = LMPPO(task, lora_config(), model=given)
    assert torch.equal(plain_logits(given), want)
    where = (torch.zeros(5, dtype=torch.int64), torch.arange(5))
    with torch.no_grad():
        torch.testing.assert_close(agent.reference.states(IDS, *where)[0], want[0, :5], atol=1e-4, rtol=1e-4)
    rows = []
    agent.learn(env, 16, rows.append)
    assert abs(rows[0]["objective/kl"]) < 1e-5
    agent.save(tmp_path / "agent")
    assert (tmp_path / "agent" / "base").is_dir()  # merged, it is nowhere else
    resumed = LMPPO.load(tmp_path / "agent", env)
    for each in (agent, resumed):
        each.learn(env, 16)
    for name, tensor in resumed.policy.state_dict().items():
        assert torch.equal(tensor, agent.policy.state_dict()[name]), name


def test_a_checkpoint_is_the_adapter_and_goes_on_bit_for_bit(tmp_path):
    env = helpful_env()
    agent = make_agent("lm-ppo", env, lora_config(batch=8))
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == [
        "agent.json",
        "model",
        "tensors.safetensors",
    ]
    size = sum(path.stat().st_size for path in (tmp_path / "agent").rglob("*"))
    assert size < sum(p.nbytes for p in agent.policy.model.parameters()) / 2
    resumed = load_agent(tmp_path / "agent", env)
    assert resumed.config == agent.config
    assert resumed.own_reference() is None
    for each in (agent, resumed):
        each.learn(env, 8)
    for name, tensor in resumed.policy.state_dict().items():
        assert torch.equal(tensor, agent.policy.state_dict()[name]), name
    base = json.loads((tmp_path / "agent" / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    read = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "agent" / "model")).eval()
    assert Path(base).is_dir()
    torch.testing.assert_close(plain_logits(read), plain_logits(load_agent(tmp_path / "agent", env).policy.model))


def test_an_adapter_is_refused_over_other_weights(task, env, tmp_path):
    tiny_llama(4).save_pretrained(tmp_path / "base")
    agent = LMPPO(task, lora_config(model=str(tmp_path / "base")))
    agent.save(tmp_path / "agent")
    LMPPO.load(tmp_path / "agent", env)
    tiny_llama(4, seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="not those that the adapter was trained on"):
        LMPPO.load(tmp_path / "agent", env)
    with pytest.raises(ValueError, match="not those that the adapter was trained on"):
        export_model(tmp_path / "agent", tmp_path / "out")


def test_a_digest_sees_any_change_of_what_is_frozen():
    model = tiny_llama(4).requires_grad_(False)
    before = fingerprint(model)
    assert fingerprint(tiny_llama(4).requires_grad_(False)) == before
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(math.inf))
    assert fingerprint(model) != before


@pytest.mark.parametrize("rank", [None, 2])
def test_an_exported_model_says_what_the_policy_says(capsys, tmp_path, rank):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    env = helpful_env()
    agent = make_agent("lm-ppo", env, lora_config(batch=8, lora_rank=rank))
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    code, out, _ = run(capsys, "export-model", str(tmp_path / "agent"), "--out", str(tmp_path / "plain"))
    assert code == 0
    assert ("adapter merged" in out) == (rank is not None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("a good answer")["input_ids"]
    observation, _ = env.reset(seed=1)
    allowed = torch.tensor(env.unwrapped.task.vocabulary.allowed)
    got = agent.log_probs(observation)
    for row, mask, own in zip(observation["input_ids"], observation["attention_mask"], got, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row[None, : mask.sum()])).logits[0, -1]
        want = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        np.testing.assert_allclose(own[allowed], want[allowed], atol=1e-5)
    again = run(capsys, "export-model", str(tmp_path / "agent"), "--out", str(tmp_path / "plain"))
    assert_one_line(*again[::2], "it exists; allowed is a new folder")
    make_agent("random", env).save(tmp_path / "random")
    assert_one_line(
        *run(capsys, "export-model", str(tmp_path / "random"), "--out", str(tmp_path / "no"))[::2],
        "agent 'random' has no language model",
    )


def test_bfloat16_keeps_the_frozen_weights_in_it_and_trains_in_float32(tmp_path):
    env = helpful_env()
    agent = make_agent("lm-ppo", env, lora_config(batch=8, precision="bfloat16"))
    types = {p.dtype for p in agent.policy.model.parameters() if p.requires_grad}
    assert types == {torch.float32}
    assert {p.dtype for p in agent.policy.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {b.dtype for n, b in agent.policy.model.named_buffers() if "inv_freq" in n} == {torch.float32}
    rows = []
    agent.learn(env, 8, rows.append)
    assert abs(rows[0]["objective/kl"]) < 0.01
    agent.save(tmp_path / "agent")
    resumed = load_agent(tmp_path / "agent", env)
    assert resumed.own_reference() is resumed.reference  # the task's is another, in float32
    for each in (agent, resumed):
        each.learn(env, 8)
    for name, tensor in resumed.policy.state_dict().items():
        assert torch.equal(tensor, agent.policy.state_dict()[name]), name


def test_a_reference_in_bfloat16_is_half_as_large_and_stays(task, env):
    agent = LMPPO(task, lora_config(lora_rank=None, reference_precision="bfloat16"), model=tiny_llama(4))
    assert {p.dtype for p in agent.reference.model.parameters()} == {torch.bfloat16}
    before = [p.clone() for p in agent.reference.model.parameters()]
    rows = []
    agent.learn(env, 16, rows.append)
    assert 0 < abs(rows[0]["objective/kl"]) < 0.02
    assert all(torch.equal(a, b) for a, b in zip(before, agent.reference.model.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("kl", ["exact", "k1"])
def test_a_reference_on_another_device_gives_the_same_rollout(task, env, kl):
    config = lora_config(lora_rank=None, reference_device="cpu", device="cuda", kl=kl)
    rows = []
    LMPPO(task, config, model=tiny_llama(4)).learn(env, 32, rows.append)
    here = []
    LMPPO(task, lora_config(lora_rank=None, device="cuda", kl=kl), model=tiny_llama(4)).learn(env, 32, here.append)
    assert rows[0]["objective/kl"] == pytest.approx(here[0]["objective/kl"], abs=1e-4)
    assert rows[1]["objective/kl"] == pytest.approx(here[1]["objective/kl"], rel=1e-2)


# One model in memory


def test_the_task_and_the_agent_have_one_reference(tmp_path):
    env = helpful_env()
    task = env.unwrapped.task
    agent = make_agent("lm-ppo", env, lora_config(batch=8, lora_rank=None))
    assert make_reference(task, device="cpu").model is agent.reference.model
    assert agent.policy.model is not agent.reference.model
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    assert load_agent(tmp_path / "agent", env).reference.model is agent.reference.model
    adapted = make_agent("lm-ppo", env, lora_config(batch=8))
    places = {p.data_ptr() for p in make_reference(task, device="cpu").model.parameters()}
    frozen = [p for p in adapted.policy.model.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in frozen} == places


def test_a_folder_that_has_changed_is_loaded_again(tmp_path):
    from textgym.lm.causal import shared_causal_lm

    tiny_llama(4).save_pretrained(tmp_path)
    first = shared_causal_lm(tmp_path, torch.device("cpu"))
    assert shared_causal_lm(str(tmp_path), torch.device("cpu")) is first
    time.sleep(0.01)
    tiny_llama(4, seed=1).save_pretrained(tmp_path)
    second = shared_causal_lm(tmp_path, torch.device("cpu"))
    assert torch.equal(second.lm_head.weight, tiny_llama(4, seed=1).lm_head.weight)
    assert torch.equal(first.lm_head.weight, tiny_llama(4).lm_head.weight)


def test_frozen_parameters_of_a_given_model_are_shared_with_the_reference(task):
    model = tiny_llama(4)
    model.model.embed_tokens.requires_grad_(False)
    agent = LMPPO(task, lora_config(lora_rank=None), model=model)
    own, base = agent.policy.model.model, agent.reference.model.model
    assert own.embed_tokens.weight is base.embed_tokens.weight
    assert own.embed_tokens.weight is not model.model.embed_tokens.weight
    assert own.norm.weight is not base.norm.weight


def qwen_folder(path):
    """A random model of Qwen2's shape, 21 million parameters, whose output layer is its embedding."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=256,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(path)
    return sum(parameter.nbytes for parameter in model.parameters())


def alive_bytes():
    """Bytes of all tensors that anything holds, gradients among them, each storage once."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
    storages = [each.untyped_storage() for each in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 5.1), ({"reference_precision": "bfloat16"}, 4.6), ({"lora_rank": 8}, 1.1)],
)
def test_the_weights_that_are_held(tmp_path, settings, most):
    size = qwen_folder(tmp_path)
    options = {"prompts": ["a b"], "tokenizer": [f"w{n}" for n in range(254)] + ["a", "b"], "max_new_tokens": 3}
    task = make_task("Text", reward="length", reference=str(tmp_path), beta=0.1, **options)
    env = TokenVectorEnv(task, 2, autoreset_mode="Disabled")
    before = alive_bytes()
    agent = make_agent("lm-ppo", env, batch=2, minibatches=1, epochs=1, device="cpu", **settings)
    agent.learn(env, 2)
    reference = agent.own_reference() or make_reference(task, device="cpu")
    evaluate(agent, task, reference, per_prompt=1)
    assert agent.policy.value_head.weight.grad is not None
    share = (alive_bytes() - before) / size
    print(f"{settings}: {share:.3f} times the model's {size / 2**20:.0f} MiB")
    assert 1 <= share <= most


# Supervised training


@pytest.mark.slow
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


# Killed

CHILD = """
import os, signal, sys
from textgym_agents import load_agent, make_agent, make_env
folder, done, kill = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "kill"
env = make_env("textgym/Helpful-v0", 8, max_new_tokens=8)
settings = dict(batch=8, device="cpu", minibatches=2, learning_rate=0.01, lora_rank=2, schedule="constant")
agent = load_agent(folder, env) if done else make_agent("lm-ppo", env, **settings)
agent.budget = 24
def after(row):
    agent.save(folder) if row["iteration"] == 1 else None
    if kill and row["iteration"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
agent.learn(env, 24 - done, after)
agent.save(folder)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a POSIX signal")
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    # The callback runs before the counters are written, so the first checkpoint has one iteration behind it.
    def child(name, done, kill):
        words = [sys.executable, "-c", CHILD, str(tmp_path / name), str(done), kill]
        return subprocess.run(words, env=environment(), check=False, capture_output=True, text=True)

    assert child("cut", 0, "kill").returncode == -signal.SIGKILL
    head = json.loads((tmp_path / "cut" / "agent.json").read_text())
    assert head["state"]["iteration"] == 1
    for name, done in (("cut", 8), ("whole", 0)):
        made = child(name, done, "live")
        assert made.returncode == 0, made.stderr
    for file in ("model/adapter_model.safetensors", "tensors.safetensors"):
        cut, whole = ((tmp_path / name / file).read_bytes() for name in ("cut", "whole"))
        assert cut == whole, file


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 0}, "lora_rank=0: allowed is an integer >= 1"),
        ({"lora_rank": 2, "lora_alpha": -1.0}, "lora_alpha=-1.0"),
        ({"lora_targets": "q_proj"}, "lora_targets='q_proj': allowed is 'all-linear' without lora_rank"),
        ({"lora_rank": 2, "lora_targets": "q_proj,,"}, "lora_targets='q_proj,,'"),
        ({"lora_rank": 2, "reference_precision": "bfloat16"}, "reference_precision='bfloat16'.*with lora_rank"),
        ({"lora_rank": 2, "reference_device": "cpu"}, "reference_device='cpu'.*with lora_rank"),
        ({"reference_precision": "float16"}, "reference_precision='float16'"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LMPPOConfig(**settings)


def test_settings_of_supervised_training_are_checked_too():
    with pytest.raises(ValueError, match="lora_alpha=8.0: allowed is 16.0 without lora_rank"):
        SFTSettings(data="x.jsonl", lora_alpha=8.0)
    with pytest.raises(ValueError, match="freeze=1: allowed is 0 with lora_rank"):
        RewardModelSettings(data="x.jsonl", lora_rank=2, freeze=1)


def test_unknown_layers_are_named_with_those_there_are(task):
    with pytest.raises(ValueError, match="lora_targets='c_attn': LlamaForCausalLM has no such layers.*q_proj"):
        LMPPO(task, lora_config(lora_targets="c_attn"), model=tiny_llama(4))


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lora_rank=2 needs peft.*textgym\[lora\]"):
        lora_config()
