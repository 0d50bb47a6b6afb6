"""Off-policy estimators against enumeration: sums over all trajectories, exact values, and numbers by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from textgym_agents.datasets.off_policy import (
    Logged,
    Terms,
    bernstein_bound,
    cross_fitted,
    doubly_robust,
    effective_samples,
    fitted_interval,
    fitted_q,
    importance_sampling,
    judge,
    lower_bound,
    per_decision,
    ratio_intervals,
    self_normalised,
    truncated,
)
from textgym_benchmarks.ope import LogPool, between

from textgym.estimates import Estimate, resampled_counts
from textgym.solver.tree import per_state
from textgym.solver.values import evaluate_edges


@pytest.fixture(scope="module")
def pool():
    return LogPool.of("BetaSweep")


@pytest.fixture(scope="module")
def policy(pool):
    return between(pool.solution, 0.5)


def log_of(pool, policy, rows, beta=0.0):
    own, base = (pool.log_probs(each)[rows] for each in (policy.log_policy, pool.solution.log_reference))
    rewards = pool.rewards[rows] - beta * (own - base)
    return Logged(pool.lengths[rows], pool.states[rows], pool.edges[rows], rewards, own, base, base.sum(1))


@pytest.fixture(scope="module")
def every(pool, policy):
    """Return all trajectories, each once."""
    return log_of(pool, policy, np.arange(len(pool.lengths)))


def exact(pool, values, action_values):
    """Return V and Q of a policy, given per level, along all trajectories."""
    width = pool.edges.shape[1]
    counts = [len(level.parent) for level in pool.solution.tree.levels]
    flat, edges = np.concatenate(values), np.concatenate([np.zeros(counts[0]), *action_values])
    running = np.arange(width) < pool.lengths[:, None]
    along = np.where(running, flat[pool.states], 0.0)
    return np.pad(along, ((0, 0), (0, 1))), np.where(running, edges[pool.edges], 0.0)


@pytest.mark.parametrize("estimator", [importance_sampling, per_decision])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_mean_over_all_logs_is_the_true_value(pool, policy, estimator, beta):
    log = log_of(pool, policy, np.arange(len(pool.lengths)), beta)
    terms = estimator(log)
    truth = policy.expected_return - beta * policy.kl
    assert pool.probability @ terms.tops == pytest.approx(truth, abs=1e-10)
    assert (terms.bottoms == 1).all()


def test_doubly_robust_is_right_on_average_with_any_q_that_fits_its_v(pool, policy, every):
    levels = pool.solution.tree.levels
    generator = np.random.default_rng(0)
    action_values = [generator.normal(size=len(level.parent)) for level in levels[1:]]
    values = []
    for level, own, logs in zip(levels, action_values, policy.log_policy, strict=False):
        values.append(np.zeros(len(level.parent)))
        values[-1][level.running] = per_state(np.exp(logs) * own, level, np.add)
    values.append(np.zeros(len(levels[-1].parent)))
    terms = doubly_robust(every, *exact(pool, values, action_values))
    assert pool.probability @ terms.tops == pytest.approx(policy.expected_return, abs=1e-10)
    assert terms.tops.std() > 0.1


def test_doubly_robust_with_the_exact_q_has_no_spread(pool, policy, every):
    bare = evaluate_edges(pool.solution.tree, policy.log_policy, policy.log_reference, 0.0, policy.gamma)
    terms = doubly_robust(every, *exact(pool, bare.values, bare.action_values))
    np.testing.assert_allclose(terms.tops, bare.expected_return, atol=1e-12)


def test_fitted_q_of_all_trajectories_is_exact(pool, policy, every):
    values, _ = fitted_q(every, pool.probability[:, None])
    assert pool.probability @ values[:, 0, 0] == pytest.approx(policy.expected_return, abs=1e-10)


def test_cross_fitting_leaves_doubly_robust_without_bias():
    """Sum over all pairs of episodes of three prompts: each is judged by what the other has fitted."""
    pool = LogPool.of("Distractor")
    policy, some = between(pool.solution, 0.5), np.flatnonzero(pool.states[:, 0] < 3)
    chances = pool.probability[some] / pool.probability[some].sum()
    truth = chances @ importance_sampling(log_of(pool, policy, some)).tops
    total = 0.0
    for one, first in zip(some, chances, strict=True):
        for two, second in zip(some, chances, strict=True):
            pair = log_of(pool, policy, np.array([one, two]))
            total += first * second * doubly_robust(pair, *cross_fitted(pair)).value
    assert len(some) >= 9
    assert total == pytest.approx(truth, abs=1e-10)


def test_unvisited_tokens_have_the_mean_of_their_state():
    # One state, tokens 0 and 1 with pi = 0.3 and 0.5; a third, never logged, has 0.2.
    log = Logged(
        np.ones(4, dtype=np.int64),
        np.zeros((4, 1), dtype=np.int64),
        np.array([[0], [0], [1], [1]]),
        np.array([[1.0], [3.0], [6.0], [6.0]]),
        np.log([[0.3], [0.3], [0.5], [0.5]]),
        np.zeros((4, 1)),
        np.zeros(4),
    )
    values, action_values = fitted_q(log, np.ones((4, 1)))
    assert values[:, 0, 0].tolist() == pytest.approx([0.3 * 2 + 0.5 * 6 + 0.2 * 4] * 4)
    assert action_values[:, 0, 0].tolist() == pytest.approx([2, 2, 6, 6])
    # Of the second pair nothing is fitted: it has the value of its state.
    values, action_values = fitted_q(log, np.array([[1.0], [1], [0], [0]]))
    assert action_values[:, 0, 0].tolist() == pytest.approx([2, 2, 2, 2])
    values, action_values = fitted_q(log, np.ones((4, 1)), shrink=2.0)
    assert action_values[:, 0, 0].tolist() == pytest.approx([3, 3, 5, 5])
    estimate = fitted_interval(log, np.array([[2, 0, 2, 0], [0, 2, 0, 2]]))
    assert estimate.mean == pytest.approx(0.3 * 2 + 0.5 * 6 + 0.2 * 4)
    # The two resamples give 0.3 * 1 + 0.5 * 6 + 0.2 * 3.5 = 4 and 0.3 * 3 + 0.5 * 6 + 0.2 * 4.5 = 4.8. Of 4 episodes
    # the deviations are widened by sqrt(4 / 3), and the quantiles between two values are 0.95 of the way.
    far = 0.95 * 0.4 * (4 / 3) ** 0.5
    assert (estimate.low, estimate.high) == pytest.approx((4.4 - far, 4.4 + far))
    # Of three, 4, 4.8 and 4.8, with the mean 68 / 15: a twentieth of the way from the lowest, and the highest.
    estimate = fitted_interval(log, np.array([[2, 0, 2, 0], [0, 2, 0, 2], [0, 2, 0, 2]]))
    ends = np.array([4.04, 4.8]) - 68 / 15
    assert (estimate.low, estimate.high) == pytest.approx(tuple(4.4 + ends * (4 / 3) ** 0.5))


def two_prompts():
    """Prompt 0 is answered by a c, a d and b, prompt 3 by e; behind a is state 1. See the numbers below."""
    unused = (8, 9)
    return Logged(
        np.array([2, 2, 1, 1]),
        np.array([[0, 1], [0, 1], [0, unused[0]], [3, unused[1]]]),
        np.array([[0, 2], [0, 3], [1, unused[0]], [4, unused[1]]]),
        np.array([[1.0, 2.0], [1.0, 5.0], [4.0, 0.0], [10.0, 0.0]]),
        np.log([[0.6, 0.25], [0.6, 0.75], [0.4, 1.0], [1.0, 1.0]]),
        np.zeros((4, 2)),
        np.zeros(4),
    )


@pytest.mark.parametrize(
    ("counts", "values", "action_values"),
    [
        # V(1) = 0.25 * 2 + 0.75 * 5 = 4.25, Q(a) = 1 + 4.25, V(0) = 0.6 * 5.25 + 0.4 * 4 = 4.75.
        (
            [1, 1, 1, 1],
            [[4.75, 4.25], [4.75, 4.25], [4.75, 0], [10, 0]],
            [[5.25, 2], [5.25, 5], [4, 0], [10, 0]],
        ),
        # Without d, it is worth what c is: V(1) = 2, Q(a) = 3.
        ([1, 0, 1, 1], [[3.4, 2], [3.4, 2], [3.4, 0], [10, 0]], [[3, 2], [3, 2], [4, 0], [10, 0]]),
        # Without a, it is worth what b is, and so is what comes behind it.
        ([0, 0, 1, 1], [[4, 4], [4, 4], [4, 0], [10, 0]], [[4, 4], [4, 4], [4, 0], [10, 0]]),
        # A prompt that was never fitted has the mean of the others.
        (
            [1, 1, 1, 0],
            [[4.75, 4.25], [4.75, 4.25], [4.75, 0], [4.75, 0]],
            [[5.25, 2], [5.25, 5], [4, 0], [4.75, 0]],
        ),
        # Only prompt 3 is known; then a pair of episodes that count for three and one.
        ([0, 0, 0, 2], [[10, 10], [10, 10], [10, 0], [10, 0]], [[10, 10], [10, 10], [10, 0], [10, 0]]),
        ([3, 1, 4, 0], [[4.75, 4.25], [4.75, 4.25], [4.75, 0], [4.75, 0]], [[5.25, 2], [5.25, 5], [4, 0], [4.75, 0]]),
    ],
)
def test_fitted_q_by_hand(counts, values, action_values):
    found = fitted_q(two_prompts(), np.array(counts, dtype=np.float64)[:, None])
    assert found[0][:, :2, 0].tolist() == [pytest.approx(row) for row in values]
    assert found[0][:, 2, 0].tolist() == [0] * 4
    assert found[1][:, :, 0].tolist() == [pytest.approx(row) for row in action_values]


def test_each_half_is_judged_by_what_the_other_fits(every):
    values, action_values = cross_fitted(every)
    odd = np.arange(len(every.lengths)) % 2
    for half in (0, 1):
        fitted = fitted_q(every, 1.0 * (odd != half)[:, None], 10.0)
        np.testing.assert_array_equal(values[odd == half], fitted[0][odd == half, :, 0])
        np.testing.assert_array_equal(action_values[odd == half], fitted[1][odd == half, :, 0])


def test_the_interval_of_fitted_q_holds_its_estimate_though_every_resample_is_lower():
    # A resample that lacks the one token that pays counts it as the mean of the others: 0.9 * 0 instead of 0.9 * 1.
    tokens = np.array([0, 0, 0, 1])[:, None]
    chances = np.log(np.array([0.1, 0.9])[tokens])
    paid = np.array([[0.0], [0.0], [0.0], [1.0]])
    log = Logged(
        np.ones(4, dtype=np.int64), np.zeros((4, 1), dtype=np.int64), tokens, paid, chances, chances, np.zeros(4)
    )
    estimate = fitted_interval(log, np.array([[2, 2, 0, 0], [1, 3, 0, 0], [1, 1, 1, 1]]))
    assert estimate.mean == pytest.approx(0.9)
    assert estimate.low < estimate.mean < estimate.high


def test_weights_by_hand():
    log = Logged(
        np.array([2, 1]),
        np.zeros((2, 2), dtype=np.int64),
        np.zeros((2, 2), dtype=np.int64),
        np.array([[1.0, 2.0], [4.0, 0.0]]),
        np.log([[0.5, 0.5], [0.25, 1.0]]),
        np.log([[0.25, 0.5], [0.5, 1.0]]),
        np.log([0.125, 0.5]),
    )
    np.testing.assert_allclose(log.weights, [2.0, 0.5])
    assert importance_sampling(log).value == pytest.approx((2 * 3 + 0.5 * 4) / 2)
    assert self_normalised(log).value == pytest.approx((2 * 3 + 0.5 * 4) / 2.5)
    assert per_decision(log).value == pytest.approx((2 * 1 + 2 * 2 + 0.5 * 4) / 2)
    assert truncated(log, 1.5).value == pytest.approx((1.5 * 3 + 0.5 * 4) / 2)


def test_effective_samples_by_hand():
    ones = np.ones(4)
    assert effective_samples(Terms(np.array([0.0, 0, 0, 1]), ones), ones) == 1.0  # one of four says another thing
    assert effective_samples(Terms(np.array([1.0, 2, 3, 4]), ones), ones) == pytest.approx((2 * 2) ** 2 / 5)
    assert effective_samples(Terms(np.full(3, 2.0), np.ones(3)), np.array([2.0, 1, 1])) == pytest.approx(16 / 6)
    assert effective_samples(Terms(np.zeros(3), np.ones(3)), np.zeros(3)) == 0.0
    # Of a ratio of 1 the episodes move -1, -1 and 2 away; the median is -1.
    assert effective_samples(Terms(np.array([0.0, 1, 5]), np.array([1.0, 2, 3])), np.ones(3)) == 1.0
    assert effective_samples(Terms(np.zeros(3), np.ones(3)), np.array([1e200, 1e200, 0])) == 2.0


def test_bernstein_by_hand():
    # 1,000 ones: 50 choose c = 1, 950 bound: no variance, so 1 - 7 ln(2 / 0.05) / (3 * 949) is left.
    assert bernstein_bound(np.ones(1000)) == pytest.approx(1 - 7 * math.log(40) / (3 * 949))
    # Zeros and ones in turn: the variance of 950 of them is 0.25 * 950 / 949.
    turns = np.arange(1000) % 2.0
    width = math.sqrt(2 * 0.25 * (950 / 949) * math.log(40) / 950)
    assert bernstein_bound(turns) == pytest.approx(0.5 - width - 7 * math.log(40) / (3 * 949))
    assert bernstein_bound(np.ones(3)) == 0.0
    # In twice the unit it is twice as much.
    assert bernstein_bound(np.full(1000, 2.0)) == pytest.approx(2 - 14 * math.log(40) / (3 * 949))
    assert bernstein_bound(np.full(1000, 1e-3)) == pytest.approx(1e-3 * (1 - 7 * math.log(40) / (3 * 949)))
    assert bernstein_bound(np.ones(59)) == pytest.approx(1 - 7 * math.log(40) / (3 * 56))  # two choose, 57 bound
    # One draw that is far away among those that choose: they choose the least cut, a sixteenth of it.
    assert bernstein_bound(np.append(1000.0, np.ones(999))) == pytest.approx(1 - 7 * 62.5 * math.log(40) / (3 * 949))


def test_the_bound_holds_where_weights_have_a_heavy_tail():
    generator = np.random.default_rng(0)
    draws = np.exp(2 * generator.standard_normal((200, 400)) - 2)  # mean 1
    assert np.mean([bernstein_bound(each) <= 1 for each in draws]) >= 0.95


def test_the_lower_bound_is_on_shifted_returns(every):
    paid = replace(every, rewards=every.rewards - 3 * (np.arange(every.rewards.shape[1]) == every.lengths[:, None] - 1))
    assert lower_bound(paid, -3.0) == pytest.approx(lower_bound(every, 0.0) - 3)
    with pytest.raises(ValueError, match=r"minimum=-2: a return in the log is -3"):
        lower_bound(paid, -2.0)


def one_step(returns, ratios=1.0):
    """A log of episodes of one token with these returns, and ratios pi / pi_b."""
    count = len(returns)
    log_policy = np.log(np.broadcast_to(ratios, count))[:, None]
    alone = np.ones(count, dtype=np.int64), np.zeros((count, 1), dtype=np.int64), np.arange(count)[:, None]
    return Logged(*alone, np.array(returns)[:, None], log_policy, np.zeros((count, 1)), np.zeros(count))


def test_the_lower_bound_by_hand():
    far = 7 * math.log(40) / (3 * 949)  # as for the mean of 1,000 ones
    assert lower_bound(one_step([2.0] * 1000), 1.0) == pytest.approx(1 + 1 - far)
    assert lower_bound(one_step([2.0] * 1000, 0.5), -1.0) == pytest.approx(-1 + 1.5 * (1 - far))
    assert lower_bound(one_step([1.0, 3.0] * 1000), 1.0, 2) == pytest.approx(1 + 1 - far)
    # Rounding may put a return under the least one.
    assert lower_bound(one_step([0.5 - 1e-12] * 100), 0.5) == 0.5


def test_the_studentised_interval_is_that_of_a_plain_bootstrap():
    generator = np.random.default_rng(1)
    tops, bottoms = generator.exponential(size=30), generator.uniform(0.5, 1.5, 30)
    drawn = generator.integers(30, size=(400, 30))
    counts = np.stack([np.bincount(each, minlength=30) for each in drawn])

    def ratio_and_error(rows):
        ratio = tops[rows].sum() / bottoms[rows].sum()
        rest = tops[rows] - ratio * bottoms[rows]
        return ratio, math.sqrt((rest**2).sum()) / bottoms[rows].sum()

    value, error = ratio_and_error(np.arange(30))
    students = [(found - value) / own for found, own in map(ratio_and_error, drawn)]
    low, high = np.quantile(students, [0.025, 0.975])
    found, plain = ratio_intervals(Terms(tops, bottoms), counts)
    assert (found.mean, found.low, found.high) == pytest.approx((value, value - high * error, value - low * error))
    ratios = [ratio_and_error(rows)[0] for rows in drawn]
    assert (plain.low, plain.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_a_resample_without_spread_is_left_out_of_the_studentised_interval():
    generator = np.random.default_rng(2)
    tops, bottoms = generator.normal(size=30), generator.uniform(0.5, 1.5, 30)
    counts = generator.multinomial(30, np.full(30, 1 / 30), 200)
    found, _ = ratio_intervals(Terms(tops, bottoms), counts)
    again, _ = ratio_intervals(Terms(tops, bottoms), np.append(counts, 30 * np.eye(30), axis=0))
    assert again == found
    small, _ = ratio_intervals(Terms(1e-14 * tops, bottoms), counts)
    assert (small.low, small.high) == pytest.approx((1e-14 * found.low, 1e-14 * found.high), rel=1e-6, abs=0)
    # Where all say the same, there is no spread at all; of two, neither resample has one.
    twice = 2 * np.eye(2)
    assert ratio_intervals(Terms(np.full(2, 3.0), np.ones(2)), twice)[0] == Estimate(3.0, 3.0, 3.0)
    assert ratio_intervals(Terms(np.array([0.0, 1]), np.ones(2)), twice)[0] == Estimate(0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def sampled(pool, policy):
    rows = np.random.default_rng(0).choice(len(pool.lengths), 400, p=pool.probability)
    return log_of(pool, policy, rows)


def test_what_is_judged_and_what_is_not_known(sampled, policy):
    judged = judge(sampled)
    assert len(judged) == 6
    for each in judged.values():
        assert each.estimate is not None
        assert each.estimate.mean == pytest.approx(policy.expected_return, abs=0.1)
        assert each.effective_samples > 10
    same = judge(replace(sampled, rewards=np.zeros_like(sampled.rewards)))
    assert {each.why for each in same.values()} == {"the rewards of the log do not differ"}
    charged = judge(replace(sampled, earned=np.zeros(400)))  # the KL differs, what was paid does not
    assert {each.why for each in charged.values()} == {"the rewards of the log do not differ"}
    far = np.where(sampled.edges[:, :1] == sampled.edges[0, 0], 20.0, -20.0) * (np.arange(3) == 0)
    few = judge(replace(sampled, log_policy=sampled.log_logged + far * np.array([[1.0]] + [[0.1]] * 399)))
    assert few["importance sampling"].estimate is None
    for name in ("importance sampling", "fitted Q"):
        assert few[name].estimate is None
        assert few[name].why == "fewer than 10 effective samples"


def test_ten_effective_samples_are_enough_and_none_are_none():
    ten = judge(one_step([0.0, 1.0] * 5))
    assert {each.effective_samples for each in ten.values()} == {10.0}
    assert all(each.estimate is not None for each in ten.values())
    # Of eleven, one that the policy never writes leaves ten.
    with np.errstate(divide="ignore"):
        one_never = judge(one_step([0.0, 1.0] * 5 + [1.0], [1.0] * 10 + [0.0]))
        assert one_never["fitted Q"].effective_samples == 10.0
        none = judge(one_step([0.0, 1.0] * 10, 0.0))
    assert {each.effective_samples for each in none.values()} == {0.0}
    assert all(each.estimate is None for each in none.values())


def test_intervals_are_studentised_and_of_fitted_q_those_of_200_resamples(sampled):
    counts, found = resampled_counts(np.random.default_rng([0, 12]), 400), judge(sampled)
    assert found["fitted Q"].estimate == fitted_interval(sampled, counts[:200])
    assert found["importance sampling"].estimate == ratio_intervals(importance_sampling(sampled), counts)[0]


def test_a_sum_of_log_probs_allows_whole_trajectories_only(sampled):
    judged = judge(replace(sampled, log_logged=np.full_like(sampled.log_logged, np.nan)))
    known = {name for name, each in judged.items() if each.estimate is not None}
    assert known == {"importance sampling", "self-normalised", "truncated", "fitted Q"}
    assert judged["per decision"].why == "not every episode of the log has log-probabilities of tokens"
    one = sampled.log_logged.copy()
    one[7, 0] = np.nan
    assert judge(replace(sampled, log_logged=one))["per decision"].estimate is None
    unknown = np.full_like(sampled.log_logged_sums, np.nan)
    nothing = replace(sampled, log_logged=np.full_like(sampled.log_logged, np.nan), log_logged_sums=unknown)
    judged = judge(nothing)
    assert [name for name, each in judged.items() if each.estimate is not None] == ["fitted Q"]


def test_groups_are_resampled_together(sampled):
    doubled = replace(
        sampled,
        **{
            name: np.repeat(getattr(sampled, name), 2, axis=0)
            for name in vars(sampled)
            if name in Logged.__annotations__ and name != "earned"
        },
    )
    once, twice = judge(sampled), judge(doubled, group=2)
    for name in ("importance sampling", "self-normalised", "per decision", "truncated"):
        assert twice[name] == pytest.approx(once[name]) or str(twice[name].estimate) == str(once[name].estimate)
    assert twice["fitted Q"].effective_samples == pytest.approx(once["fitted Q"].effective_samples)
    with pytest.raises(ValueError, match="group=3: allowed are divisors of 400 episodes"):
        judge(sampled, group=3)
