"""REINFORCE, A2C, PPO, RLOO and GRPO: the expected gradient is that of J where it should be, and not where not."""

from functools import cache

import numpy as np
import pytest
import torch
from agents.enumerated import BETA, full_rollout, tiny_task
from agents.groups import (
    expected_gradient,
    flat_gradient,
    objective_gradient,
    opposite_kl_gradient,
    pairs_rollout,
    small_agent,
    take,
)
from gymnasium.vector import AutoresetMode
from textgym_agents.algorithms.a2c import A2C
from textgym_agents.algorithms.grpo import GRPO
from textgym_agents.algorithms.ppo import LMPPO
from textgym_agents.algorithms.reinforce import Reinforce, ReinforceConfig
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.exact.estimators import enumerate_trajectories, estimator_table
from textgym_agents.exact.objective import policy_gradient
from textgym_agents.lm.critic_free import action_returns, sequence_weights
from textgym_agents.lm.maths import clipped_policy_loss, loss_total
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.rollout import score_reference, token_kl

from textgym import TokenVectorEnv

UNBIASED_KL = ["exact", "k1"]
# Rewards come at the end, after one, two or three tokens: with 0.6 they are worth 1, 0.6 or 0.36 of themselves.
discounts = pytest.mark.parametrize("gamma", [1.0, 0.6])


def assert_gradient_of_j(agent, got, factor=1.0):
    want = factor * objective_gradient(agent)
    assert want.norm() > 0.05
    assert torch.nn.functional.cosine_similarity(-got, want, dim=0) > 0.999
    torch.testing.assert_close(-got, want, atol=3e-4, rtol=2e-3)


@discounts
def test_the_yardstick_is_the_solvers_gradient(gamma):
    agent = small_agent(Reinforce, tiny_task(gamma=gamma))
    size = sum(parameter.numel() for parameter in agent.policy.model.parameters())
    exact = policy_gradient(agent.task, agent, agent.reference).gradient
    ours = {id(parameter) for parameter in agent.policy.model.parameters()}
    parts = exact.split([parameter.numel() for parameter in agent.policy.parameters()])
    pairs = zip(agent.policy.parameters(), parts, strict=True)
    want = torch.cat([part for parameter, part in pairs if id(parameter) in ours]).float()
    assert len(want) == size
    torch.testing.assert_close(objective_gradient(agent), want, atol=1e-5, rtol=1e-4)


@discounts
@pytest.mark.parametrize(
    ("kl", "reward_to_go"), [("exact", True), ("k1", True), ("k2", True), ("exact", False), ("k1", False)]
)
def test_reinforce_without_a_baseline(kl, reward_to_go, gamma):
    agent = small_agent(Reinforce, tiny_task(gamma=gamma), kl=kl, reward_to_go=reward_to_go)
    assert_gradient_of_j(agent, expected_gradient(agent, *full_rollout(agent)))


@discounts
@pytest.mark.parametrize("kl", [*UNBIASED_KL, "k2"])
@pytest.mark.parametrize(
    ("kind", "settings"), [(Reinforce, {"baseline": "value"}), (A2C, {"lam": 1.0}), (LMPPO, {"lam": 1.0})]
)
def test_a_value_that_is_wrong_cancels(kl, kind, settings, gamma):
    agent = small_agent(kind, tiny_task(gamma=gamma), kl=kl, value_coefficient=0.0, **settings)
    rollout, probabilities = full_rollout(agent)
    rollout.values[:] = torch.linspace(-1, 1, 3)[torch.tensor(rollout.steps)]
    assert_gradient_of_j(agent, expected_gradient(agent, rollout, probabilities))


def test_gae_with_a_wrong_value_is_biased():
    agent = small_agent(A2C, lam=0.5, value_coefficient=0.0)
    rollout, probabilities = full_rollout(agent)
    rollout.values[:] = torch.linspace(-1, 1, 3)[torch.tensor(rollout.steps)]
    got, want = expected_gradient(agent, rollout, probabilities), objective_gradient(agent)
    assert (got + want).norm() > 0.1 * want.norm()


@pytest.mark.slow
@discounts
@pytest.mark.parametrize("kl", UNBIASED_KL)
def test_rloo_over_all_groups_of_two(kl, gamma):
    agent = small_agent(RLOO, tiny_task(gamma=gamma), kl=kl, group=2)
    assert_gradient_of_j(agent, expected_gradient(agent, *pairs_rollout(agent)))


