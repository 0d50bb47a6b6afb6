"""NLPO: the policy takes tokens of the nucleus of an older copy of itself, for sampling and scoring alike."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from agents.enumerated import STOP, WORDS, full_rollout, state_log_probs, tiny_agent, tiny_task, trajectories
from agents.lora_tools import adapted, lora_config
from agents.test_masks import batch_env, no_repeats
from agents.test_processors import check_gradient, moved, nucleus
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.checkpoint import export_model
from textgym_agents.lm.memory import plan_of
from textgym_agents.lm.nlpo import LearnedMask, follow
from textgym_agents.lm.rollout import collect, score_reference, token_kl
from textgym_agents.registry import agent_class, make_config

MASK = {"top_p": 1.0, "mask_top_p": 0.8}


def of_mask(agent, rollout):
    """(N, V) log-probabilities of the mask policy in a rollout's states, by a plain forward pass."""
    with torch.no_grad():
        logits = agent.policy.cut.mask_policy.model(rollout.input_ids).logits
    return torch.log_softmax(logits[torch.tensor(rollout.rows), torch.tensor(rollout.columns)], -1)


def mask_weights(agent):
    return [each.clone() for each in agent.policy.cut.mask_policy.model.parameters()]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_rollout_takes_what_the_mask_policy_keeps(seed):
    agent = moved(seed, **MASK)
    rollout = collect(batch_env(agent.task, 64), agent.policy, seed, (STOP,), True)
    kept = nucleus(of_mask(agent, rollout), 0.8)
    assert torch.equal(rollout.kept_of(slice(None)), kept)
    assert kept.gather(1, rollout.actions[:, None]).all()
    ids, places = rollout.input_ids, (torch.tensor(rollout.rows), torch.tensor(rollout.columns))
    with torch.no_grad():
        own = agent.policy.model(ids).logits[places]
    assert not torch.equal(nucleus(torch.log_softmax(own, -1), 0.8), kept)  # the policy's own nucleus is another
    want = torch.log_softmax(own.masked_fill(~kept, -torch.inf), -1).gather(1, rollout.actions[:, None])
    torch.testing.assert_close(rollout.log_probs, want.squeeze(1), atol=1e-5, rtol=0)
    # The KL is that of the masked policy to the whole reference.
    scored = score_reference(agent.reference, rollout, 64, True)
    kl = token_kl(rollout, agent.policy, agent.reference, scored, "exact")
    with torch.no_grad():
        base = torch.log_softmax(agent.reference.model(ids).logits[places], -1)
    logs = torch.log_softmax(own.masked_fill(~kept, -torch.inf), -1)
    by_hand = torch.where(kept, logs.exp() * (logs - base), 0.0).sum(1)
    np.testing.assert_allclose(kl, by_hand.numpy(), atol=1e-5)


