"""What losses aim at, by hand: returns, advantages and weights of the KL from a rollout of two short episodes."""

from copy import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from agents.enumerated import full_rollout, tiny_agent, tiny_task
from agents.groups import small_agent, take
from solver_tools import Table, bigram, small_task
from textgym_agents.algorithms.grpo import GRPO
from textgym_agents.algorithms.reinforce import Reinforce
from textgym_agents.algorithms.rloo import RLOO
from textgym_agents.exact.objective import steps, to_go, unpaid
from textgym_agents.lm import maths
from textgym_agents.lm.critic_free import (
    action_returns,
    centred,
    critic_free_targets,
    leave_one_out,
    sequence_weights,
    standardised,
)
from textgym_agents.lm.devices import Devices
from textgym_agents.lm.rollout import Rollout, micro_batches

from textgym.lm.categorical import divergence, sample, states_at_once
from textgym.solver import policy_values

KL = np.array([0.1, 0.2, 0.3, 0.4, 0.5])


def two_rows(**changes):
    """Three tokens that ended and two that were cut off, with rewards at every token."""
    lengths = np.array([3, 2])
    parts = {
        "input_ids": torch.zeros((2, 4), dtype=torch.long),
        "rows": np.repeat([0, 1], lengths),
        "columns": np.array([0, 1, 2, 0, 1]),
        "steps": np.array([0, 1, 2, 0, 1]),
        "actions": torch.zeros(5, dtype=torch.long),
        "log_probs": torch.zeros(5),
        "values": torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]),
        "features": torch.zeros((5, 1)),
        "rewards": np.array([1.0, 1.0, 1.0, 2.0, 2.0]),
        "lengths": lengths,
        "bootstrap": np.array([9.0, 0.6]),
        "truncated": np.array([False, True]),
        "stopped": np.array([True, False]),
        "bootstrap_kl": np.array([9.0, 0.2]),
    }
    return Rollout(**(parts | changes))


def test_what_kl_is_charged_to_an_action():
    assert maths.penalties(KL, two_rows(), "k1").tolist() == KL.tolist()
    for kind in ("exact", "k2"):
        assert maths.penalties(KL, two_rows(), kind).tolist() == [0.2, 0.3, 0.0, 0.5, 0.0]
    for kind in ("k3", "k3-ratio"):
        assert maths.penalties(KL, two_rows(), kind).tolist() == [0.0] * 5


def test_returns_are_discounted_from_the_first_token():
    assert maths.discounted(two_rows(), 0.5).tolist() == [1.0, 0.5, 0.25, 2.0, 1.0]
    assert maths.scores(two_rows(), 0.5).tolist() == [1.75, 3.0]
    assert maths.by_row(KL, two_rows()).tolist() == [[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]]
    charged = maths.charged_rewards(two_rows(), KL, "exact", 0.5, 0.5)
    np.testing.assert_allclose(charged, [[0.9, 0.35, 0.25], [1.75, 1.0, 0.0]])


def targets(kind, whiten=False, centre=True, **changes):
    return maths.make_targets(two_rows(**changes), KL, kind, 0.5, 0.5, 0.5, whiten, 2.0, 1.0, centre=centre)


def test_targets_with_a_critic_by_hand():
    # V = 1 + 2 head = 1.2, 1.4, 1.6 and 1.8, 2; behind the cut 2.2 less beta * 0.2.
    # Deltas 1.1, 0.55, -1.35 and 1.95, 1.1; lambda 1/2.
    advantages = np.array([1.0375, -0.125, -1.35, 2.5, 1.1])
    found = targets("exact")
    np.testing.assert_allclose(found.advantages, advantages, rtol=1e-6)
    np.testing.assert_allclose(found.returns, [0.61875, 0.1375, -0.375, 1.65, 1.05], rtol=1e-6)
    assert found.advantages.dtype == found.returns.dtype == torch.float32
    assert found.kl_weight == 0.5
    assert found.old_values.tolist() == two_rows().values.tolist()
    white = targets("exact", whiten=True)
    np.testing.assert_allclose(white.advantages, (advantages - advantages.mean()) / advantages.std(), rtol=1e-5)
    assert white.kl_weight == pytest.approx(0.5 / advantages.std())
    np.testing.assert_allclose(white.returns, found.returns)
    np.testing.assert_allclose(targets("exact", True, False).advantages, advantages / advantages.std(), rtol=1e-5)