@pytest.mark.slow
@discounts
@pytest.mark.parametrize("kl", UNBIASED_KL)
def test_grpo_without_std_division_is_half_of_it_in_groups_of_two(kl, gamma):
    # The group's mean holds the completion itself: the expectation shrinks by (n - 1) / n.
    settings = {"divide_by_std": False, "aggregation": "constant", "group": 2}
    agent = small_agent(GRPO, tiny_task(gamma=gamma), kl=kl, **settings)
    assert_gradient_of_j(agent, expected_gradient(agent, *pairs_rollout(agent)), 0.5)


@pytest.mark.slow
@discounts
@pytest.mark.parametrize("kind", UNBIASED_KL)
@pytest.mark.parametrize("reward_to_go", [True, False])
def test_the_mean_of_the_rest_of_the_batch_is_a_baseline_that_cancels(reward_to_go, kind, gamma):
    task = tiny_task(gamma=gamma)
    agent = small_agent(Reinforce, task, baseline="batch", kl=kind, reward_to_go=reward_to_go)
    rollout, probabilities = full_rollout(agent)
    count = len(probabilities)
    pairs = np.indices((count, count)).reshape(2, -1).T  # prompts of a batch are drawn one by one
    weights = np.repeat(probabilities[pairs].prod(1) / 2, 2)

    def by_pairs(rollout, kl):
        # A batch here is a pair: each return less that of the other one, worked out without the agent.
        agent_targets = agent._targets(rollout, kl)
        returns = action_returns(rollout, kl, kind, BETA, gamma)
        first = np.cumsum(rollout.lengths) - rollout.lengths
        whole = returns[first].reshape(-1, 2)
        credits = returns if reward_to_go else whole.ravel()[rollout.rows]
        own = torch.tensor(credits - whole[:, ::-1].ravel()[rollout.rows], dtype=torch.float32)
        return type(agent_targets)(**{**agent_targets.__dict__, "advantages": own})

    assert_gradient_of_j(agent, expected_gradient(agent, take(rollout, pairs.ravel()), weights, by_pairs))
    # And the agent subtracts just that from a batch of two.
    two = take(rollout, np.array([5, 63]))
    kl = np.zeros(len(two.rows))
    score = np.bincount(two.rows, two.rewards) * gamma ** (two.lengths - 1)
    # Without KL all tokens of a row have the same return to go.
    want = np.array([score[0] - score[1], score[1] - score[0]])[two.rows]
    np.testing.assert_allclose(agent._targets(two, kl).advantages.numpy(), want, atol=1e-6)


@cache
def exact_table():
    """The moments of every estimator of groups of two, by its name; they depend on the policies alone."""
    agent = small_agent(GRPO, kl="k1", group=2)
    table = estimator_table(enumerate_trajectories(agent.task, agent, agent.reference))
    return {moments.estimator: moments for moments in table}


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({"divide_by_std": True, "aggregation": "constant"}, "GRPO, groups of 2"),
        ({"divide_by_std": True, "aggregation": "sequence"}, "GRPO, mean over tokens, groups of 2"),
        ({"divide_by_std": False, "aggregation": "constant"}, "GRPO without std, groups of 2"),
    ],
)
def test_the_bias_of_std_division_and_token_means_is_that_of_the_exact_tables(settings, row):
    agent, table = small_agent(GRPO, kl="k1", group=2, **settings), exact_table()[row]
    got, want = -expected_gradient(agent, *pairs_rollout(agent)), objective_gradient(agent)
    assert float((got - want).norm()) == pytest.approx(table.bias, rel=2e-3)
    cosine = float(torch.nn.functional.cosine_similarity(got, want, dim=0))
    assert cosine == pytest.approx(table.cosine, abs=1e-4)
    assert (cosine > 0.9999) == (row == "GRPO without std, groups of 2")  # elsewhere the direction is biased too


@pytest.mark.slow
def test_k3_as_in_the_paper_follows_the_opposite_kl():
    settings = {"divide_by_std": False, "aggregation": "constant", "group": 2}
    agent = small_agent(GRPO, kl="k3", **settings)
    got = -expected_gradient(agent, *pairs_rollout(agent))
    torch.testing.assert_close(got, 0.5 * opposite_kl_gradient(agent), atol=3e-4, rtol=2e-3)
    assert (got - 0.5 * objective_gradient(agent)).norm() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Reinforce, RLOO, GRPO])
def test_whitening_divides_advantages_and_the_kl_alike_and_subtracts_nothing(kind):
    plain, white = small_agent(kind), small_agent(kind, whiten=True)
    rollout, _ = full_rollout(plain)
    reference = score_reference(plain.reference, rollout, 1000, True)
    kl = token_kl(rollout, plain.policy, plain.reference, reference, "exact")
    one, other = plain._targets(rollout, kl), white._targets(rollout, kl)
    spread = float(one.advantages.double().std(correction=0))
    torch.testing.assert_close(other.advantages, one.advantages / spread)
    assert other.kl_weight == pytest.approx(one.kl_weight / spread)


