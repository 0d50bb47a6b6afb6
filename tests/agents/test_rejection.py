"""Rejection-sampling fine-tuning: which completions are imitated, by how much, and where it comes to rest."""

import numpy as np
import pytest
import torch
from agents.enumerated import full_rollout
from agents.groups import expected_gradient, flat_gradient, small_agent, take
from textgym_agents.algorithms.rejection import Rejection, RejectionConfig, best_rows
from textgym_agents.lm.rollout import score_reference, token_kl


def test_the_best_of_each_group_by_hand():
    returns = np.array([1.0, 3.0, 2.0, 5.0, 5.0, 4.0])
    assert best_rows(returns, 3, 1).tolist() == [1, 3]
    assert best_rows(returns, 3, 2).tolist() == [1, 2, 3, 4]


def test_completions_are_chosen_by_reward_less_beta_times_the_log_ratio():
    agent = small_agent(Rejection, group=4)
    rollout = take(full_rollout(agent)[0], np.array([0, 5, 20, 39, 41, 50, 60, 79]))
    reference = score_reference(agent.reference, rollout, 64, False)
    kl = token_kl(rollout, agent.policy, agent.reference, reference, "k1")
    per_row = np.bincount(rollout.rows, rollout.rewards - agent.controller.beta * kl)
    want = [int(np.argmax(per_row[:4])), 4 + int(np.argmax(per_row[4:]))]
    assert agent._targets(rollout, kl).rows.tolist() == want


def test_a_threshold_is_of_what_was_paid_and_not_of_the_kl():
    agent = small_agent(Rejection, group=4, keep=2, beta=0.3, threshold=0.25)
    rollout = take(full_rollout(agent)[0], np.array([0, 5, 20, 39, 41, 50, 60, 79]))
    kl = token_kl(rollout, agent.policy, agent.reference, score_reference(agent.reference, rollout, 64, False), "k1")
    paid = np.bincount(rollout.rows, rollout.rewards)
    charged = paid - 0.3 * np.bincount(rollout.rows, kl)
    best = best_rows(charged, 4, 2)
    assert agent._targets(rollout, kl).rows.tolist() == [row for row in best.tolist() if paid[row] >= 0.25] == [1, 2]
    assert charged[best].min() > 0.25


def test_rounding_does_not_keep_a_completion_below_the_threshold():
    agent = small_agent(Rejection, group=4, keep=2, threshold=0.1 + 0.2)  # 0.30000000000000004
    rollout = take(full_rollout(agent)[0], np.array([40, 40, 40, 40]))
    rollout.rewards[:] = 0.0
    rollout.rewards[np.cumsum(rollout.lengths) - 1] = [0.2, 0.3, 0.299999, 0.1]
    assert agent._targets(rollout, np.zeros(len(rollout.rows))).rows.tolist() == [1]


def test_the_loss_is_the_negative_likelihood_of_what_is_imitated():
    agent = small_agent(Rejection, group=4)
    rollout = take(full_rollout(agent)[0], np.array([7, 30, 50, 70]))
    got = expected_gradient(agent, rollout, np.array([1.0, 0.0, 0.0, 1.0]))
    chosen = take(rollout, np.array([0, 3]))
    places = torch.tensor(chosen.rows), torch.tensor(chosen.columns)
    logits, _ = agent.policy.states(chosen.input_ids, *places)
    agent.policy.zero_grad()
    torch.nn.functional.cross_entropy(logits, chosen.actions, reduction="sum").backward()
    torch.testing.assert_close(got, flat_gradient(agent), atol=1e-5, rtol=1e-4)


def test_a_threshold_that_nothing_reaches_makes_no_step(env):
    agent = small_agent(Rejection, group=4, threshold=100.0)
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    seen = []
    agent.learn(env, 16, seen.append)
    assert seen[0]["updates"] == 0
    assert all(torch.equal(value, before[name]) for name, value in agent.policy.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0}, "keep=0"),
        ({"keep": 8}, "keep=8"),
        ({"batch": 12}, "batch=12: allowed is a multiple of group=8"),
        ({"kl": "exact"}, "kl='exact'"),
        ({"whiten": True}, "whiten=True"),
        ({"threshold": float("nan")}, "threshold=nan: allowed is None or a finite number"),
        ({"keep": 1.5}, "keep=1.5: allowed is an integer"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RejectionConfig(**settings)