@pytest.mark.parametrize(("kind", "weight", "last"), [("k1", 0.0, 0.95), ("k2", 0.5, 1.1), ("k3", 0.5, 1.2)])
def test_what_stands_behind_a_cut(kind, weight, last):
    # r_1 + V(s_2) - V(s_1) of the second row: 1 + 2.2 - 2, less what is charged: beta 0.5, beta 0.2, and nothing.
    found = targets(kind)
    assert found.kl_weight == weight
    assert float(found.advantages[-1]) == pytest.approx(last, rel=1e-6)


def test_rows_that_ended_need_no_kl_behind_them():
    ended = {"truncated": np.array([False, False]), "bootstrap_kl": None}
    assert float(targets("exact", **ended).advantages[-1]) == pytest.approx(1.0 - 2.0, rel=1e-6)
    with pytest.raises(AssertionError):
        targets("k2", bootstrap_kl=None)
    targets("k1", bootstrap_kl=None)


def test_no_episodes_have_no_advantages():
    assert maths.gae(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, dtype=int), 0.9, np.zeros(0)).shape == (0, 3)
    with pytest.raises(ValueError, match="lengths"):
        maths.gae(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3, dtype=int), 0.9)


def test_division_without_a_mean():
    got, scale = maths.standardise(np.array([100.0, 300.0]), centre=False)
    assert (got.tolist(), scale) == ([1.0, 3.0], 100.0)
    got, scale = maths.standardise(np.array([1e-9, 3e-9]))
    assert scale == 1.0
    np.testing.assert_allclose(got, [-1e-9, 1e-9])
    assert maths.standardise(np.array([1e-7, 3e-7]))[1] == pytest.approx(1e-7)


def test_two_ranges_of_a_clipped_ratio():
    ratio, advantages = torch.tensor([1.5, 1.3, 0.5, 0.5, 1.5]), torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    got = maths.clipped_policy_loss(ratio.log(), advantages, 0.2, 0.4)
    torch.testing.assert_close(got, torch.tensor([-1.4, -1.3, 0.8, -0.5, 1.5]))


def test_a_value_that_fell_too_far():
    # Kept at 0.9 - 0.2: the larger of (0.1 - 0)^2 / 2 and (0.7 - 0)^2 / 2.
    got = maths.clipped_value_loss(torch.tensor([0.1]), torch.tensor([0.9]), torch.tensor([0.0]), 0.2)
    torch.testing.assert_close(got, torch.tensor([0.245]))


def test_single_sample_estimates_by_hand():
    ratio, rho = torch.tensor([np.log(2.0), -np.log(4.0)]), torch.tensor([np.log(3.0), 0.0])
    k3 = [0.5 - 1 + np.log(2), 4 - 1 - np.log(4)]
    np.testing.assert_allclose(maths.kl_estimate(ratio, "k3"), k3, rtol=1e-6)
    np.testing.assert_allclose(maths.kl_estimate(ratio, "k3-ratio", rho), [3 * k3[0], k3[1]], rtol=1e-6)
    assert maths.kl_estimate(ratio, "k1").tolist() == ratio.tolist()
    for kind in ("exact", "k3-ratio"):
        with pytest.raises(ValueError, match=f"kind='{kind}'"):
            maths.kl_estimate(ratio, kind)
    with pytest.raises(ValueError, match="exact"):
        maths.kl_estimate(ratio, "exact", rho)


def test_what_losses_are_divided_by():
    lengths = np.array([3, 2])
    assert [maths.loss_total(kind, lengths, 7) for kind in ("token", "sequence", "constant")] == [5.0, 2.0, 14.0]


def test_returns_without_a_critic_by_hand():
    # gamma 1/2, beta 1/2: rewards as above, 0.9 + 0.35 + 0.25; behind the cut nothing counts.
    got = action_returns(two_rows(), KL, "exact", 0.5, 0.5)
    np.testing.assert_allclose(got, [1.5, 0.6, 0.25, 2.75, 1.0])
    advantages = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    plain = critic_free_targets(two_rows(), KL, "exact", 0.5, advantages, False)
    assert (plain.advantages.tolist(), plain.kl_weight) == (advantages.tolist(), 0.5)
    white = critic_free_targets(two_rows(), KL, "k3", 0.5, advantages, True)
    np.testing.assert_allclose(white.advantages, advantages / np.sqrt(2), rtol=1e-6)
    assert white.kl_weight == pytest.approx(0.5 / np.sqrt(2))
    assert critic_free_targets(two_rows(), KL, "k1", 0.5, advantages, True).kl_weight == 0.0
    assert white.returns is white.old_values is None


