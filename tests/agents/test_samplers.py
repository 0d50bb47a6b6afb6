"""Samplers: the own decoder, and completions from another distribution than the policy's, which are weighed."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from agents.enumerated import HORIZON, STOP, tiny_task
from agents.lora_tools import SIZE, adapted_agent
from agents.test_masks import batch_env, no_repeats
from textgym_agents.config import LMPPOConfig
from textgym_agents.lm.metrics import UpdateMeter, rollout_metrics
from textgym_agents.lm.processors import Processors
from textgym_agents.lm.rollout import collect, score_reference, token_kl
from textgym_agents.lm.sampler import DecoderSampler, SampledCompletion, SampledRollouts, importance_weights

from textgym import make_task

pytest.importorskip("peft")


# The own decoder


def test_a_completion_depends_on_its_own_seed_and_its_log_probs_are_the_models():
    policy = adapted_agent().policy
    sampler = DecoderSampler(policy)
    sampler.update(policy, 7)
    prefixes, seeds = [[0, 1], [2], [0, 1], [1, 1, 2]], [5, 6, 7, 8]
    together = sampler.sample(prefixes, [6, 9, 6, 1], [STOP], 0.7, [0, 1, STOP], seeds)
    assert {each.version for each in together} == {7}
    for prefix, budget, seed, found in zip(prefixes, [6, 9, 6, 1], seeds, together, strict=True):
        (alone,) = sampler.sample([prefix], [budget], [STOP], 0.7, [0, 1, STOP], [seed])
        assert np.array_equal(alone.ids, found.ids)
        assert found.ids[-1] == STOP or len(found.ids) == budget
        assert not np.isin(found.ids[:-1], [STOP, 2]).any()
        logits = policy.model(torch.tensor([[*prefix, *found.ids]])).logits[0, len(prefix) - 1 : -1] / 0.7
        logits[:, 2] = -torch.inf
        want = torch.log_softmax(logits, -1).gather(1, torch.tensor(found.ids)[:, None]).squeeze(1)
        np.testing.assert_allclose(found.log_probs, want.detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_what_it_draws_has_the_probabilities_of_the_model():
    policy = adapted_agent().policy
    found = DecoderSampler(policy, Processors(top_k=3)).sample([[0, 1]] * 3000, [1] * 3000, [], 1.0, None, range(3000))
    counts = np.bincount([each.ids[0] for each in found], minlength=SIZE) / 3000
    probabilities = policy.model(torch.tensor([[0, 1]])).logits[0, -1].detach().softmax(-1).numpy()
    probabilities[probabilities.argmin()] = 0
    np.testing.assert_allclose(counts, probabilities / probabilities.sum(), atol=0.03)


def test_min_new_tokens_holds_back_the_stop():
    policy = adapted_agent().policy
    for found in DecoderSampler(policy, min_new_tokens=2).sample([[0]] * 50, [4] * 50, [STOP], 1.0, None, range(50)):
        assert STOP not in found.ids[:2]


# Another distribution than the policy's


class Wrong:
    """Writes with its own probabilities, which it tells; remembers nothing of updates."""

    def __init__(self, probabilities):
        self.probabilities = np.array(probabilities)

    def update(self, policy, version):
        """Take no weights."""

    def sample(self, prefixes, budgets, stop_ids, temperature, allowed_ids, seeds):
        found = []
        for budget, seed in zip(budgets, seeds, strict=True):
            ids = np.random.default_rng(seed).choice(SIZE, budget, p=self.probabilities)
            found.append(SampledCompletion(ids, np.log(self.probabilities)[ids], 1))
        return found


def test_importance_weights_are_truncated_ratios_and_weigh_the_policy_loss_alone():
    agent = adapted_agent(value_coefficient=0.0)
    play = SampledRollouts(agent.task, Wrong([0.4, 0.3, 0.2, 0.1]), partial(importance_weights, cap=1.5))
    rollout = play(batch_env(agent.task, 64), agent.policy, 0, (STOP,), True)
    policy_probs = rollout.log_probs.exp()
    ratio = (policy_probs / torch.tensor([0.4, 0.3, 0.2, 0.1])[rollout.actions]).double()
    torch.testing.assert_close(rollout.importance.double(), ratio.clamp(max=1.5), atol=1e-5, rtol=1e-4)
    assert (ratio > 1.5).any()
    assert (ratio < 0.9).any()
    metrics = rollout_metrics(rollout, np.zeros(len(ratio)), 0.0, 1.0)
    assert metrics["sampler/mismatch_mean"] == pytest.approx(float(ratio.log().abs().mean()), rel=1e-4)
    assert metrics["sampler/mismatch_max"] == pytest.approx(float(ratio.log().abs().max()), rel=1e-4)
    assert metrics["sampler/mismatch_k3"] == pytest.approx(float((ratio - 1 - ratio.log()).mean()), rel=1e-4)


@pytest.mark.parametrize("kl", ["exact", "k2"])
def test_what_depends_on_the_action_is_weighed_and_the_kl_of_a_state_is_not(kl):
    agent = adapted_agent(kl=kl, value_coefficient=0.0)
    play = SampledRollouts(agent.task, Wrong([0.4, 0.3, 0.2, 0.1]))
    rollout = play(batch_env(agent.task, 16), agent.policy, 0, (STOP,), True)
    scored = score_reference(agent.reference, rollout, 64, kl == "exact")
    states = token_kl(rollout, agent.policy, agent.reference, scored, kl)
    targets = agent._targets(rollout, states)
    features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
    found = agent._loss(features, slice(None), rollout, targets, scored, UpdateMeter()).detach()
    # The ratio is 1, so that PPO's loss is -A; half the square of log(pi / ref) is k2.
    kl_loss = targets.kl_weight * torch.tensor(states if kl == "exact" else 0.5 * states**2)
    want = -rollout.importance * targets.advantages + (1.0 if kl == "exact" else rollout.importance) * kl_loss
    torch.testing.assert_close(found.double(), want.double(), atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_weights_make_the_expected_gradient_of_a_first_token_the_policys():
    # One token a completion: E over the sampler of weight * A * grad log pi is E over the policy of A * grad log pi.
    task = tiny_task(max_new_tokens=1)
    agent = adapted_agent(task, kl="k1", whiten=False, value_coefficient=0.0, lam=1.0)
    agent.value_scale = 1.0
    env = batch_env(task, 4096)
    play = SampledRollouts(task, Wrong([0.4, 0.3, 0.2, 0.1]), partial(importance_weights, cap=1e9))
    gradients = []
    for how in (collect, play):
        rollout = how(env, agent.policy, 1, (STOP,))
        scored = score_reference(agent.reference, rollout, 4096, False)
        targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, "k1"))
        features = agent.policy.features(rollout.input_ids, *map(torch.tensor, (rollout.rows, rollout.columns)))
        agent.policy.zero_grad()
        agent._loss(features, slice(None), rollout, targets, scored, UpdateMeter()).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.1)


def test_what_the_sampler_took_is_kept_whatever_the_cut_says():
    agent = adapted_agent(top_k=1)
    play = SampledRollouts(agent.task, Wrong([0.25] * 4))
    rollout = play(batch_env(agent.task, 32), agent.policy, 0, (STOP,), True)
    kept = rollout.kept_of(slice(None))
    assert kept.gather(1, rollout.actions[:, None]).all()
    assert set(kept.sum(1).tolist()) == {1, 2}
    assert rollout.log_probs.min() > -50


# Refusals and errors


def test_a_task_with_a_mask_is_refused_by_name():
    masked = dataclasses.replace(tiny_task(), mask=no_repeats)
    with pytest.raises(ValueError, match=r"task 'Text': its mask \(function\) depends on the state"):
        adapted_agent(masked, sampler="http://localhost:1")
    with pytest.raises(ValueError, match="depends on the state"):
        SampledRollouts(dataclasses.replace(masked, min_new_tokens=2), Wrong([0.25] * 4))
    with pytest.raises(ValueError, match="task 'Clarify': its environment answers in turns; a sampler takes"):
        SampledRollouts(make_task("Clarify"), Wrong([0.25] * 4))


def test_the_cap_needs_a_sampler():
    with pytest.raises(ValueError, match=r"importance_cap=3.0: allowed is 2.0 without sampler"):
        LMPPOConfig(importance_cap=3.0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0], "its completion 0 ended after 1 tokens, and the episode goes on"), ([0, 9, 0], "9"), ([], "0 tokens")],
)
def test_completions_that_do_not_fit_the_episode_are_refused(ids, message):
    class Fixed(Wrong):
        def sample(self, prefixes, *_):
            return [SampledCompletion(np.array(ids, dtype=np.int64), np.zeros(len(ids)), 1) for _ in prefixes]

    agent = adapted_agent()
    play = SampledRollouts(agent.task, Fixed([0.25] * 4))
    with pytest.raises(Exception, match=message):
        play(batch_env(agent.task, 4), agent.policy, 0, (STOP,))


def test_a_token_that_the_task_does_not_allow_is_refused():
    task = tiny_task(min_new_tokens=HORIZON)
    agent = adapted_agent(task)
    play = SampledRollouts(task, Wrong([0.1, 0.1, 0.1, 0.7]))
    with pytest.raises(ValueError, match="it wrote token 3, which the task does not allow"):
        play(batch_env(task, 8), agent.policy, 0, (STOP,))
