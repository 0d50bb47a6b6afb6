"""Best-of-n: against enumeration of all subsets, and against plain sampling."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.best_of_n import best_of_n, best_of_n_kl, rank_shares


def by_enumeration(proxy, gold, n):
    """Mean proxy and gold of the best of every subset of n; any of equal ones."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        highest = max(proxy[i] for i in subset)
        found.append((highest, np.mean([gold[i] for i in subset if proxy[i] == highest])))
    return np.mean(found, axis=0)


@given(st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([1, 2, 4, 10**9]))
@settings(deadline=None, max_examples=40)
def test_the_mean_over_all_subsets_is_what_enumeration_gives(n, seed, values):
    generator = np.random.default_rng(seed)
    proxy, gold = generator.integers(values, size=(3, 7)) / 3, generator.normal(size=(3, 7))
    weights = generator.dirichlet(np.ones(3))
    found = best_of_n(proxy, gold, weights, n)
    expected = weights @ np.array([by_enumeration(p, g, n) for p, g in zip(proxy, gold, strict=True)])
    np.testing.assert_allclose([found.proxy.mean, found.gold.mean], expected)


def test_where_the_proxy_tells_nothing_apart_the_best_is_any_sample():
    gold, weights = np.random.default_rng(0).normal(size=(2, 6)), np.array([0.3, 0.7])
    any_one, best = (best_of_n(np.zeros((2, 6)), gold, weights, n) for n in (1, 4))
    np.testing.assert_allclose(best.replicates, any_one.replicates)
    assert best.gold.mean == pytest.approx(weights @ gold.mean(1))
    assert best.gold.low < best.gold.mean - 0.1


def test_shares_by_hand():
    # Of 4 samples, pairs whose best is among the k worst: C(k, 2) of 6.
    np.testing.assert_allclose(rank_shares(4, 2), [0, 0, 1 / 6, 3 / 6, 1])


def test_kl_by_hand():
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)


def test_with_n_1_it_is_the_plain_mean_and_with_all_samples_the_best():
    proxy = np.array([[0.0, 2.0, 1.0]])
    gold = np.array([[5.0, -1.0, 3.0]])
    weights = np.ones(1)
    assert best_of_n(proxy, gold, weights, 1).gold.mean == pytest.approx(7 / 3)
    assert best_of_n(proxy, gold, weights, 3).gold.mean == -1.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # The best of 2 uniform numbers has mean 2 / 3.
    covered = 0
    for seed in range(200):
        samples = np.random.default_rng(seed).random((4, 40))
        found = best_of_n(samples, samples, np.full(4, 0.25), 2, seed)
        covered += found.proxy.low <= 2 / 3 <= found.proxy.high
    assert covered >= 180  # of 190 expected; 3.2 standard deviations below


@pytest.mark.parametrize("n", [0, 4, -1])
def test_n_out_of_range_is_named(n):
    with pytest.raises(ValueError, match=rf"n={n}: allowed is 1..3"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 3)), np.ones(1), n)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="shapes differ"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 2)), np.ones(1), 1)