def test_groups_by_hand():
    returns = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(leave_one_out(returns), [[-3.0, -1.5, 4.5], [0.0] * 3])
    np.testing.assert_allclose(centred(returns), [[-2.0, -1.0, 3.0], [0.0] * 3])
    np.testing.assert_allclose(standardised(returns)[0], np.array([-2.0, -1.0, 3.0]) / (np.sqrt(7) + 1e-4))
    assert standardised(returns)[1].tolist() == [0.0] * 3
    assert sequence_weights(np.array([2, 4])).tolist() == [0.5] * 2 + [0.25] * 4


# Of the 40 completions of the first prompt, which mostly pays, and those of the second, which mostly costs.
ROWS = np.concatenate(
    [np.random.default_rng(0).permutation(40)[:16], 40 + np.random.default_rng(1).permutation(40)[:8]]
)


@cache
def agent_and_completions(kind):
    agent = small_agent(kind, kl="k3", group=4)
    return agent, full_rollout(agent)[0]


def grouped(kind, rows=ROWS, **settings):
    """An agent's targets for six groups of four of all completions, the returns (6, 4), and the rollout."""
    agent, every = map(copy, agent_and_completions(kind))
    agent.config, rollout = replace(agent.config, **settings), take(every, rows)
    returns = np.bincount(rollout.rows, rollout.rewards).reshape(-1, 4)
    return agent._targets(rollout, np.zeros(len(rollout.rows))), returns, rollout


def test_the_weight_of_the_kl_follows_grpo_s_advantages():
    beta = tiny_task().beta * 3 / 4  # a mean that holds the completion itself shrinks the gradient
    found, returns, rollout = grouped(GRPO)
    np.testing.assert_allclose(found.advantages, centred(returns).ravel()[rollout.rows], rtol=1e-5, atol=1e-6)
    assert found.kl_weight == pytest.approx(beta)
    found, _, rollout = grouped(GRPO, divide_by_std=True)
    np.testing.assert_allclose(found.advantages, standardised(returns).ravel()[rollout.rows], rtol=1e-4, atol=1e-6)
    assert found.kl_weight == pytest.approx(beta / returns.std(1, ddof=1).mean())
    found, _, _ = grouped(GRPO, divide_by_mean=True)
    assert found.kl_weight == pytest.approx(beta / np.maximum(returns.mean(1), 0).mean())
    found, _, rollout = grouped(GRPO, whiten=True)
    assert found.kl_weight == pytest.approx(beta / centred(returns).ravel()[rollout.rows].std())
    assert found.weights is None


def test_equal_groups_do_not_count_where_they_are_dropped():
    same = np.concatenate([np.full(4, 3), ROWS[4:]])
    beta = tiny_task().beta * 3 / 4
    found, returns, _ = grouped(GRPO, rows=same, divide_by_std=True, equal_groups="drop")
    spread = returns.std(1, ddof=1)
    assert spread[0] == 0
    assert found.kl_weight == pytest.approx(beta / spread[1:].mean())
    found, _, _ = grouped(GRPO, rows=same, divide_by_mean=True, equal_groups="drop")
    assert found.kl_weight == pytest.approx(beta / np.maximum(returns[1:].mean(1), 0).mean())
    found, _, _ = grouped(GRPO, rows=same, divide_by_std=True)
    assert found.kl_weight == pytest.approx(beta / spread.mean())
    # All groups alike: nothing to divide by.
    alike = grouped(GRPO, rows=np.full(24, 3), divide_by_std=True, equal_groups="drop")[0]
    assert alike.kl_weight == pytest.approx(beta)


def test_groups_that_only_cost_have_no_mean_to_divide_by():
    costs = ROWS[16:]
    found, returns, _ = grouped(GRPO, rows=costs, divide_by_mean=True)
    assert returns.mean(1).max() < 0
    assert found.kl_weight == pytest.approx(tiny_task().beta * 3 / 4)
    assert not found.advantages.any()


