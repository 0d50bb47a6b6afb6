"""GRPO's surrogates: their gradients against autograd of their papers' formulas, on samples of an older policy."""

import numpy as np
import pytest
import torch
from agents.enumerated import tiny_task
from gymnasium.vector import AutoresetMode
from lm.tiny_models import tiny_llama
from textgym_agents.algorithms.grpo import GRPO, GRPOConfig
from textgym_agents.lm.critic_free import over_mean
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import micro_batches, score_reference, token_kl

from textgym import TokenVectorEnv


def moved(shift=0.4, **settings):
    """An agent, a batch that it has played, its targets, and then another policy."""
    task = tiny_task()
    env = TokenVectorEnv(task, 32, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    config = GRPOConfig(batch=32, group=4, whiten=False, beta=0.0, kl="k1", device="cpu", micro_batch=8, **settings)
    agent = GRPO(task, config, model=tiny_llama(4))
    rollout = agent._collect(env, agent.policy, 0, task.vocabulary.stop_ids, False, 4, None, agent.devices)
    scored = score_reference(agent.reference, rollout, 8, False)
    targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, scored, "k1"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter.add_(shift * torch.randn(parameter.shape, generator=generator))
    return agent, rollout, targets, scored


def gradient(agent, rollout, targets, scored, total):
    meter = UpdateMeter()
    meter.start(1)
    agent.optimizer.zero_grad(set_to_none=True)
    for part in micro_batches(rollout, np.arange(32), 8):
        agent._add_gradient(part, rollout, targets, scored, meter, total)
    return torch.cat([each.grad.ravel() for each in agent.policy.model.parameters() if each.grad is not None])


def by_formula(agent, rollout, targets, loss):
    logits, _ = agent.policy.states(rollout.input_ids, torch.tensor(rollout.rows), torch.tensor(rollout.columns))
    taken = torch.log_softmax(logits, -1).gather(1, rollout.actions[:, None]).squeeze(1)
    rows, lengths = torch.tensor(rollout.rows), torch.tensor(rollout.lengths)
    log_ratio = taken - rollout.log_probs
    means = torch.zeros(32).index_add(0, rows, log_ratio) / lengths
    first = torch.tensor(rollout.first_states)
    value = loss(taken, log_ratio, means, targets.advantages, first, lengths[rows])
    parameters = [each for each in agent.policy.model.parameters() if each.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([each.ravel() for each in found if each is not None])


def clipped(ratio, advantages):
    return torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)


def test_gspo_s_gradient_is_that_of_its_paper():
    agent, *batch = moved(surrogate="gspo", aggregation="sequence")
    wanted = by_formula(
        agent,
        *batch[:2],
        lambda taken, log_ratio, means, advantages, first, lengths: -clipped(means.exp(), advantages[first]).sum() / 32,
    )
    found = gradient(agent, *batch, total=32.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    other, *same = moved(aggregation="sequence")
    assert not torch.allclose(gradient(other, *same, total=32.0), found, rtol=1e-2)


def test_cispo_s_gradient_is_that_of_its_paper():
    agent, *batch = moved(surrogate="cispo", aggregation="token")
    wanted = by_formula(
        agent,
        *batch[:2],
        lambda taken, log_ratio, means, advantages, first, lengths: (
            -(log_ratio.detach().exp().clamp(max=1.2) * advantages * taken).sum() / len(taken)
        ),
    )
    found = gradient(agent, *batch, total=float(len(batch[0].rows)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "gspo"])
def test_what_counts_as_clipped_is_what_the_surrogate_clips(surrogate):
    low = {} if surrogate == "cispo" else {"clip_low": 0.1}
    agent, *batch = moved(surrogate=surrogate, aggregation="sequence", clip_high=0.5, **low)
    meter, found = UpdateMeter(), []
    meter.start(len(batch[0].rows))
    for part in micro_batches(batch[0], np.arange(32), 8):
        agent._add_gradient(part, *batch, meter, 32.0)
    meter.finish(0.0)

    def keep(taken, log_ratio, means, *others):
        found.append((means[torch.tensor(batch[0].rows)] if surrogate == "gspo" else log_ratio).exp().detach())
        return taken.sum()

    by_formula(agent, *batch[:2], keep)
    out = (found[0] > 1.5) | ((found[0] < 0.9) & (surrogate != "cispo"))
    assert meter.means()["policy/clipfrac_avg"] == pytest.approx(float(out.float().mean()), abs=1e-6)
    assert 0 < out.float().mean() < 1


@pytest.mark.parametrize("surrogate", ["cispo", "gspo"])
def test_on_its_own_samples_every_surrogate_has_one_gradient(surrogate):
    plain = gradient(*moved(shift=0.0, aggregation="sequence"), total=32.0)
    torch.testing.assert_close(gradient(*moved(0.0, aggregation="sequence", surrogate=surrogate), total=32.0), plain)


def test_maxrl_weighs_prompts_by_how_seldom_they_are_answered():
    returns = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(over_mean(returns), [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0] * 4, [0] * 4])
    agent, rollout, targets, _ = moved(divide_by_mean=True)
    rows = np.bincount(rollout.rows, rollout.rewards).reshape(-1, 4)
    advantages = targets.advantages.numpy()[rollout.first_states].reshape(-1, 4)
    np.testing.assert_allclose(advantages, over_mean(rows), rtol=1e-5, atol=1e-6)
    assert agent.config.divide_by_mean


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"surrogate": "gspo"}, "aggregation='constant': allowed is 'sequence' with surrogate='gspo'"),
        ({"surrogate": "ppo"}, "surrogate='ppo'"),
        ({"surrogate": "cispo", "clip_low": 0.1}, "clip_low=0.1: allowed is 0.2 without surrogate='clip' or 'gspo'"),
        (
            {"divide_by_mean": True, "divide_by_std": True},
            "divide_by_mean=True: allowed is False with divide_by_std=True",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**settings)
