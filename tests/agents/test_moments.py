"""Moments of estimators against sums over all trajectories that are written out."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from agents.test_exact_estimators import Recurrent
from solver_tools import bigram, small_task
from textgym_agents.exact import estimators
from textgym_agents.exact.estimators import (
    compare,
    enumerate_trajectories,
    estimator_table,
    group_moments,
    kl_gradient_table,
    kl_value_table,
)
from textgym_agents.exact.objective import EnumeratedPolicy, policy_gradient
from textgym_agents.lm.critic_free import centred, leave_one_out, standardised

from textgym import make_task
from textgym.lm.reference import NGramReference
from textgym.solver import policy_values


@pytest.fixture(scope="module")
def enumeration():
    return enumerate_trajectories(small_task(max_new_tokens=2), Recurrent(), bigram())


def taken(enumeration, weights):
    """The gradients (N, D) of all trajectories from weights (N, T) of the actions taken."""
    path, jacobian = enumeration.steps.path, enumeration.jacobian
    found = np.zeros((len(path), jacobian.shape[1]))
    for row in range(len(path)):
        for step in range(path.shape[1]):
            if path[row, step] >= 0:
                found[row] += weights[row, step] * jacobian[path[row, step]]
    return found


def test_the_variance_of_gradients_of_the_kl(enumeration):
    rows = {row.estimator: row for row in kl_gradient_table(enumeration)}
    ratio, kl = enumeration.steps.log_ratio, enumeration.steps.kl
    k3 = np.exp(-ratio) - 1 + ratio
    for name, weights in (
        ("k1 in the loss", np.ones_like(ratio)),
        ("k2 in the loss", ratio),
        ("k3 in the loss", 1 - np.exp(-ratio)),
        ("k1 in the reward", np.stack([ratio[:, step:].sum(1) for step in range(2)], 1)),
        ("k3 in the reward", np.stack([k3[:, step:].sum(1) for step in range(2)], 1)),
        ("k2 in the loss, later KL in the reward", ratio + np.stack([kl[:, 1], 0 * kl[:, 1]], 1)),
    ):
        every = taken(enumeration, weights)
        mean = enumeration.mass @ every
        assert rows[name].variance == pytest.approx(float(enumeration.mass @ ((every - mean) ** 2).sum(1)), rel=1e-9)
        assert rows[name].bias == pytest.approx(np.linalg.norm(mean - estimators.kl_gradient(enumeration)), abs=1e-12)


def test_the_variance_of_values_of_the_kl(enumeration):
    rows = {row.estimator: row for row in kl_value_table(enumeration)}
    ratio, mass = enumeration.steps.log_ratio, enumeration.mass
    for name, each in (("k1", ratio), ("k2", ratio**2 / 2), ("k3", np.exp(-ratio) - 1 + ratio)):
        sums = each.sum(1)
        mean = mass @ sums
        assert (rows[name].mean, rows[name].bias) == pytest.approx((mean, mean - enumeration.values.kl), abs=1e-12)
        assert rows[name].variance == pytest.approx(mass @ (sums - mean) ** 2, rel=1e-9)


def moments(enumeration, group, **options):
    scores = np.stack([enumeration.scores, 0.5 * enumeration.scores])  # what is above 0 counts twice
    paid = enumeration.charged.sum(1)
    return group_moments(enumeration.values, enumeration.gradient, "A", paid, scores, leave_one_out, group, **options)


def listed(enumeration, group):
    """E[g] and E |g|^2 of groups of completions of a prompt, by listing all of them."""
    every, paid, scores = enumeration.values.trajectories, enumeration.charged.sum(1), enumeration.scores
    chances, mean, second = np.exp(every.log_probability), 0.0, 0.0
    for prompt, weight in enumerate(enumeration.values.tree.weights):
        for members in map(list, itertools.product(np.flatnonzero(every.prompt == prompt), repeat=group)):
            # Of the others' mean each is n / (n - 1) times as far as of everybody's.
            gaps = (paid[members] - paid[members].mean()) * group / (group - 1)
            gradient = (gaps * np.where(gaps > 0, 1, 0.5)) @ scores[members] / group
            chance = weight * np.prod(chances[members])
            mean, second = mean + chance * gradient, second + chance * gradient @ gradient
    return mean, second


@pytest.mark.parametrize("group", [2, 3])
def test_all_groups_of_a_prompt(enumeration, group):
    found, (mean, second) = moments(enumeration, group), listed(enumeration, group)
    assert found.bias == pytest.approx(np.linalg.norm(mean - enumeration.gradient), rel=1e-9)
    assert found.variance == pytest.approx(second - mean @ mean, rel=1e-9)
    assert (found.samples, found.bias_error, found.variance_error) == (group, 0.0, 0.0)
    assert found.variance_per_sample == pytest.approx(group * found.variance)
    # Where only a quarter of the groups counts, what counts is four times as large.
    part = moments(enumeration, group, kept=0.25)
    assert part.samples == 4 * group
    assert part.bias == pytest.approx(np.linalg.norm(4 * mean - enumeration.gradient), rel=1e-9)
    assert part.variance == pytest.approx(4 * second - 16 * mean @ mean, rel=1e-9)


def test_groups_that_are_drawn_say_how_sure_they_are(enumeration, monkeypatch):
    monkeypatch.setattr(estimators, "_MOST_COUNTS", 0)
    (mean, second), truth = listed(enumeration, 2), enumeration.gradient
    few, many, part = (
        moments(enumeration, 2, draws=draws, kept=kept) for draws, kept in ((1000, 1.0), (16000, 1.0), (1000, 0.5))
    )
    assert 0 < abs(few.bias - np.linalg.norm(mean - truth)) < 4 * few.bias_error
    assert abs(many.variance - (second - mean @ mean)) < 4 * (many.variance_error + many.bias_error)
    assert few.bias_error / many.bias_error == pytest.approx(4, rel=0.15)
    assert few.variance_error / many.variance_error == pytest.approx(4, rel=0.3)
    assert part.bias_error == pytest.approx(2 * few.bias_error)
    assert part.variance_error == pytest.approx(2 * few.variance_error)
    # The error of a mean is its standard deviation over the root of how many there are, prompt by prompt.
    weights, every = enumeration.values.tree.weights, enumeration.values.trajectories
    spread = sum(
        weights[prompt] ** 2 * scatter_of(enumeration, np.flatnonzero(every.prompt == prompt)) for prompt in (0, 1)
    )
    assert few.bias_error == pytest.approx(math.sqrt(spread / 1000), rel=0.1)


def scatter_of(enumeration, own):
    """E |g - E g|^2 of pairs of one prompt."""
    chances = np.exp(enumeration.values.trajectories.log_probability)
    paid, scores, mean, second = enumeration.charged.sum(1), enumeration.scores, 0.0, 0.0
    for one in own:
        for two in own:
            gap, chance = paid[one] - paid[two], chances[one] * chances[two]
            gradient = (gap * (1 if gap > 0 else 0.5) * scores[one] - gap * (1 if gap < 0 else 0.5) * scores[two]) / 2
            mean, second = mean + chance * gradient, second + chance * gradient @ gradient
    return second - mean @ mean


def test_rows_of_the_table_of_groups(enumeration):
    rows = {row.estimator: row for row in estimator_table(enumeration, lams=(0.5,))}
    paid, lengths = enumeration.charged.sum(1), enumeration.values.trajectories.length[:, None]
    for name, advantages, scale in (
        ("RLOO", leave_one_out, 1.0),
        ("GRPO without std", centred, 1.0),
        ("GRPO", standardised, 1.0),
        ("GRPO, mean over tokens", standardised, 1 / lengths),
    ):
        scores = np.stack([enumeration.scores * scale] * 2)
        want = group_moments(enumeration.values, enumeration.gradient, name, paid, scores, advantages, 2)
        assert rows[want.estimator] == want
    # RLOO has no bias; with its own return in the mean, half of the gradient is left in groups of two.
    assert rows["RLOO, groups of 2"].relative_bias < 1e-10
    assert rows["GRPO without std, groups of 2"].along == pytest.approx(0.5)
    assert rows["GRPO without std, groups of 2"].cosine == pytest.approx(1)
    assert rows["GRPO, groups of 2"].variance > 1.01 * rows["GRPO, mean over tokens, groups of 2"].variance
    with pytest.raises(ValueError, match="group=1"):
        estimator_table(enumeration, group=1)


def test_rows_of_the_table_of_single_trajectories(enumeration):
    rows = {row.estimator: row for row in estimator_table(enumeration, lams=(0.5,))}
    rewards, values = enumeration.charged, enumeration.steps.state_values
    # Two tokens at most: d_0 + d_1 / 2 and d_1, with V of what follows in d_0.
    deltas = rewards + np.append(values[:, 1:], np.zeros((len(values), 1)), axis=1) - values
    for name, weights in (
        ("REINFORCE", np.repeat(rewards.sum(1, keepdims=True), 2, axis=1)),
        ("REINFORCE, reward to go", np.stack([rewards.sum(1), rewards[:, 1]], 1)),
        ("REINFORCE, reward to go - V", np.stack([rewards.sum(1), rewards[:, 1]], 1) - values),
        ("GAE(0.5), V", np.stack([deltas[:, 0] + 0.5 * deltas[:, 1], deltas[:, 1]], 1)),
        ("GAE(0.5), critic 0", np.stack([rewards[:, 0] + 0.5 * rewards[:, 1], rewards[:, 1]], 1)),
    ):
        every = taken(enumeration, weights)
        mean, row = enumeration.mass @ every, rows[name]
        assert row.variance == pytest.approx(float(enumeration.mass @ ((every - mean) ** 2).sum(1)), rel=1e-9)
        assert row.bias == pytest.approx(np.linalg.norm(mean - enumeration.gradient), abs=1e-12)
        length, size = np.linalg.norm(mean), np.linalg.norm(enumeration.gradient)
        assert row.relative_bias == pytest.approx(row.bias / size, abs=1e-12)
        assert row.samples == 1
        assert row.cosine == pytest.approx(mean @ enumeration.gradient / length / size)


class NeverB(Recurrent):
    """A policy that never says b."""

    def states(self, input_ids, rows, columns):
        return super().states(input_ids, rows, columns)[0] + torch.tensor([0.0, -torch.inf, 0.0, 0.0]), None


@pytest.mark.filterwarnings("error")
def test_what_is_never_written_might_as_well_be_forbidden(monkeypatch):
    def without_b(states):
        return np.tile([True, False, True, True], (len(states), 1))

    reference = NGramReference(np.tile([0.5, 0.0, 0.3, 0.2], (4, 1)))
    free, masked = (
        enumerate_trajectories(small_task(max_new_tokens=2, mask=mask), policy, reference)
        for mask, policy in ((None, NeverB()), (without_b, Recurrent()))
    )
    assert len(free.mass) > len(masked.mass) == 2 * 7
    np.testing.assert_allclose(free.gradient, masked.gradient, atol=1e-12)
    # As many pairs as seven completions make are listed: of the others none counts.
    monkeypatch.setattr(estimators, "_MOST_COUNTS", 7**2)
    for table in (estimator_table, kl_gradient_table):
        for row, other in zip(table(free), table(masked), strict=True):
            assert astuple(row)[1:] == pytest.approx(astuple(other)[1:], rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_prompt_that_is_never_asked_changes_nothing(monkeypatch):
    monkeypatch.setattr(estimators, "_MOST_COUNTS", 0)
    both, one = (
        enumerate_trajectories(small_task(max_new_tokens=2, **prompts), Recurrent(), bigram())
        for prompts in ({"weights": [0, 1]}, {"prompts": ["b c"], "weights": [1]})
    )
    assert len(both.mass) == 2 * len(one.mass)
    for row, other in zip(estimator_table(both, draws=50), estimator_table(one, draws=50), strict=True):
        assert astuple(row)[1:] == pytest.approx(astuple(other)[1:], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("group", [2, 3])
def test_groups_are_listed_up_to_so_many(enumeration, monkeypatch, group):
    # The mean needs K returns and multisets of n - 1 others; the second moment K^2 and those of n - 2, which is more.
    every, paid = enumeration.values.trajectories, enumeration.charged.sum(1)
    count = max(len(np.unique(paid[every.prompt == prompt].round(12))) for prompt in (0, 1))
    needed = math.comb(count + group - 3, group - 2) * count**2
    assert needed == count**group
    monkeypatch.setattr(estimators, "_MOST_COUNTS", needed)
    assert moments(enumeration, group, draws=50).bias_error == 0
    monkeypatch.setattr(estimators, "_MOST_COUNTS", needed - 1)
    assert moments(enumeration, group, draws=50).bias_error > 0


def test_the_kl_that_is_charged_is_the_one_of_the_whole_sequence(enumeration):
    every = enumeration.values.trajectories
    np.testing.assert_allclose(enumeration.charged.sum(1), every.returns - 0.4 * every.log_ratio, atol=1e-12)
    # The reference never says b, which costs nothing where beta is 0.
    never = NGramReference(np.tile([0.3, 0.0, 0.3, 0.4], (4, 1)))
    free = enumerate_trajectories(small_task(max_new_tokens=2), Recurrent(), never, beta=0.0)
    assert np.isinf(free.steps.log_ratio).any()
    np.testing.assert_allclose(free.charged.sum(1), free.values.trajectories.returns, atol=1e-12)


@pytest.mark.parametrize(
    ("mean", "target", "relative", "along", "cosine"),
    [
        ((3.0, 4.0), (0.0, 5.0), math.sqrt(10) / 5, 0.8, 0.8),
        ((3e-9, 4e-9), (0.0, 5e-9), math.sqrt(10) / 5, 0.8, 0.8),
        ((3e-5, 4e-5), (0.0, 5.0), 1.0, 8e-6, 0.8),
        # Of what is nothing beside the other, or nothing at all, the direction is none.
        ((3e-9, 4e-9), (0.0, 5.0), 1.0, 8e-10, math.nan),
        ((3.0, 4.0), (0.0, 5e-9), 1e9, 8e8, math.nan),
        ((3.0, 4.0), (0.0, 0.0), math.nan, math.nan, math.nan),
        ((0.0, 0.0), (0.0, 0.0), math.nan, math.nan, math.nan),
    ],
)
def test_a_row_of_the_table_by_hand(mean, target, relative, along, cosine):
    found = compare("A", 2, np.array(mean), 26.0, np.array(target), (0.5, 0.25))
    assert found.relative_bias == pytest.approx(relative, rel=1e-4, nan_ok=True)
    assert (found.along, found.cosine) == pytest.approx((along, cosine), nan_ok=True)
    assert found.bias == pytest.approx(math.dist(mean, target))
    assert found.variance == pytest.approx(26 - math.hypot(*mean) ** 2)
    assert (found.samples, found.bias_error, found.variance_error) == (2, 0.5, 0.25)
    assert compare("A", 1, np.array(mean), 0.0, np.array(target)).variance == 0


def test_a_gradient_where_the_environment_answers():
    task = make_task("TwentyQuestions", difficulty=1)
    policy = Recurrent(size=task.vocabulary.size)
    found = policy_gradient(task, policy)
    for depth, logs in enumerate(found.values.log_policy):
        rows = found.values.tree.levels[depth].running
        edges = EnumeratedPolicy(policy).edges(found.values.tree, depth, rows)
        np.testing.assert_allclose(edges.detach(), logs, atol=1e-12)  # also those of what the environment answers
    direction = torch.randn(len(found.gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = direction.split([parameter.numel() for parameter in policy.parameters()])

    def moved(step):
        with torch.no_grad():
            for parameter, part in zip(policy.parameters(), parts, strict=True):
                parameter.add_(step * part.view_as(parameter))
        return policy_values(task, EnumeratedPolicy(policy)).objective

    above, below = moved(1e-5), moved(-2e-5)
    assert float(found.gradient @ direction) == pytest.approx((above - below) / 2e-5, rel=1e-5)
