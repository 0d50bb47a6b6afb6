"""PEFT models: the adapter is trained, saved with its base, and goes on being trained."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lm.tiny_models import tiny_gpt2, tiny_llama
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig

peft = pytest.importorskip("peft")


def adapted(make):
    names = ["c_attn"] if make is tiny_gpt2 else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM", lora_dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(make(4), config)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_an_adapter_resumes_trainable_and_goes_on_bit_for_bit(task, env, tmp_path, make, checkpointing):
    config = LMPPOConfig(
        batch=16, device="cpu", minibatches=1, learning_rate=0.01, gradient_checkpointing=checkpointing
    )
    whole = LMPPO(task, config, model=adapted(make))
    before = copy.deepcopy(whole.policy.state_dict())
    whole.learn(env, 16)
    whole.save(tmp_path / "agent")
    resumed = LMPPO.load(tmp_path / "agent", env)
    trained = {name for name, p in resumed.policy.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in whole.policy.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"value_head.weight", "value_head.bias"}
    assert not any(p.requires_grad for p in resumed.reference.parameters())
    for agent in (whole, resumed):
        agent.learn(env, 16)
    after = whole.policy.state_dict()
    for name, tensor in resumed.policy.state_dict().items():
        assert torch.equal(tensor, after[name]), name
        assert ("lora_" in name or "value_head" in name) or torch.equal(tensor, before[name]), name
    assert any(not torch.equal(after[name], before[name]) for name in after if "lora_" in name)
    observation, _ = env.reset(seed=3)
    np.testing.assert_array_equal(resumed.log_probs(observation), whole.log_probs(observation))


@pytest.mark.slow
def test_the_saved_adapter_and_base_are_those_that_peft_reads(task, env, tmp_path):
    agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu", minibatches=1), model=adapted(tiny_llama))
    agent.learn(env, 16)
    agent.save(tmp_path / "agent")
    base = type(tiny_llama(4)).from_pretrained(tmp_path / "agent" / "base")
    for name, tensor in tiny_llama(4).state_dict().items():
        assert torch.equal(tensor, base.state_dict()[name]), name
    model = peft.PeftModel.from_pretrained(base, str(tmp_path / "agent" / "model")).eval()
    ids = torch.tensor([[0, 1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, agent.policy.model(ids).logits)


def test_acting_by_the_cache_has_the_positions_of_the_plain_forward(task, env):
    agent = LMPPO(task, LMPPOConfig(batch=16, device="cpu"), model=adapted(tiny_gpt2))
    observation, _ = env.reset(seed=0)
    while True:
        acted = agent.log_probs(observation)
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        ids, rows = torch.tensor(observation["input_ids"]), torch.arange(len(lengths))
        with torch.no_grad():
            logits, _ = agent.policy.states(ids, rows, torch.tensor(lengths - 1))
        np.testing.assert_allclose(acted, logits.log_softmax(-1).numpy(), atol=1e-4)
        observation, _, ended, _, _ = env.step(acted.argmax(1))
        if ended.all():
            break


@pytest.mark.slow
def test_the_example_of_the_page_of_algorithms_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?get_peft_model.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "algorithms.md", "exec"), {})
    assert {"model", "base", "reference"} <= {path.name for path in (tmp_path / "runs" / "adapter").iterdir()}


@pytest.mark.slow
def test_an_adapter_folder_is_a_model_to_start_from(task, env, tmp_path):
    tiny_llama(4).save_pretrained(tmp_path / "base")
    base = type(tiny_llama(4)).from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    settings = LMPPOConfig(batch=16, device="cpu", minibatches=1, model=str(tmp_path / "adapter"))
    agent = LMPPO(task, settings)
    ids = torch.tensor([[0, 1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(agent.policy.model(ids).logits, model.eval()(ids).logits)
    trained = {name for name, p in agent.policy.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in agent.policy.model.named_parameters() if "lora_" in name}
    before = copy.deepcopy(agent.policy.state_dict())
    agent.learn(env, 16)
    moved = {name for name, tensor in agent.policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("lora_" in name for name in moved)
    assert not [name for name in moved if "lora_" not in name and "value_head" not in name]


def two_adapters():
    model = adapted(tiny_llama)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    return model


def prompt_tuned():
    config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    return peft.get_peft_model(tiny_llama(4), config)


@pytest.mark.parametrize(
    ("make", "message"),
    [(two_adapters, r"adapters \['default', 'second'\]; allowed is one"), (prompt_tuned, "PROMPT_TUNING")],
)
def test_an_adapter_that_could_not_be_loaded_again_is_refused_at_once(task, make, message):
    with pytest.raises(ValueError, match=f"model: .*{message}"):
        LMPPO(task, LMPPOConfig(batch=16, device="cpu"), model=make())
