"""The expected gradient of LM PPO's loss is minus the gradient of J, on an MDP where both are sums, for each KL."""

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, full_rollout, tiny_agent
from agents.groups import expected_gradient, objective_gradient, opposite_kl_gradient
from textgym_agents.lm.maths import make_targets


def expected_loss_gradient(agent, values=0.0):
    """The gradient of the loss, summed over all trajectories weighted by their probability."""
    rollout, probabilities = full_rollout(agent)
    rollout.values.fill_(values)
    kind, lam = agent.config.kl, agent.config.lam
    return expected_gradient(
        agent, rollout, probabilities, lambda _, kl: make_targets(rollout, kl, kind, BETA, 1.0, lam, False, 1.0)
    )


def test_probabilities_of_all_trajectories_sum_to_one():
    _, probabilities = full_rollout(tiny_agent())
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("kl", ["exact", "k1", "k2"])
def test_expected_gradient_is_the_gradient_of_j(kl):
    agent = tiny_agent(kl=kl)
    want = objective_gradient(agent)
    assert want.norm() > 0.1
    torch.testing.assert_close(-expected_loss_gradient(agent), want, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kl", ["exact", "k1", "k2"])
def test_a_wrong_baseline_does_not_bias_it(kl):
    # With lam = 1 the value cancels in expectation, whatever it is.
    agent = tiny_agent(kl=kl)
    torch.testing.assert_close(
        -expected_loss_gradient(agent, values=0.7), objective_gradient(agent), atol=3e-4, rtol=2e-3
    )


def test_k3_in_the_loss_follows_the_opposite_kl():
    agent = tiny_agent(kl="k3")
    want = opposite_kl_gradient(agent)
    torch.testing.assert_close(-expected_loss_gradient(agent), want, atol=2e-4, rtol=2e-3)
    assert (want - objective_gradient(agent)).norm() > 0.05  # and so it is not the gradient of J


def test_leaving_out_the_kl_of_later_states_would_be_noticed():
    # The exact KL in the loss alone has no term for the states an action leads to.
    agent = tiny_agent(kl="exact")
    want = objective_gradient(agent)
    rollout, probabilities = full_rollout(agent)
    got = expected_gradient(
        agent,
        rollout,
        probabilities,
        lambda _, kl: make_targets(rollout, np.zeros_like(kl), "exact", BETA, 1.0, 1.0, False, 1.0),
    )
    assert (got + want).norm() > 0.02 * want.norm()