def one_token_rows(rewards):
    """As many completions of one token as there are rewards."""
    count = len(rewards)
    each = {"rows": np.arange(count), "rewards": np.array(rewards), "lengths": np.ones(count, dtype=np.int64)}
    zeros = {name: np.zeros(count, dtype=np.int64) for name in ("columns", "steps", "bootstrap")}
    ended = {"truncated": np.zeros(count, dtype=bool), "stopped": np.ones(count, dtype=bool)}
    return two_rows(**each, **zeros, **ended)


def test_of_two_ranks_rounds_the_first_groups_that_differ_are_trained_on():
    agent = copy(agent_and_completions(RLOO)[0])
    agent.group, agent.devices = 2, Devices(0, 2)
    agent.config = replace(agent.config, equal_groups="drop")
    # Eight groups: the first rank's two rounds of two, and then the second rank's. Groups 1 and 4 are equal.
    rewards = [0.0, 1.0] * 8
    rewards[2:4] = rewards[8:10] = [1.0, 1.0]
    rollout = replace(one_token_rows(rewards), rounds=2)
    # They were played in the order 0, 1, 4, 5 and then 2, 3, 6, 7; a batch has four.
    assert agent._trained(rollout, agent._targets(rollout, np.zeros(16))).tolist() == [0, 1, 10, 11, 4, 5, 6, 7]
    agent.config = replace(agent.config, equal_groups="keep")
    assert agent._trained(rollout, agent._targets(rollout, np.zeros(16))).tolist() == list(range(16))


@pytest.mark.parametrize(("surrogate", "low", "high"), [("clip", 0.9, 1.3), ("cispo", 0.0, 1.3), ("gspo", 0.0, np.inf)])
def test_the_range_outside_of_which_a_ratio_counts_as_clipped(surrogate, low, high):
    below = {} if surrogate == "cispo" else {"clip_low": 0.1}
    agent = small_agent(GRPO, surrogate=surrogate, aggregation="sequence", clip_high=0.3, **below)
    assert agent.clip_range == pytest.approx((low, high))


def test_gspo_weighs_a_completion_s_advantage_by_the_mean_ratio_of_its_tokens():
    agent, every = map(copy, agent_and_completions(GRPO))
    agent.config = replace(agent.config, surrogate="gspo", aggregation="sequence", clip_low=0.1, clip_high=0.5)
    rollout = take(every, np.array([0, 5, 20, 38, 45, 70]))
    ratios = torch.tensor([1.4, 1.6, 1.6, 0.95, 0.85, 0.85])
    advantages = torch.tensor([1.0, 0.5, -1.0, -1.0, -0.5, 2.0])
    kept = torch.tensor([1.4, 0.0, -1.6, -0.95, 0.0, 1.7])  # what rises may be 1.5 at most, what falls 0.9 at least
    rows = torch.tensor(rollout.rows)
    older = replace(rollout, log_probs=rollout.log_probs - ratios.log()[rows])
    (part,) = micro_batches(older, np.arange(6), 6)
    found, out = agent._weighted(part, older, advantages[rows])
    torch.testing.assert_close(found, kept[rows], rtol=1e-4, atol=1e-6)
    assert int(out) == rollout.lengths[[1, 2, 4, 5]].sum()


def test_rloo_s_loss_is_clipped_by_the_ratio_to_the_policy_that_sampled():
    agent = agent_and_completions(RLOO)[0]
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, -2.0, 2.0])
    assert agent._policy_loss(old + ratio.log(), old, advantages).tolist() == pytest.approx([-1.2, 1.5, 1.6, -2.2])


def test_sequences_weigh_alike_where_grpo_aggregates_them():
    found, _, rollout = grouped(GRPO, aggregation="sequence")
    np.testing.assert_allclose(found.weights, 1 / rollout.lengths[rollout.rows], rtol=1e-6)


def test_rloo_s_advantages():
    found, returns, rollout = grouped(RLOO)
    np.testing.assert_allclose(found.advantages, leave_one_out(returns).ravel()[rollout.rows], rtol=1e-5, atol=1e-6)
    assert found.kl_weight == pytest.approx(tiny_task().beta)


