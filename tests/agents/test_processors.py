"""Top-p, top-k and min-p cut the policy alone, for sampling and scoring alike, with the kept tokens held fixed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from agents.enumerated import (
    BETA,
    STOP,
    beside,
    full_rollout,
    state_log_probs,
    tiny_agent,
    tiny_task,
    trajectories,
)
from agents.test_masks import batch_env, no_repeats
from textgym_agents.exact.estimators import enumerate_trajectories
from textgym_agents.exact.objective import policy_gradient
from textgym_agents.lm.critic import critic_of
from textgym_agents.lm.maths import make_targets
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.nlpo import log_ratios_within_cut
from textgym_agents.lm.processors import PackedMasks, Processors
from textgym_agents.lm.rollout import collect, micro_batches, score_reference, token_kl

from textgym.evaluate import evaluate
from textgym.solver import policy_values

ROW = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.9}, [0, 1, 3]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"min_p": 0.25}, [0, 1, 3]),  # 0.25 * 0.5 = 0.125
        ({"min_p": 1.0}, [1]),
        # Of two tokens 0.5 / 0.8 = 0.625 is the likelier one's share: enough for 0.6, where 0.5 was not.
        ({"top_k": 2, "top_p": 0.6}, [1]),
        ({"min_p": 0.5, "top_p": 0.6}, [1]),
    ],
)
def test_what_is_kept_by_hand(settings, kept):
    assert Processors(**settings).kept(ROW)[0].nonzero().flatten().tolist() == kept


def test_forbidden_tokens_are_never_kept():
    logits = torch.tensor([[0.0, -1e9, 1.0, -torch.inf]])
    for settings in ({}, {"top_k": 4}, {"top_p": 0.9999999}, {"min_p": 1e-30}):
        assert Processors(**settings).kept(logits).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 37])
def test_packed_masks_are_one_bit_a_token(size):
    masks = torch.tensor(np.random.default_rng(size).random((5, size)) < 0.5)
    packed = PackedMasks.pack(masks)
    assert np.array_equal(packed.bits.numpy(), np.packbits(masks.numpy(), axis=1, bitorder="little"))
    assert torch.equal(packed[:], masks)
    assert torch.equal(packed[torch.tensor([4, 0])], masks[[4, 0]])
    assert torch.equal(PackedMasks.join([packed, packed], torch.tensor([9, 2]))[:], masks[[4, 2]])


@pytest.mark.parametrize(
    ("name", "value"), [("top_p", 0.0), ("top_p", 1.1), ("top_k", 0), ("min_p", -0.1), ("min_p", 2.0)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: allowed is"):
        tiny_agent(**{name: value})


def moved(seed, task=None, **config):
    """An agent with a cut, at a place of its own."""
    agent = tiny_agent(task, **{"top_p": 0.9, **config})
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    agent.policy.forget()
    return agent


def nucleus(log_probs, p=0.9):
    """(T, V) bool, by the definition: token by token, from the likeliest on, until p is reached."""
    kept = torch.zeros(log_probs.shape, dtype=torch.bool)
    for row, probabilities in zip(kept, log_probs.exp().tolist(), strict=True):
        total = 0.0
        for token in np.argsort(probabilities)[::-1].tolist():
            row[token] = True
            total += probabilities[token]
            if total >= p:
                break
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_rollout_takes_what_is_kept_and_its_first_ratio_is_one(seed):
    agent = moved(seed, value_coefficient=0.5, micro_batch=5)
    rollout = collect(batch_env(agent.task, 64), agent.policy, seed, (STOP,), True)
    logits, _ = agent.policy.states(rollout.input_ids, torch.tensor(rollout.rows), torch.tensor(rollout.columns))
    kept = nucleus(torch.log_softmax(logits.detach(), -1))
    assert torch.equal(rollout.kept_of(slice(None)), kept)
    assert (~kept).sum() > 0
    assert kept.gather(1, rollout.actions[:, None]).all()
    want = torch.log_softmax(logits.detach().masked_fill(~kept, -torch.inf), -1).gather(1, rollout.actions[:, None])
    torch.testing.assert_close(rollout.log_probs, want.squeeze(1), atol=1e-5, rtol=0)
    # The reference is scored without the cut, so that the KL is finite, and as a KL not negative.
    scored = score_reference(agent.reference, rollout, 64, True)
    kl = token_kl(rollout, agent.policy, agent.reference, scored, "exact")
    assert (kl > -1e-6).all()
    assert kl.max() < 50
    seen = []
    agent.learn(batch_env(agent.task, 64), 64, seen.append)
    assert seen[0]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert seen[0]["val/first_clipfrac"] == 0


@pytest.mark.parametrize("kind", ["exact", "k1"])
def test_log_ratios_within_a_cut_are_to_the_reference_renormalised_over_it(kind):
    agent = moved(3, top_p=0.7, kl=kind)
    rollout = collect(batch_env(agent.task, 64), agent.policy, 0, (STOP,), kind == "exact")
    places = torch.tensor(rollout.rows), torch.tensor(rollout.columns)
    with torch.no_grad():
        own, base = (each.model(rollout.input_ids).logits[places] for each in (agent.policy, agent.reference))
    kept = nucleus(torch.log_softmax(own, -1), 0.7)
    logs, against = (torch.log_softmax(each.masked_fill(~kept, -1e9), -1) for each in (own, base))
    want = (logs - against).gather(1, rollout.actions[:, None])[:, 0]
    scored = score_reference(agent.reference, rollout, 64, kind == "exact")
    whole = token_kl(rollout, agent.policy, agent.reference, scored, kind)
    got = log_ratios_within_cut(rollout, agent.policy, agent.reference, scored, whole, agent.config)
    np.testing.assert_allclose(got, want, atol=1e-5)
    left_out = -torch.log_softmax(base, -1).exp().masked_fill(~kept, 0.0).sum(-1).log()
    if kind == "k1":
        np.testing.assert_allclose(whole - got, left_out, atol=1e-5)
    assert left_out.mean() > 0.1


@pytest.mark.parametrize("mask", [None, no_repeats], ids=["all", "grammar"])
@pytest.mark.parametrize("kind", ["exact", "k1"])
def test_log_ratios_without_a_cut_are_to_the_reference_as_it_is(kind, mask):
    agent = moved(3, dataclasses.replace(tiny_task(), mask=mask), top_p=1.0, kl=kind)
    rollout = collect(batch_env(agent.task, 64), agent.policy, 0, (STOP,), kind == "exact")
    scored = score_reference(agent.reference, rollout, 64, kind == "exact")
    whole = token_kl(rollout, agent.policy, agent.reference, scored, kind)
    got = log_ratios_within_cut(rollout, agent.policy, agent.reference, scored, whole, agent.config)
    places = torch.tensor(rollout.rows), torch.tensor(rollout.columns)
    logits, _ = agent.reference.states(rollout.input_ids, *places, rollout.masks_of(slice(None)))
    base = torch.log_softmax(logits.detach(), -1).gather(1, rollout.actions[:, None])[:, 0]
    np.testing.assert_allclose(got, rollout.log_probs - base, atol=1e-5)


def test_a_cut_without_an_update_has_moved_nothing():
    agent = tiny_agent(shift=0.0, top_p=0.6, schedule="constant")
    agent.settles, agent.learning_rate, agent.first_rate = True, 1e-12, 1e-12
    agent.learn(batch_env(agent.task, 64), 192)
    assert (agent.learning_rate, agent.chosen) == (1e-12, "")


def objective(agent, kept):
    """J with the kept tokens of every state held fixed, differentiable."""
    total = torch.zeros(())
    for (trajectory, whole, base), allowed in zip(beside(agent, agent.reference), kept, strict=True):
        own = torch.log_softmax(whole.masked_fill(~allowed, -1e9), -1)
        actions = torch.tensor(trajectory.completion)
        probability = 0.5 * own.gather(1, actions[:, None]).sum().exp()
        total = total + probability * (trajectory.score - BETA * (own.exp() * (own - base)).sum())
    return total


def flat(agent):
    return torch.cat([p.grad.flatten().double() for p in agent.policy.model.parameters()])


def expected_gradient(agent, kept):
    """The gradient of the agent's loss, summed over all trajectories, weighted by their probability under the cut."""
    rollout, _ = full_rollout(agent)
    masks = torch.cat(kept)
    logs = torch.log_softmax(agent.policy.heads(rollout.features, masks)[0].detach(), -1)
    taken = logs.gather(1, rollout.actions[:, None]).squeeze(1)
    rollout = dataclasses.replace(rollout, log_probs=taken, kept=PackedMasks.pack(masks))
    probabilities = 0.5 * np.exp(np.bincount(rollout.rows, taken.double().numpy()))
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    kind = agent.config.kl
    scored = score_reference(agent.reference, rollout, 1000, kind == "exact")
    kl = token_kl(rollout, agent.policy, agent.reference, scored, kind)
    targets = make_targets(rollout, np.where(np.abs(kl) < 1e6, kl, 0), kind, BETA, 1.0, 1.0, False, 1.0)
    (part,) = micro_batches(rollout, np.arange(len(rollout.lengths)), 1000)
    features = agent.policy.features(part.input_ids, part.rows, part.columns)
    loss = agent._loss(features, part.states, rollout, targets, scored, UpdateMeter())
    weights = torch.tensor(probabilities[rollout.rows], dtype=torch.float32)[part.states]
    agent.policy.zero_grad()
    # Of trajectories that the cut leaves out nothing is ever drawn.
    torch.where(weights > 0, loss * weights, 0.0).sum().backward()
    return flat(agent)