def test_totals_by_hand():
    lengths = np.array([1, 3])
    assert loss_total("token", lengths, 10) == 4
    assert loss_total("sequence", lengths, 10) == 2
    assert loss_total("constant", lengths, 10) == 20
    np.testing.assert_allclose(sequence_weights(lengths), [1, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_a_step_sums_its_losses_as_it_says(aggregation, monkeypatch):
    agent = small_agent(GRPO, aggregation=aggregation, group=2, micro_batch=3, kl="k3")
    rollout = take(full_rollout(agent)[0], np.array([0, 7, 13, 39]))
    reference = score_reference(agent.reference, rollout, 64, False)
    targets = agent._targets(rollout, token_kl(rollout, agent.policy, agent.reference, reference, "k3"))
    monkeypatch.setattr(agent, "_finish_step", lambda: 0.0)
    rows = np.array([0, 1, 3])
    agent._step(rollout, targets, reference, rows, UpdateMeter())
    got = flat_gradient(agent)
    lengths = rollout.lengths[rows]
    per_row = {"token": 1 / lengths.sum(), "sequence": 1 / 3 / rollout.lengths, "constant": 1 / 3 / 3}
    weights = np.zeros(4)
    weights[rows] = np.broadcast_to(per_row[aggregation], 4)[rows]
    unweighted = type(targets)(**{**targets.__dict__, "weights": None})
    want = expected_gradient(agent, rollout, weights, lambda *_: unweighted)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-3)


def test_two_clip_ranges_by_hand():
    log_ratio = torch.log(torch.tensor([1.25, 1.4, 0.7, 0.7]))
    got = clipped_policy_loss(log_ratio, torch.tensor([1.0, 1.0, -1.0, 1.0]), 0.2, 0.28)
    torch.testing.assert_close(got, torch.tensor([-1.25, -1.28, 0.8, -0.7]))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RLOO, {"batch": 10}, "batch=10: allowed is a multiple of group=4"),
        (RLOO, {"group": 1}, "group=1"),
        (RLOO, {"group": 3}, "group=3: allowed is a divisor of 256 without a batch"),
        (RLOO, {"kl": "k2"}, "kl='k2'"),
        (GRPO, {"kl": "k2"}, "kl='k2'"),
        (GRPO, {"most_rounds": 3}, "most_rounds=3: allowed is 10 without equal_groups='resample'"),
        (Reinforce, {"kl": "k2", "reward_to_go": False}, "kl='k2'"),
        (GRPO, {"batch": 12}, "batch=12: allowed is a multiple of group=8"),
        (GRPO, {"clip_high": 0.0}, "clip_high=0.0"),
        (GRPO, {"aggregation": "row"}, "aggregation='row'"),
        (Reinforce, {"baseline": "mean"}, "baseline='mean'"),
        (Reinforce, {"baseline": "value", "reward_to_go": False}, "reward_to_go=False"),
        (Reinforce, {"baseline": "batch", "batch": 1}, "batch=1"),
        (A2C, {"lam": 2.0}, "lam=2.0"),
    ],
)
def test_bad_settings_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind.config_type(**settings)


@pytest.mark.parametrize("settings", [{"group": 2}, {"group": 3, "batch": 18}])
def test_groups_that_fit_into_a_batch_are_taken(settings):
    assert RLOO.config_type(**settings).group == settings["group"]


def test_groups_that_do_not_fit_into_the_environment_are_refused(env):
    agent = small_agent(RLOO, group=3, batch=18)
    with pytest.raises(ValueError, match="16 sub-environments; allowed are multiples of group=3"):
        agent.learn(env, 16)


def test_a_batch_of_one_has_no_other_episodes_for_a_baseline():
    agent = small_agent(Reinforce, baseline="batch")
    env = TokenVectorEnv(agent.task, 1, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="env: 1 sub-environments; allowed are 2 or more with baseline='batch'"):
        agent.learn(env, 4)


def test_reinforce_refuses_a_weight_of_the_value_loss_that_there_is_not():
    with pytest.raises(ValueError, match=r"value_coefficient=0\.5: allowed is 0\.01 without baseline='value'"):
        ReinforceConfig(value_coefficient=0.5, baseline="batch")
    assert ReinforceConfig(value_coefficient=0.5, baseline="value").value_coefficient == 0.5
