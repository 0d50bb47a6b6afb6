"""Agents with an adapter: what is saved, resumed after a kill, and exported as a plain model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agents.lora_tools import helpful_env, lora_config, plain_logits
from cli_tools import assert_one_line, environment, run
from lm.tiny_models import tiny_llama
from textgym_agents import load_agent, make_agent
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.lm.checkpoint import export_model
from textgym_agents.lm.start import fingerprint

peft = pytest.importorskip("peft")


@pytest.mark.slow
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
    config = json.loads((tmp_path / "agent" / "model" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    base = config["base_model_name_or_path"]
    read = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "agent" / "model")).eval()
    assert Path(base).is_dir()
    torch.testing.assert_close(plain_logits(read), plain_logits(load_agent(tmp_path / "agent", env).policy.model))


@pytest.mark.long
def test_an_adapter_is_refused_over_other_weights(task, env, tmp_path):
    tiny_llama(4).save_pretrained(tmp_path / "base")
    agent = LMPPO(task, lora_config(model=str(tmp_path / "base")))
    agent.save(tmp_path / "agent")
    LMPPO.load(tmp_path / "agent", env)
    tiny_llama(4, seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="not those that this agent started from"):
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
    changed = fingerprint(model)
    with torch.no_grad():
        weight[:] = weight.flip(0)
    assert fingerprint(model) != changed
    trained = tiny_llama(4)
    assert fingerprint(trained) == fingerprint(tiny_llama(5))  # nothing of them lies frozen
    assert fingerprint(trained, whole=True) == fingerprint(tiny_llama(4), whole=True)
    assert fingerprint(trained, whole=True) != fingerprint(tiny_llama(5), whole=True)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2])
def test_an_exported_model_says_what_the_policy_says(capsys, tmp_path, rank):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    env = helpful_env()
    agent = make_agent("lm-ppo", env, lora_config(batch=8, lora_rank=rank))
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    code, out, _ = run(capsys, "export", str(tmp_path / "agent"), "--out", str(tmp_path / "plain"))
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
    again = run(capsys, "export", str(tmp_path / "agent"), "--out", str(tmp_path / "plain"))
    assert_one_line(*again[::2], "it exists; allowed is a new folder")
    make_agent("random", env).save(tmp_path / "random")
    assert_one_line(
        *run(capsys, "export", str(tmp_path / "random"), "--out", str(tmp_path / "no"))[::2],
        "agent 'random' has no language model",
    )


# Killed

KILLED = """
import os, signal
from textgym_agents import load_agent, make_agent, make_env
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
@pytest.mark.long
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    # The callback runs before the counters are written, so the first checkpoint has one iteration behind it.
    def code(name, done, kill):
        return f"folder, done, kill = {str(tmp_path / name)!r}, {done}, {kill}\n{KILLED}"

    child = subprocess.run([sys.executable, "-c", code("cut", 0, True)], env=environment(), check=False)
    assert child.returncode == -signal.SIGKILL
    head = json.loads((tmp_path / "cut" / "agent.json").read_text())
    assert head["state"]["iteration"] == 1
    for name, done in (("cut", 8), ("whole", 0)):
        exec(code(name, done, False), {})
    for file in ("model/adapter_model.safetensors", "tensors.safetensors"):
        cut, whole = ((tmp_path / name / file).read_bytes() for name in ("cut", "whole"))
        assert cut == whole, file