@pytest.mark.parametrize("reward_to_go", [True, False])
@pytest.mark.parametrize("baseline", ["none", "batch"])
def test_reinforce_s_credits(baseline, reward_to_go):
    agent = small_agent(Reinforce, kl="k3", baseline=baseline, reward_to_go=reward_to_go)
    rollout = take(full_rollout(agent)[0], ROWS)
    found = agent._targets(rollout, np.zeros(len(rollout.rows)))
    returns = np.bincount(rollout.rows, rollout.rewards)
    want = returns[rollout.rows]  # everything is paid at the end, so that this is the return to go, too
    if baseline == "batch":
        want = want - ((returns.sum() - returns) / (len(returns) - 1))[rollout.rows]
    np.testing.assert_allclose(found.advantages, want, rtol=1e-5, atol=1e-6)


def test_every_trajectory_step_by_step():
    values = policy_values(small_task(gamma=0.5), Table(2), bigram(), beta=0.7)
    every, found, tree = values.trajectories, steps(values), values.tree
    firsts = np.cumsum([0, *(len(level.parent) for level in tree.levels[1:])])
    for index in range(len(every.row)):
        tokens = tree.completions(int(every.length[index]), every.row[[index]])[0].tolist()
        prompt = int(every.prompt[index])
        for step in range(3):
            got = [each[index, step] for each in (found.rewards, found.log_ratio, found.kl, found.state_values)]
            if step >= len(tokens):
                assert found.path[index, step] == -1
                assert got == [0.0] * 4
                continue
            (depth, row), (_, edge) = (
                tree.find(prompt, tuple(tokens[:step])),
                tree.find(prompt, tuple(tokens[: step + 1])),
            )
            level = tree.levels[depth]
            edges = slice(level.first[row], level.first[row + 1])
            ratios = values.log_policy[depth] - values.log_reference[depth]
            kl = np.exp(values.log_policy[depth][edges]) @ ratios[edges]
            assert found.path[index, step] == firsts[step] + edge
            paid = 0.5**step * tree.levels[depth + 1].reward[edge]
            assert got == pytest.approx([paid, ratios[edge], kl, values.values[depth][row]], abs=1e-12)
    assert to_go(np.array([[1.0, 2.0, 4.0]])).tolist() == [[7.0, 6.0, 4.0]]
    assert unpaid(values).objective == pytest.approx(-values.kl)


def test_divergences_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.25, 0.75]]).double()
    forward, reverse = (float((a * (a / b).log()).sum()) for a, b in ((q, p), (p, q)))
    assert float(divergence(p.log(), q.log(), "reverse")) == pytest.approx(reverse)
    assert float(divergence(p.log(), q.log(), "forward")) == pytest.approx(forward)
    for mix in (0.5, 0.2):
        m = mix * q + (1 - mix) * p
        want = mix * float((q * (q / m).log()).sum()) + (1 - mix) * float((p * (p / m).log()).sum())
        assert float(divergence(p.log(), q.log(), "jsd", mix)) == pytest.approx(want)


def test_states_are_taken_in_parts_of_so_many_logits():
    assert states_at_once("cpu", 2**10) == 2**13
    assert states_at_once("cuda", 2**10) == 2**16
    assert states_at_once("cpu", 2**30) == 1


def test_a_draw_never_points_behind_the_last_token():
    logs = torch.log_softmax(torch.tensor([[0.0, 1.0, -1e9], [2.0, -1e9, 0.0]]), -1)
    assert sample(logs, torch.tensor([0.999999, 0.0])).tolist() == [1, 0]
    assert sample(logs, torch.tensor([1.0, 1.0])).tolist() == [1, 2]  # as a number close under 1 is in float32
    assert sample(logs, torch.tensor([0.26, 0.9])).tolist() == [0, 2]
    assert sample(logs, torch.tensor([0.27, 0.88])).tolist() == [1, 0]
    # Rounding may leave a total that is not 1: a half, if it went far.
    halves = torch.tensor([[0.25, 0.25]] * 2).log()
    assert sample(halves, torch.tensor([0.4, 0.9])).tolist() == [0, 1]


def test_the_agent_whose_targets_these_are_uses_them():
    agent = tiny_agent(kl="exact", lam=0.5)
    rollout = full_rollout(agent)[0]
    kl = np.linspace(0, 1, len(rollout.rows))
    found = agent._targets(rollout, kl)
    scale, offset = agent._centre_values(maths.scores(rollout, 1.0))
    want = maths.make_targets(rollout, kl, "exact", agent.task.beta, 1.0, 0.5, False, scale, offset)
    assert found.advantages.tolist() == want.advantages.tolist()
    assert found.kl_weight == want.kl_weight
