"""Best-of-n from samples: its KL against integrals and normal distributions, its rewards against all subsets."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from solver_tools import bigram, small_task, uneven

from textgym.best_of_n import best_of_n, best_of_n_edges, highest, sampled_kl
from textgym.rewards import Blurred, Reward
from textgym.solver import UnsolvableError, edge_log_probs, prefix_tree

NODES, SHARES = np.polynomial.legendre.leggauss(200)


def integral(counts: list[int], tied: list[bool], n: int) -> float:
    """KL of the highest of n uniform numbers to one, integral of d log d, where a tied level is a mean over its own."""
    total, below = 0.0, 0.0
    for count, same in zip(counts, tied, strict=True):
        up_to = below + count / sum(counts)
        u = below + (up_to - below) * (1 + NODES) / 2
        density = n * u ** (n - 1)
        if same and count > 1:
            density = np.full(len(u), (up_to**n - below**n) / (up_to - below))
        total += (up_to - below) / 2 * (SHARES @ (density * np.log(density)))
        below = up_to
    return total


def by_normals(counts: list[int], means: list[float], deviations: list[float], n: int) -> float:
    """KL of the highest of n = 2 or 3 noisy returns, its probabilities by a fine sum over the line."""
    places = np.linspace(min(means) - 10 * max(deviations), max(means) + 10 * max(deviations), 4001)
    normals = [NormalDist(mean, deviation) for mean, deviation in zip(means, deviations, strict=True)]
    masses = np.array(counts) / sum(counts)
    up_to = masses @ np.array([[each.cdf(x) for x in places] for each in normals])
    densities = np.array([[each.pdf(x) for x in places] for each in normals])
    chosen = masses * n * (densities * up_to ** (n - 1)).sum(1) * (places[1] - places[0])
    return sum(float(p) * math.log(p / mass) for p, mass in zip(chosen, masses, strict=True) if mass)


def jackknife(plug_in: Callable[[list[int]], float], counts: list[int]) -> float:
    """N times the estimate, less N - 1 times the mean of those that leave one of the N samples out."""
    total = sum(counts)
    without = [plug_in([c - (i == left) for i, c in enumerate(counts)]) for left in range(len(counts))]
    mean = sum(count * value for count, value in zip(counts, without, strict=True)) / total
    return total * plug_in(counts) - (total - 1) * mean


@pytest.mark.parametrize("n", [2, 3])
def test_levels_and_stretches_between_them_by_an_integral(n: int) -> None:
    returns = np.array([0.0, 0, 0, 1.1, 1.2, 1.3, 1.4, 2, 2, 3.5, 3.6, 3.7])
    want = jackknife(lambda counts: integral(counts, [True, False, True, False], n), [3, 4, 2, 3])
    shuffled = np.random.default_rng(0).permutation(returns)[None]
    means, _ = sampled_kl(shuffled, np.zeros((1, 12)), n)
    assert means == pytest.approx([want], abs=1e-6)
    found = best_of_n(np.stack([shuffled[0], np.arange(12.0)]), -np.ones((2, 12)), np.array([0.25, 0.75]), n)
    assert found.kl is not None  # no two returns of the second prompt are alike
    assert found.kl.mean == pytest.approx(0.25 * want + 0.75 * (math.log(n) - (n - 1) / n), abs=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-10])
@pytest.mark.parametrize(
    ("counts", "levels", "deviations", "n"),
    [
        ([5, 3, 4], [0.0, 1.0, 1.2], [0.5, 0.5, 0.8], 3),
        ([4, 8], [0.0, 0.0], [0.2, 1.0], 3),
        ([1, 7], [0.0, 1.0], [0.01, 0.01], 2),  # without the one below, nothing is below
    ],
)
def test_noisy_returns_by_normal_distributions(
    counts: list[int], levels: list[float], deviations: list[float], n: int, scale: float
) -> None:
    want = jackknife(lambda own: by_normals(own, levels, deviations, n), counts)
    returns, noise = np.repeat(levels, counts)[None] * scale, np.repeat(deviations, counts)[None] * scale
    means, replicates = sampled_kl(np.repeat(returns, 2, axis=0), np.repeat(noise, 2, axis=0), n)
    assert means == pytest.approx([want, want], abs=1e-6)
    assert np.isfinite(replicates).all()
    assert (replicates.std(0) > 1e-3).all()


@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_returns_without_noise_among_noisy_ones(scale: float) -> None:
    def plug_in(counts: list[int]) -> float:
        low, high = np.array(counts) / sum(counts)
        best = high**2 + 2 * low * high * NormalDist().cdf(0.3 / 0.5)
        return float(best * math.log(best / high) + (1 - best) * math.log((1 - best) / low))

    returns, noise = np.repeat([[0.0, 0.3], [0.0, 0.5]], [3, 5], axis=1)[:, None] * scale
    means, _ = sampled_kl(returns, noise, 2)
    assert means == pytest.approx([jackknife(plug_in, [3, 5])], abs=1e-6)


def test_a_level_that_is_never_chosen_adds_nothing() -> None:
    returns = np.repeat([0.0, 1.0], [2, 1022])[None]  # (2 / 1024)^256 is 0 in float64
    means, replicates = sampled_kl(returns, np.zeros_like(returns), 256)
    assert means == pytest.approx([math.log(1024 / 1022)], abs=1e-5)
    assert np.isfinite(replicates).all()


def test_where_nothing_is_paid_the_best_is_any_one() -> None:
    means, replicates = sampled_kl(np.zeros((1, 8)), np.zeros((1, 8)), 2)
    assert means == pytest.approx([0.0], abs=1e-12)
    assert replicates == pytest.approx(0.0, abs=1e-12)
    tree = prefix_tree(small_task(reward=lambda prompts, completions, **_: [0.0] * len(completions)), "train")
    reference = edge_log_probs(tree, bigram())
    for own, same in zip(best_of_n_edges(tree, reference, 4, 1.0), reference, strict=True):
        assert own == pytest.approx(same)


def test_the_highest_of_great_and_small_returns_and_of_one_row() -> None:
    assert highest(np.array([1.0, 3.0, 2.0])) == 1
    assert 3e6 * (0.1 + 0.2) != 3e6 * 0.3
    assert highest(np.array([3e6 * 0.3, 3e6 * (0.1 + 0.2)])) == 0  # they differ by rounding
    assert highest(np.array([0.0, 0.1 + 0.2 - 0.3])) == 0


def subsets(proxy: np.ndarray, gold: np.ndarray, n: int) -> np.ndarray:
    """Mean proxy and gold of the best of every n samples; any one of equal ones."""
    found = []
    for chosen in map(list, itertools.combinations(range(len(proxy)), n)):
        top = proxy[chosen].max()
        found.append((top, gold[chosen][proxy[chosen] == top].mean()))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_rewards_are_means_over_all_subsets(n: int) -> None:
    generator = np.random.default_rng(n)
    proxy, gold, weights = generator.integers(4, size=(2, 8)) / 3, generator.normal(size=(2, 8)), np.array([0.3, 0.7])
    found = best_of_n(proxy, gold, weights, n)
    want = weights @ np.array([subsets(*own, n) for own in zip(proxy, gold, strict=True)])
    assert (found.proxy.mean, found.gold.mean) == pytest.approx(tuple(want))
    assert found.n == n


def test_an_interval_has_the_quantiles_of_a_binomial() -> None:
    # Of 8 with probability 1 / 8, P(0) = 0.34 > 0.025 and P(X <= 2) = 0.933 < 0.975 < P(X <= 3) = 0.989.
    proxy = np.eye(1, 8)
    found, wider = best_of_n(proxy, -proxy, np.ones(1), 1), math.sqrt(8 / 7)
    ends = 1 / 8 - wider / 8, 1 / 8 + wider * 2 / 8
    got = [(each.mean, each.low, each.high) for each in (found.proxy, found.gold)]  # to the error of the bootstrap
    assert got[0] == pytest.approx((1 / 8, *ends), abs=0.01)
    assert got[1] == pytest.approx((-1 / 8, -ends[1], -ends[0]), abs=0.01)


def test_one_sample_needs_no_others_to_know_its_kl() -> None:
    few = best_of_n(np.arange(3.0)[None], np.zeros((1, 3)), np.ones(1), 1)
    assert few.kl is not None
    assert few.kl.mean == pytest.approx(0.0)
    unknown = best_of_n(np.arange(7.0)[None], np.zeros((1, 7)), np.ones(1), 2)
    assert unknown.kl is None
    assert np.isnan(unknown.replicates[:, 2]).all()


@pytest.mark.parametrize("off", [0.5, -0.5])
def test_a_reference_that_does_not_sum_to_one_is_named(off: float) -> None:
    task = small_task()
    tree = prefix_tree(task, "train")
    first, *rest = edge_log_probs(tree, bigram())
    second = tree.prompt_of[1] == 1
    with pytest.raises(ValueError, match=r"completions of prompt 'b c' have probability .*; allowed is 1"):
        best_of_n_edges(tree, (first + math.log1p(off) * second, *rest), 2, 1.0)


@pytest.mark.parametrize("off", [1e-7, -1e-7])
@pytest.mark.parametrize("reward", [uneven, Blurred(uneven, 0.1)])
def test_what_rounding_to_float32_may_do_changes_next_to_nothing(reward: Reward, off: float) -> None:
    tree = prefix_tree(replace(small_task(), reward=reward), "train")
    first, *rest = edge_log_probs(tree, bigram())
    plain = best_of_n_edges(tree, (first, *rest), 64, 1.0)
    rounded = best_of_n_edges(tree, (first + off * (tree.prompt_of[1] == 1), *rest), 64, 1.0)
    for expected, found in zip(plain, rounded, strict=True):
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-5)


def test_noise_that_cannot_be_integrated_is_named() -> None:
    task = small_task()
    tree = prefix_tree(replace(task, reward=Blurred(uneven, 1e-8)), "train")
    with pytest.raises(UnsolvableError, match=r"best-of-10000000 sum to .*, not to 1; allowed is a smaller n"):
        best_of_n_edges(tree, edge_log_probs(tree, bigram()), 10**7, 1.0)