def check_gradient(agent, kept):
    """That the expected gradient of the loss is minus that of J where some tokens of each state are kept."""
    assert not torch.cat(kept).all()
    agent.policy.zero_grad()
    j = objective(agent, kept)
    j.backward()
    want, found = flat(agent), -expected_gradient(agent, kept)
    assert want.norm() > 0.1
    assert torch.nn.functional.cosine_similarity(found, want, dim=0) > 1 - 1e-5
    torch.testing.assert_close(found, want, atol=3e-4, rtol=3e-3)
    # The exact gradients of the library say the same, by another sum.
    exact = policy_gradient(agent.task, agent, agent.reference)
    assert exact.values.objective == pytest.approx(j.item(), abs=1e-5)
    torch.testing.assert_close(exact.gradient[: len(want)], want, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kl", ["exact", "k1", "k2"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.sweep) for seed in range(1, 5))])
def test_the_expected_gradient_is_that_of_j_with_the_kept_tokens_fixed(seed, kl):
    agent = moved(seed, kl=kl)
    with torch.no_grad():
        kept = [nucleus(each) for each in state_log_probs(agent.policy, trajectories(agent.task))]
    check_gradient(agent, kept)
    # E grad log P(tau) = 0 over what is kept.
    enumeration = enumerate_trajectories(agent.task, agent, agent.reference)
    np.testing.assert_allclose(enumeration.mass @ enumeration.scores, 0, atol=1e-5)


@pytest.mark.parametrize("mask", [None, no_repeats])
def test_evaluation_is_of_the_distribution_that_is_sampled_from(mask):
    task = dataclasses.replace(tiny_task(), mask=mask)
    agent = moved(0, task)
    rollout = collect(batch_env(task, 512), agent.policy, 0, (STOP,), True)
    found = evaluate(agent, task, agent.reference, split="train", per_prompt=4)
    assert found.exact
    scores = np.bincount(rollout.rows, rollout.rewards)
    assert found.reward.mean == pytest.approx(scores.mean(), abs=4 * scores.std() / np.sqrt(len(scores)))
    kl = token_kl(rollout, agent.policy, agent.reference, score_reference(agent.reference, rollout, 64, True), "exact")
    sums = np.bincount(rollout.rows, kl)
    assert found.kl.mean == pytest.approx(sums.mean(), abs=4 * sums.std() / np.sqrt(len(sums)))
    assert policy_values(task, agent, agent.reference).kl == pytest.approx(found.kl.mean, abs=1e-6)
    # The mask comes first: in each state the probabilities are those of what both leave.
    env = batch_env(task, 8)
    env.reset(seed=0)
    seen = {**env.reset(seed=0)[0], "segment_ids": env.segment_ids()}
    own = agent.log_probs(seen)
    logits = agent.policy.states(
        torch.tensor(seen["input_ids"]), torch.arange(8), torch.tensor(seen["attention_mask"].sum(1) - 1)
    )[0]
    legal = torch.tensor(env.action_masks())
    logs = torch.log_softmax(logits.detach().masked_fill(~legal, -torch.inf), -1)
    logs = torch.log_softmax(logs.masked_fill(~nucleus(logs), -torch.inf), -1)
    np.testing.assert_allclose(np.exp(own), logs.exp().numpy(), atol=1e-5)
    assert set(agent.act(seen).tolist()) <= set(logs.exp().nonzero()[:, 1].tolist())


def test_a_critic_charges_the_kl_of_the_cut_policy():
    agent = moved(0)
    env = batch_env(agent.task, 8)
    seen = env.reset(seed=0)[0]
    own, reference = agent.log_probs(seen), agent.reference.log_probs(seen)
    assert (own < -100).any()
    kl = (np.exp(own) * (own - reference)).sum(1)
    np.testing.assert_allclose(agent.values(seen) - critic_of(agent)(seen, None), BETA * kl, atol=1e-5)


def test_min_new_tokens_binds_policy_and_reference_alike():
    task = tiny_task(min_new_tokens=2)
    agent = tiny_agent(task, shift=0.0)
    rollout = collect(batch_env(task, 128), agent.policy, 0, (STOP,), True)
    early = torch.tensor(rollout.steps < 2)
    assert (rollout.lengths == 3).all()
    allowed = torch.ones((len(early), 4), dtype=torch.bool)
    allowed[early, STOP] = False
    assert torch.equal(rollout.masks[:], allowed)
    scored = score_reference(agent.reference, rollout, 64, True)
    kl = token_kl(rollout, agent.policy, agent.reference, scored, "exact")
    np.testing.assert_allclose(kl, 0, atol=1e-6)
    taken = score_reference(agent.reference, rollout, 64, False)
    torch.testing.assert_close(taken, rollout.log_probs, atol=1e-5, rtol=0)
    assert dataclasses.replace(task, min_new_tokens=0).mask is None
    with pytest.raises(ValueError, match=r"min_new_tokens=4: allowed is an integer in 0..3"):
        tiny_task(min_new_tokens=4)


def test_min_new_tokens_leaves_a_stop_where_a_mask_allows_nothing_else():
    def only_stop(states):
        masks = np.zeros((len(states), 4), dtype=bool)
        masks[:, STOP] = True
        return masks

    task = dataclasses.replace(tiny_task(), mask=only_stop, min_new_tokens=2)
    env = batch_env(task, 2)
    env.reset(seed=0)
    assert env.action_masks().tolist() == [[False, False, False, True]] * 2
