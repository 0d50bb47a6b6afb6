"""Statistics against hand arithmetic, enumeration, known distributions, and tables with gaps."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import strata_of_matrix
from textgym_benchmarks.statistics import (
    aggregates,
    improvement_of_counts,
    interquartile_mean,
    mean,
    mean_of_runs,
    median,
    optimality_gap,
    percentile_interval,
    performance_profile,
    probability_of_improvement,
    resample,
    run_counts,
    share_above,
    strata_of,
)

ALL = {"iqm": interquartile_mean, "mean": mean, "median": median, "gap": optimality_gap}
GENERATOR = np.random.default_rng
SCORES = st.floats(-2, 2, allow_nan=False).map(lambda score: round(score, 3))
GROUPS = st.lists(st.lists(SCORES, max_size=4), min_size=1, max_size=5).filter(any)


def test_aggregates_match_hand_arithmetic():
    # Two runs of three tasks. Sorted: 0, 1, 2, 3, 4, 8; a quarter of 6 is 1.5, so one is cut at each end.
    strata = strata_of([[0.0, 4.0], [1.0, 3.0], [2.0, 8.0]])
    assert float(interquartile_mean(strata.values, strata)) == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert float(mean(strata.values, strata)) == pytest.approx((2 + 2 + 5) / 3)
    assert float(median(strata.values, strata)) == pytest.approx(2.0)
    # min(score, 1): 0, 1, 1, 1, 1, 1.
    assert float(optimality_gap(strata.values, strata)) == pytest.approx(1 - 5 / 6)
    shares = share_above(strata.values, strata, np.array([-1.0, 2.0, 8.0]))
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.0])  # "above" is strict


def test_a_task_with_fewer_runs_weighs_as_much_as_any_other():
    # Task a: 1, 1, 1 (each weighs 1/6); task b: 0 (weighs 1/2). N = 4: a quarter of the weight is cut at each end,
    # so 1/4 of the run that scores 0 and 1/4 of the others stay: (0 + 1) / 2.
    strata = strata_of([[1.0, 1.0, 1.0], [0.0]], expected=[3, 3])
    assert float(interquartile_mean(strata.values, strata)) == pytest.approx(0.5)
    assert float(mean(strata.values, strata)) == pytest.approx(0.5)
    np.testing.assert_allclose(share_above(strata.values, strata, np.array([0.5])), [0.5])
    found = aggregates(strata, {"mean": mean}, GENERATOR(0), replicates=50)["mean"]
    assert (found.runs, found.of_runs, found.tasks, found.of_tasks) == (4, 6, 2, 2)


def test_a_task_without_a_run_is_left_out_and_counted():
    strata = strata_of_matrix([[0.2, np.nan, 0.4], [0.4, np.nan, np.nan]])
    assert strata.sizes.tolist() == [2, 0, 1]
    assert strata.expected.tolist() == [2, 2, 2]
    found = aggregates(strata, ALL, GENERATOR(0), replicates=200)
    assert found["mean"].value == pytest.approx((0.3 + 0.4) / 2)
    assert (found["mean"].tasks, found["mean"].of_tasks) == (2, 3)
    # The second task has one run: only the first one's two runs spread.
    assert found["mean"].low == pytest.approx((0.2 + 0.4) / 2)
    assert found["mean"].high == pytest.approx((0.4 + 0.4) / 2)


def test_nothing_is_said_of_no_run_and_no_interval_of_single_runs():
    empty = aggregates(strata_of([[], []], expected=[3, 3]), ALL, GENERATOR(0))["iqm"]
    assert (empty.value, empty.low, empty.high, empty.runs, empty.of_runs) == (None, None, None, 0, 6)
    single = aggregates(strata_of([[0.1], [0.3]]), ALL, GENERATOR(0))["mean"]
    assert (single.value, single.low, single.high) == (pytest.approx(0.2), None, None)
    share, low, high = performance_profile(strata_of([[0.1], [0.3]]), [0.2], GENERATOR(0))
    assert (share.tolist(), low, high) == ([0.5], None, None)


def test_resamples_stay_within_their_task_and_are_even():
    strata = strata_of([[0.0, 1.0, 2.0], [], [10.0, 11.0]])
    drawn = strata.values[resample(strata, 20_000, GENERATOR(0))]
    assert set(np.unique(drawn[:, :3])) == {0.0, 1.0, 2.0}
    assert set(np.unique(drawn[:, 3:])) == {10.0, 11.0}
    for score, share in ((0.0, 1 / 3), (2.0, 1 / 3), (11.0, 1 / 2)):
        columns = drawn[:, :3] if score < 10 else drawn[:, 3:]
        deviation = (share * (1 - share) / columns.size) ** 0.5
        assert abs((columns == score).mean() - share) < 5 * deviation


def test_the_bootstrap_has_the_spread_that_it_should():
    # The mean over 40 tasks of 3 resampled runs: variance = sum of within-task variances (divided by n) / 3 / 40^2.
    scores = GENERATOR(1).normal(size=(3, 40))
    strata = strata_of_matrix(scores)
    replicates = mean(strata.values[resample(strata, 20_000, GENERATOR(2))], strata)
    expected = (scores.var(0).sum() / 3 / 40**2) ** 0.5
    assert replicates.std() == pytest.approx(expected, rel=0.03)
    assert replicates.mean() == pytest.approx(scores.mean(), abs=5 * expected / 20_000**0.5)
    low, high = percentile_interval(replicates)
    assert (high - low) / 2 == pytest.approx(1.96 * expected, rel=0.05)


@given(GROUPS)
@settings(max_examples=40, deadline=None)
def test_aggregates_lie_within_the_scores_move_with_them_and_ignore_the_order_of_runs(groups):
    strata = strata_of(groups)
    for name, statistic in ALL.items():
        value = float(statistic(strata.values, strata))
        assert min(strata.values) - 1e-9 <= value <= max(strata.values) + 1e-9 or name == "gap"
        moved = float(statistic(strata.values[None] + 1.0, strata)[0])
        if name != "gap":
            assert moved == pytest.approx(value + 1.0)
    order = [sorted(group, reverse=True) for group in groups]
    for statistic in ALL.values():
        again = strata_of(order)
        assert float(statistic(again.values, again)) == pytest.approx(
            float(statistic(strata.values, strata)), abs=1e-12
        )


def test_few_runs_are_resampled_by_enumeration():
    runs = np.array([[0.0], [0.3], [0.9]])
    found, low, high = (float(end[0]) for end in mean_of_runs(runs, GENERATOR(0)))
    # 27 resamples; the least mean (0, 0, 0) has probability 1/27 > 0.025: the interval is the range.
    assert (found, low, high) == (pytest.approx(0.4), 0.0, pytest.approx(0.9))
    four = np.array([0.1, 0.2, 0.5, 0.9])
    means = np.sort([np.mean(rows) for rows in product(four, repeat=4)])
    _, low, high = (float(end[0]) for end in mean_of_runs(four[:, None], GENERATOR(0)))
    # 256 resamples: the seventh from either end is the first at which 2.5% (6.4) are reached.
    assert (low, high) == (pytest.approx(means[6]), pytest.approx(means[-7]))


@pytest.mark.long
def test_many_runs_are_resampled_at_random_to_the_normal_interval():
    runs = GENERATOR(3).normal(size=(400, 2))
    found, low, high = mean_of_runs(runs, GENERATOR(0), replicates=4000)
    np.testing.assert_allclose(found, runs.mean(0))
    np.testing.assert_allclose((high - low) / 2, 1.96 * runs.std(0) / 20, rtol=0.06)


def test_points_of_a_curve_that_some_runs_lack():
    nan = np.nan
    found, low, high = mean_of_runs(np.array([[1.0, 1.0, nan], [1.0, nan, nan], [3.0, 2.0, nan]]), GENERATOR(0))
    np.testing.assert_allclose(found, [5 / 3, 1.5, nan])
    np.testing.assert_allclose(low, [1.0, 1.0, nan])
    np.testing.assert_allclose(high, [3.0, 2.0, nan])
    _, low, high = mean_of_runs(np.array([[0.1], [nan]]), GENERATOR(0))
    assert np.isnan([low[0], high[0]]).all()
    # Equal runs have an interval without width, to the last bit.
    found, low, high = mean_of_runs(np.full((3, 1), 0.1), GENERATOR(0))
    assert low[0] == high[0] == 0.1


def test_the_interval_of_three_runs_holds_the_mean_three_times_in_four():
    """What the docstring of the bootstrap warns of: of 95%, nobody should believe it."""
    runs = GENERATOR(4).normal(size=(3, 4000))
    _, low, high = mean_of_runs(runs, GENERATOR(0))
    share = ((low <= 0) & (high >= 0)).mean()
    assert share == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 4000) ** 0.5)


def test_improvement_matches_hand_arithmetic():
    # Task 0: 1 > 0, 1 = 1 (half): 1.5 of 2. Task 1: 0 of 2. Task 2 is not shared.
    first = strata_of([[1.0], [0.0, 0.0], [5.0]])
    second = strata_of([[0.0, 1.0], [1.0], []], expected=[2, 1, 2])
    found = probability_of_improvement(first, second, GENERATOR(0))
    assert (found.value, found.tasks, found.of_tasks) == (pytest.approx((0.75 + 0.0) / 2), 2, 3)
    # Only the second agent's runs on task 0 spread: both 0 (P 1), one of each (0.75), both 1 (0.5).
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.5))
    nothing = probability_of_improvement(strata_of([[], [1.0]]), strata_of([[1.0], []]), GENERATOR(0))
    assert (nothing.value, nothing.low, nothing.tasks) == (None, None, 0)


@given(GROUPS, st.data())
@settings(max_examples=30, deadline=None)
def test_improvement_one_way_is_one_less_the_other_way(groups, data):
    first = strata_of(groups)
    second = strata_of([data.draw(st.lists(SCORES, max_size=3)) for _ in groups])
    counts = [run_counts(each, 40, GENERATOR(i)) for i, each in enumerate((first, second))]
    there, back = (
        improvement_of_counts(first, second, *counts),
        improvement_of_counts(second, first, *counts[::-1]),
    )
    if there.value is None:
        assert back.value is None
        return
    assert there.value == pytest.approx(1 - back.value)
    if there.low is not None:
        assert there.low == pytest.approx(1 - back.high)
        assert there.high == pytest.approx(1 - back.low)


def test_the_same_generator_gives_the_same_numbers_and_nothing_global_is_drawn():
    strata = strata_of_matrix(GENERATOR(5).normal(size=(4, 6)))
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second = (aggregates(strata, ALL, GENERATOR(6), replicates=100) for _ in range(2))
    assert first == second
    assert first != aggregates(strata, ALL, GENERATOR(7), replicates=100)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_the_interval_of_three_runs_holds_the_median_three_times_in_four():
    """What RESULTS.md says: their range, which misses where all three fall on one side: 1 - 2 / 2^3."""
    runs = GENERATOR(8).normal(size=(3, 20_000))
    _, low, high = mean_of_runs(runs, GENERATOR(0))
    np.testing.assert_allclose((low, high), (runs.min(0), runs.max(0)), atol=1e-14)
    deviation = (0.75 * 0.25 / 20_000) ** 0.5
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.75, abs=4 * deviation)
    skewed = GENERATOR(9).exponential(size=(3, 20_000))
    _, low, high = mean_of_runs(skewed, GENERATOR(0))
    assert ((low < np.log(2)) & (high > np.log(2))).mean() == pytest.approx(0.75, abs=4 * deviation)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_the_interval_of_an_aggregate_of_three_seeds_holds_the_truth_89_times_in_100(statistic):
    """Deviations of three runs from their own mean are sqrt(2/3) of those from the truth: Phi(1.96 sqrt(2/3))."""
    expected = math.erf(1.96 * (2 / 3) ** 0.5 / 2**0.5)
    assert expected == pytest.approx(0.89, abs=0.005)
    held, trials = 0, 600
    for trial in range(trials):
        strata = strata_of_matrix(GENERATOR([10, trial]).normal(size=(3, 14)))
        found = aggregates(strata, {"it": ALL[statistic]}, GENERATOR(trial), replicates=400)["it"]
        held += found.low < 0 < found.high
    assert held / trials == pytest.approx(expected, abs=3 * (expected * (1 - expected) / trials) ** 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strata_of([]), r"groups=\[\]: allowed is at least one task"),
        (lambda: strata_of([[1.0, np.nan]]), "nan is no score"),
        (lambda: strata_of([[np.inf]]), "inf is no score"),
        (lambda: strata_of([[1.0, 2.0]], expected=[1]), r"expected=\[1\]: allowed are counts >= \[2\]"),
        (lambda: resample(strata_of([[1.0]]), 0, GENERATOR(0)), "replicates=0: allowed is an int >= 1"),
        (lambda: percentile_interval(np.zeros(3), 1.0), "confidence=1.0: allowed is"),
        (lambda: performance_profile(strata_of([[]]), [0.0], GENERATOR(0)), "no task has a run"),
        (lambda: performance_profile(strata_of([[1.0]]), [np.nan], GENERATOR(0)), "thresholds="),
        (lambda: mean_of_runs(np.zeros(3), GENERATOR(0)), r"shape \(3,\)"),
        (
            lambda: probability_of_improvement(strata_of([[1.0]]), strata_of([[1.0], []]), GENERATOR(0)),
            "second: 2 tasks; allowed is as many as the first has",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
