"""The annotator's frequencies against the formulas of Bradley and Terry and of Plackett and Luce."""

from __future__ import annotations

from itertools import permutations
from math import exp, sqrt

import numpy as np
import pytest

from textgym.preferences import annotate

N = 40_000


def assert_share(count: int, probability: float) -> None:
    """Within 4 standard deviations of a binomial count."""
    deviation = sqrt(probability * (1 - probability) / N)
    assert abs(count / N - probability) < 4 * deviation


@pytest.mark.parametrize(("difference", "temperature"), [(1.0, 1.0), (0.3, 0.1), (-0.5, 0.4), (0.0, 2.0)])
def test_two_are_ordered_as_by_bradley_and_terry(difference, temperature):
    scores = np.tile([difference + 5, 5.0], (N, 1))
    order = annotate(scores, temperature, np.random.default_rng(1))
    assert order.dtype == np.int64
    assert_share(int((order[:, 0] == 0).sum()), 1 / (1 + exp(-difference / temperature)))


def test_three_are_ordered_as_by_plackett_and_luce():
    scores, temperature = np.array([0.5, 0.2, -0.3]), 0.5
    order = annotate(np.tile(scores, (N, 1)), temperature, np.random.default_rng(2))
    strengths = [exp(score / temperature) for score in scores]
    for wanted in permutations(range(3)):
        # Each place is won against those that are left.
        first, second, third = (strengths[i] for i in wanted)
        probability = first / (first + second + third) * second / (second + third)
        assert_share(int((order == wanted).all(1).sum()), probability)


@pytest.mark.parametrize("temperature", [0.0, 1e-300])
def test_without_temperature_there_are_no_mistakes(temperature):
    scores = np.random.default_rng(3).normal(size=(500, 5)) * 10.0 ** np.arange(-250, 250)[:, None]
    order = annotate(scores, temperature, np.random.default_rng(4))
    sorted_scores = np.take_along_axis(scores, order, 1)
    if temperature == 0:
        assert (np.diff(sorted_scores, axis=1) < 0).all()
    assert (np.sort(order, axis=1) == np.arange(5)).all()
    assert (np.diff(sorted_scores[50:], axis=1) < 0).all()


def test_a_fair_coin_breaks_ties():
    order = annotate(np.tile([0.0, 1.0, 1.0], (N, 1)), 0.0, np.random.default_rng(5))
    assert (order[:, 2] == 0).all()
    assert_share(int((order[:, 0] == 1).sum()), 0.5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_constant_changes_nothing(temperature):
    # Quarters, so that adding 1,000 rounds nothing.
    scores = np.random.default_rng(6).integers(-8, 8, size=(2000, 4)) / 4
    orders = [annotate(scores + shift, temperature, np.random.default_rng(7)) for shift in (0.0, 1000.0, -3.0)]
    np.testing.assert_array_equal(orders[0], orders[1])
    np.testing.assert_array_equal(orders[0], orders[2])


def test_scores_and_temperature_scale_together():
    scores = np.random.default_rng(8).normal(size=(2000, 3))
    small, large = (annotate(scores * c, 0.5 * c, np.random.default_rng(9)) for c in (1.0, 1024.0))
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_temperatures_that_are_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature!r}"):
        annotate([[0.0, 1.0]], temperature, np.random.default_rng(0))


@pytest.mark.parametrize("scores", [[0.0, 1.0], [[0.0, float("nan")]], [[0.0, float("inf")]]])
def test_scores_that_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        annotate(scores, 1.0, np.random.default_rng(0))


def test_no_rows_have_no_order():
    assert annotate(np.zeros((0, 3)), 1.0, np.random.default_rng(0)).shape == (0, 3)