def test_the_first_ratio_is_one_whatever_the_age_of_the_mask():
    agent, seen = tiny_agent(mask_top_p=0.8, mask_every=3, minibatches=2), []
    agent.learn(batch_env(agent.task, 16), 16 * 4, seen.append)
    for row in seen:
        assert row["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert row["val/first_clipfrac"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["exact", "k1"])
def test_the_expected_gradient_is_that_of_j_with_the_mask_fixed(kl):
    agent = moved(0, kl=kl, **MASK)
    with torch.no_grad():
        masks = state_log_probs(agent.policy.cut.mask_policy, trajectories(agent.task))
    check_gradient(agent, [nucleus(each, 0.8) for each in masks])


@pytest.mark.slow
def test_the_mask_policy_is_copied_every_so_many_iterations_and_not_trained():
    agent, policies, masks = tiny_agent(shift=0.0, mask_top_p=0.9, mask_every=2), [], []

    def after(_):
        masks.append(mask_weights(agent))
        policies.append([each.detach().clone() for each in agent.policy.model.parameters()])

    after(None)
    agent.learn(batch_env(agent.task, 16), 16 * 4, after)
    for iteration, copied in enumerate((0, 0, 2, 2, 4)):
        assert equal(masks[iteration], policies[copied])
    assert not equal(policies[0], policies[2])
    assert not any(each.requires_grad for each in agent.policy.cut.mask_policy.parameters())
    assert len(list(agent.policy.parameters())) == len(list(tiny_agent().policy.parameters()))


@pytest.mark.long
def test_a_resumed_run_has_the_mask_of_the_one_that_was_interrupted(tmp_path):
    task = tiny_task()
    env = batch_env(task, 16)
    config = LMPPOConfig(device="cpu", batch=16, minibatches=2, mask_top_p=0.8, mask_every=4, learning_rate=0.01)
    whole = LMPPO(task, config, model=tiny_llama(len(WORDS)))
    whole.learn(env, 16 * 6)
    part = LMPPO(task, config, model=tiny_llama(len(WORDS)))
    part.budget = 16 * 6
    part.learn(env, 16 * 3)
    part.save(tmp_path / "a")
    again = LMPPO.load(tmp_path / "a", env)
    assert equal(mask_weights(part), mask_weights(again))
    assert not equal(mask_weights(again), again.policy.model.parameters())
    again.learn(env, 16 * 3)
    assert equal(whole.policy.state_dict().values(), again.policy.state_dict().values())
    assert equal(mask_weights(whole), mask_weights(again))


def test_the_policy_s_own_cut_comes_after_the_mask():
    agent = tiny_agent(mask_top_p=0.8, top_k=1)
    rollout = collect(batch_env(agent.task, 32), agent.policy, 0, (STOP,), True)
    kept = nucleus(of_mask(agent, rollout), 0.8)
    with torch.no_grad():
        own = agent.policy.model(rollout.input_ids).logits[torch.tensor(rollout.rows), torch.tensor(rollout.columns)]
    assert torch.equal(rollout.actions, own.masked_fill(~kept, -torch.inf).argmax(1))
    assert not torch.equal(rollout.actions, own.argmax(1))


def test_the_task_s_mask_comes_before_that_of_the_mask_policy():
    task = dataclasses.replace(tiny_task(), mask=no_repeats)
    agent = moved(0, task, **MASK)
    env = batch_env(task, 8)
    seen = {**env.reset(seed=0)[0], "segment_ids": env.segment_ids()}
    places = torch.arange(8), torch.tensor(seen["attention_mask"].sum(1) - 1)
    legal, ids = torch.tensor(env.action_masks()), torch.tensor(seen["input_ids"])
    assert not legal.all()
    with torch.no_grad():
        masks, own = (model(ids).logits[places] for model in (agent.policy.cut.mask_policy.model, agent.policy.model))
    kept = legal & nucleus(torch.log_softmax(masks.masked_fill(~legal, -torch.inf), -1), 0.8)
    want = torch.log_softmax(own.masked_fill(~kept, -torch.inf), -1)
    np.testing.assert_allclose(np.exp(agent.log_probs(seen)), want.exp().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_top_p": 0.0}, r"mask_top_p=0.0: allowed is a number in \(0, 1\]"),
        ({"mask_top_p": 1.5}, r"mask_top_p=1.5: allowed is a number in \(0, 1\]"),
        ({"mask_every": 3}, "mask_every=3: allowed is 10 without mask_top_p below 1"),
        ({"mask_top_p": 0.9, "mask_every": 0}, "mask_every=0: allowed is"),
        ({"mask_top_p": 0.9, "parallel": "fsdp"}, "mask_top_p=0.9: allowed is 1 with a sampler or parallel='fsdp'"),
        ({"mask_top_p": 0.9, "sampler": "http://localhost:1"}, "mask_top_p=0.9: allowed is 1 with a sampler"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LMPPOConfig(**settings)


def test_an_export_refuses_a_cut_in_another_order(tmp_path):
    LMPPO(tiny_task(), LMPPOConfig(device="cpu", top_p=0.9, min_p=0.1)).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"generate\(\) cuts by top_p before min_p; allowed is an agent with one"):
        export_model(tmp_path / "agent", tmp_path / "out")


def test_an_export_refuses_a_mask_policy(tmp_path):
    agent = LMPPO(tiny_task(), LMPPOConfig(device="cpu", mask_top_p=0.9))
    agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"knows no mask policy; allowed is an agent with mask_top_p=1"):
        export_model(tmp_path / "agent", tmp_path / "out")


def test_the_estimate_of_memory_refuses_a_mask_policy():
    with pytest.raises(ValueError, match=r"mask_top_p=0\.9: the estimate knows no mask policy"):
        plan_of(LMPPOConfig(mask_top_p=0.9), 4, 4)


@pytest.mark.parametrize("name", ["rloo", "grpo", "a2c", "reinforce", "vine-ppo", "rejection"])
def test_every_policy_gradient_can_have_a_mask_policy(name):
    kind, task, seen = agent_class(name), tiny_task(), []
    config = make_config(kind, {"device": "cpu", "batch": 16, "mask_top_p": 0.8})
    agent = kind(task, config, model=tiny_llama(len(WORDS)))
    agent.learn(batch_env(task, 16), 16, seen.append)
    assert isinstance(agent.policy.cut, LearnedMask)
    assert seen[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_of_an_adapter_the_mask_policy_has_the_adapter_alone_to_itself():
    task = tiny_task()
    agent = LMPPO(task, lora_config(lora_rank=None, mask_top_p=0.8), model=adapted())
    own, mask = agent.policy.model, agent.policy.cut.mask_policy.model
    agent.learn(batch_env(task, 16), 16)
    trained = [name for name, each in own.named_parameters() if each.requires_grad]
    assert sorted(agent.memory()) == sorted(trained)
    assert all("lora_" in name for name in trained)
    for name, each in own.named_parameters():
        assert (each.data_ptr() == mask.get_parameter(name).data_ptr()) is (name not in trained)
    assert not equal([own.get_parameter(name) for name in trained], [mask.get_parameter(name) for name in trained])


def test_a_mask_of_the_whole_vocabulary_is_none():
    assert tiny_agent().policy.cut is None
    follow(tiny_agent().policy, 0, 10)
    rollout, _ = full_rollout(tiny_agent())
    assert rollout.kept is None
