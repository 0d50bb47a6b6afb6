"""LoRA by settings: the adapter is trained, the reference is the policy without it; what is refused."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from agents.lora_tools import IDS, helpful_env, lora_config, plain_logits
from lm.tiny_models import tiny_gpt2, tiny_llama
from lm.zoo import zoo_model
from textgym_agents import load_agent, make_agent
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.lora import add_lora, merged
from textgym_agents.model_settings import LoRASettings
from textgym_agents.registry import agent_class, make_config
from textgym_agents.rlhf.settings import RewardModelSettings, SFTSettings

peft = pytest.importorskip("peft")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_copy_of_an_agent_is_whole(task, env):
    agent = LMPPO(task, lora_config(), model=tiny_llama(4))
    other = copy.deepcopy(agent)
    assert other.reference.model is other.policy.model
    other.learn(env, 32)
    assert torch.equal(plain_logits(agent.policy.model), plain_logits(tiny_llama(4)))
    where = (torch.zeros(5, dtype=torch.int64), torch.arange(5))
    with torch.no_grad():
        logits = other.reference.states(IDS, *where)[0]
    torch.testing.assert_close(logits, plain_logits(tiny_llama(4))[0, :5], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alphazero", "dpo", "grpo", "rejection", "soft-q", "vine-ppo"])
def test_other_agents_train_the_adapter_too(task, env, name):
    settings = {"batch": 16, "device": "cpu", "lora_rank": 2} | ({"simulations": 4} if name == "alphazero" else {})
    kind = agent_class(name)
    agent = kind(task, make_config(kind, settings), model=tiny_llama(4))
    rows = []
    agent.learn(env, 32, rows.append)
    changed = [p for name, p in agent.policy.named_parameters() if "lora_B" in name and bool((p != 0).any())]
    assert changed
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert not any(p.requires_grad for name, p in agent.policy.named_parameters() if "base_layer" in name)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.long
@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 0}, "lora_rank=0: allowed is an integer in 1"),
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
    with pytest.raises(ValueError, match=r"lora_alpha=8\.0: allowed is 16.0 without lora_rank"):
        SFTSettings(data="x.jsonl", lora_alpha=8.0)
    with pytest.raises(ValueError, match="freeze=1: allowed is 0 with lora_rank"):
        RewardModelSettings(data="x.jsonl", lora_rank=2, freeze=1)


def test_unknown_layers_are_named_with_those_there_are(task):
    with pytest.raises(ValueError, match=r"lora_targets='c_attn': LlamaForCausalLM has no such layers.*q_proj"):
        LMPPO(task, lora_config(lora_targets="c_attn"), model=tiny_llama(4))


DENSE = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mamba", {"in_proj", "x_proj"}),
        ("mamba2", {"in_proj"}),
        ("jamba", {"q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "x_proj", "out_proj", *DENSE}),
    ],
)
def test_all_linear_leaves_out_what_gets_no_adapter(kind, ends):
    model = zoo_model(kind)
    adapted = add_lora(model, LoRASettings(lora_rank=2), 0)
    found = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    assert found == ends
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator)
        want = plain_logits(adapted)
        assert (want - plain_logits(zoo_model(kind))).abs().max() > 1e-3
        torch.testing.assert_close(plain_logits(merged(adapted)), want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (
            "gate_proj,up_proj,down_proj",
            "in the parameter '(gate_up|down)_proj', not in .*; allowed .* k_proj",
        ),
        ("up_proj", "allowed are .* k_proj, .*also targeting gate_proj"),
    ],
)
def test_experts_get_no_adapter(targets, reason):
    with pytest.raises(ValueError, match=rf"lora_targets='{targets}': Qwen3MoeForCausalLM .*{reason}"):
        add_lora(zoo_model("qwen3_moe"), LoRASettings(lora_rank=2, lora_targets=targets), 0)


@pytest.mark.parametrize(("targets", "other"), [("lm_head", "embed_tokens"), ("q_proj,embed_tokens", "lm_head")])
def test_weights_that_two_layers_share_get_no_adapter(task, targets, other):
    tied = tiny_llama(4, tied=True)
    with pytest.raises(
        ValueError, match=rf"lora_targets='{targets}': LlamaForCausalLM uses the same weights in .*{other}"
    ):
        LMPPO(task, lora_config(lora_targets=targets), model=tied)
    LMPPO(task, lora_config(lora_targets=targets), model=tiny_llama(4))


def test_a_tiny_model_that_stands_for_a_table_gets_no_adapter(task):
    # Its output layer may be 0: nothing below it would ever have a gradient.
    with pytest.raises(ValueError, match=r"lora_rank=2: the reference of task .* is no language model"):
        LMPPO(task, lora_config())


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lora_rank=2 needs peft.*textgym\[lora\]"):
        lora_config()
