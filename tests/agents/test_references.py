"""References: one module in memory for task and agent, another precision or device, and what is held in all."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.lora_tools import helpful_env, lora_config
from lm.tiny_models import tiny_llama
from textgym_agents import load_agent, make_agent
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.lm.checkpoint import export_model
from textgym_agents.lm.critic import critic_of
from textgym_agents.lm.start import fingerprint, has_fingerprint

from textgym import TokenVectorEnv, make_task
from textgym.evaluate import evaluate
from textgym.lm import checked
from textgym.task import make_reference


def test_a_reference_in_bfloat16_is_half_as_large_and_stays(task, env):
    agent = LMPPO(task, lora_config(lora_rank=None, reference_precision="bfloat16"), model=tiny_llama(4))
    assert {p.dtype for p in agent.reference.model.parameters()} == {torch.bfloat16}
    before = [p.clone() for p in agent.reference.model.parameters()]
    rows = []
    agent.learn(env, 16, rows.append)
    assert 0 < abs(rows[0]["objective/kl"]) < 0.02
    assert all(torch.equal(a, b) for a, b in zip(before, agent.reference.model.parameters(), strict=True))


@pytest.mark.parametrize(("precision", "again"), [("float32", False), ("bfloat16", True)])
def test_a_reference_of_the_same_bits_is_not_compared_with_its_plain_forward_again(task, monkeypatch, precision, again):
    compared, find = [], checked._find_way
    monkeypatch.setattr(checked, "_find_way", lambda model, *rest: compared.append(model) or find(model, *rest))
    agent = LMPPO(task, lora_config(lora_rank=None, reference_precision=precision), model=tiny_llama(4))
    assert compared[0] is agent.policy.model
    assert any(model is agent.reference.model for model in compared) == again
    ways = [(type(each.backbone), each.backbone.by_pieces) for each in (agent.reference, agent.policy)]
    assert again or ways[0] == ways[1]


DEVICES = [
    pytest.param(
        "cpu", "cpu:0"
    ),  # torch takes them for two, so the way of two devices is gone; only CUDA tells what stays behind
    pytest.param("cuda", "cpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
]


@pytest.mark.parametrize("kl", ["exact", "k1"])
@pytest.mark.parametrize(("device", "other"), DEVICES)
def test_a_reference_on_another_device_says_the_same(task, env, device, other, kl):
    found = []
    for place in (None, other):
        config = lora_config(lora_rank=None, device=device, reference_device=place, kl=kl)
        agent = LMPPO(task, config, model=tiny_llama(4))
        assert next(agent.reference.model.parameters()).device.type == torch.device(place or device).type
        rows = []
        agent.learn(env, 32, rows.append)
        observation, _ = env.reset(seed=0)
        branched = critic_of(agent)(observation, None)
        found.append([rows[1]["objective/kl"], *agent.reference.log_probs(observation).ravel(), *branched])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_a_named_reference_on_another_device_is_not_the_task_s(tmp_path):
    env = helpful_env()
    settings = {"lora_rank": None, "batch": 8, "reference_device": "cpu:0", "reference_precision": "bfloat16"}
    agent = make_agent("lm-ppo", env, lora_config(**settings))
    assert agent.own_reference() is agent.reference
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    resumed = load_agent(tmp_path / "agent", env)
    for mine, theirs in zip(resumed.reference.model.parameters(), agent.reference.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == torch.bfloat16


@pytest.mark.slow
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


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 5.1),
        ({"reference_precision": "bfloat16"}, 4.6),
        ({"lora_rank": 8}, 1.1),
    ],
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


# Left out of checkpoints


def write_base(folder: Path) -> Path:
    tiny_llama(4).save_pretrained(folder)
    return folder


def head_of(folder):
    return json.loads((folder / "agent.json").read_text())


def named_agent(task, env, model, folder):
    """Save an agent that has learned from a model that has a folder."""
    agent = LMPPO(task, lora_config(lora_rank=None, model=str(model)))
    agent.learn(env, 16)
    agent.save(folder)
    return agent


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.slow
def test_a_checkpoint_names_the_task_s_reference_and_goes_on_bit_for_bit(tmp_path):
    env = helpful_env()
    agent = make_agent("lm-ppo", env, lora_config(batch=8, lora_rank=None))
    agent.learn(env, 8)
    agent.save(tmp_path / "agent")
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == [
        "agent.json",
        "model",
        "tensors.safetensors",
    ]
    state = head_of(tmp_path / "agent")["state"]
    assert state["reference"] == "builtin"  # no path, so that it is found on another machine too
    assert state["start"] == fingerprint(agent.reference.model, whole=True)
    size = sum(path.stat().st_size for path in (tmp_path / "agent").rglob("*") if path.is_file())
    weights = sum(p.nbytes for p in agent.policy.model.parameters())
    assert 3 * weights < size < 3.1 * weights  # policy and two moments, and not the reference
    shutil.move(tmp_path / "agent", tmp_path / "elsewhere")
    resumed = load_agent(tmp_path / "elsewhere", env)
    assert same(resumed.reference.model, agent.reference.model)
    for each in (agent, resumed):
        each.learn(env, 8)
    assert same(resumed.policy, agent.policy)


@pytest.mark.slow
def test_a_start_by_a_relative_path_is_found_from_another_folder(task, env, tmp_path, monkeypatch):
    write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    agent = named_agent(task, env, "base", tmp_path / "runs" / "agent")
    assert head_of(tmp_path / "runs" / "agent")["state"]["reference"] == str((tmp_path / "base").resolve())
    monkeypatch.chdir(tmp_path / "runs")
    again = LMPPO.load("agent", env)
    assert again.config.model == "base"
    assert same(again.reference.model, agent.reference.model)
    again.save("second")
    assert LMPPO.load("second", env).own_reference() is not None


@pytest.mark.slow
def test_a_start_that_is_gone_or_changed_is_refused_in_one_line(task, env, tmp_path):
    base, folder = write_base(tmp_path / "base"), tmp_path / "agent"
    agent = named_agent(task, env, base, folder)

    def refused(problem):
        with pytest.raises(
            ValueError, match=f"^{re.escape(str(folder))}: needs .*{problem}.*; put it back there"
        ) as found:
            LMPPO.load(folder, env)
        assert str(base) in str(found.value)
        assert "\n" not in str(found.value)

    tiny_llama(4, seed=1).save_pretrained(base)
    refused("its weights are not those that this agent started from")
    model = tiny_llama(4)
    with torch.no_grad():
        model.lm_head.weight[:] = model.lm_head.weight.flip(0)  # the same entries in other places
    model.save_pretrained(base)
    refused("its weights are not those that this agent started from")
    shutil.rmtree(base)
    refused("there is no such folder")
    export_model(folder, tmp_path / "exported")  # what does not need it does without
    write_base(base)
    assert same(LMPPO.load(folder, env).policy, agent.policy)


@pytest.mark.slow
def test_a_start_that_was_moved_is_taken_from_the_task(tmp_path):
    options = {"prompts": ["a b"], "tokenizer": ["a", "b", "c", "d"], "max_new_tokens": 3, "reward": "length"}

    def env(place):
        return TokenVectorEnv(make_task("Text", reference=str(place), **options), 8, autoreset_mode="Disabled")

    size = len(TokenVectorEnv(make_task("Text", **options), 1).unwrapped.task.vocabulary.allowed)
    tiny_llama(size).save_pretrained(tmp_path / "base")
    agent = make_agent("lm-ppo", env(tmp_path / "base"), lora_config(batch=8, lora_rank=None))
    agent.save(tmp_path / "agent")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    moved = env(tmp_path / "moved")
    again = load_agent(tmp_path / "agent", moved)
    assert again.reference.model is make_reference(moved.unwrapped.task, device="cpu").model
    assert again.own_reference() is None
    again.save(tmp_path / "agent")
    assert head_of(tmp_path / "agent")["state"]["reference"] == str((tmp_path / "moved").resolve())


def test_a_start_without_a_name_is_saved(task, env, tmp_path):
    agent = LMPPO(task, lora_config(lora_rank=None), model=tiny_llama(4))
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    assert not {"reference", "start"} & head_of(tmp_path / "agent")["state"].keys()
    assert same(LMPPO.load(tmp_path / "agent", env).reference.model, agent.reference.model)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_an_older_checkpoint_has_its_reference_with_it(task, env, tmp_path, shared):
    agent = named_agent(task, env, write_base(tmp_path / "base"), tmp_path / "agent")
    agent.reference.model.save_pretrained(tmp_path / "agent" / "reference")
    head = head_of(tmp_path / "agent")
    assert head["state"].pop("reference")
    digest = head["state"].pop("start")
    if shared:
        head["state"]["start"] = fingerprint(agent.reference.model, whole=True, placed=False)
        assert head["state"]["start"] != digest
    (tmp_path / "agent" / "agent.json").write_text(json.dumps(head))
    for _ in range(2):  # with the folder that it was started from, and without
        again = LMPPO.load(tmp_path / "agent", env)
        assert same(again.reference.model, agent.reference.model)
        assert same(again.policy, agent.policy)
        shutil.rmtree(tmp_path / "base", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_is_that_of_numpy(dtype):
    model = torch.nn.Module()
    model.b = torch.nn.Parameter(torch.randn(1030, 1024, generator=torch.Generator().manual_seed(0)).to(dtype))
    model.a = torch.nn.Parameter(torch.tensor(-2.0).to(dtype))
    kind, wanted = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype], ["", ""]
    for name, shape in (("a", "()"), ("b", "(1030, 1024)")):
        bits = getattr(model, name).detach().view(kind).numpy().ravel().astype(object)
        for at, factors in enumerate((np.ones(bits.size, int), np.arange(1, bits.size + 1))):
            total = (int((bits * factors.astype(object)).sum()) + 2**63) % 2**64 - 2**63
            wanted[at] += f"{name} {shape} {dtype} {total}\n"
    older, today = (hashlib.sha256(text.encode()).hexdigest() for text in wanted)
    assert fingerprint(model) != fingerprint(model, whole=True)
    assert [fingerprint(model, whole=True, placed=placed) for placed in (False, True)] == [older, today]
    assert has_fingerprint(model, older, whole=True)
    assert has_fingerprint(model, today, whole=True)
    assert not has_fingerprint(model, None, whole=True)
