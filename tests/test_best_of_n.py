"""Best-of-n: against enumeration of all tuples and subsets, and against plain sampling."""

import itertools
import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solver_tools import bigram, completions, log_probability, odd_grammar, score, small_task, uneven

from textgym import make_task
from textgym.best_of_n import (
    best_of_n,
    best_of_n_edges,
    best_of_n_kl,
    highest,
    noise_deviation,
    rank_shares,
    sampled_kl,
)
from textgym.lm.reference import NGramReference
from textgym.rewards import Blurred
from textgym.solver import UnsolvableError, edge_log_probs, evaluate_edges, prefix_tree, solve
from textgym.solver.values import trajectories


def exact(task, n, reference=None, split="eval"):
    """The optimum of a task, and the exact values of best-of-n."""
    solution = solve(task, reference, split=split)
    edges = best_of_n_edges(solution.tree, solution.log_reference, n, task.gamma)
    return solution, evaluate_edges(solution.tree, edges, solution.log_reference, task.beta, task.gamma)


def probabilities(task, n, reference):
    """(prompt, tokens) -> probability under the exact best-of-n of the train prompts."""
    tree = prefix_tree(task, "train")
    log_reference = edge_log_probs(tree, reference)
    every = trajectories(tree, best_of_n_edges(tree, log_reference, n, task.gamma), None, task.gamma)
    rows = zip(every.prompt, every.length, every.row, every.log_probability, strict=True)
    return {
        (int(p), tuple(tree.completions(int(t), np.array([row]))[0].tolist())): float(np.exp(logs))
        for p, t, row, logs in rows
    }


# The exact policy


def by_tuples(task, n, reference, prompt):
    """P(y) by listing every n-tuple of completions: the first of the highest is chosen."""
    texts = [y for y in completions() if log_probability(reference, prompt.ids, y) > -np.inf]
    weights = [math.exp(log_probability(reference, prompt.ids, y)) for y in texts]
    returns = [score(task, prompt, y) for y in texts]
    found = dict.fromkeys(texts, 0.0)
    for drawn in itertools.product(range(len(texts)), repeat=n):
        top = max(returns[i] for i in drawn)
        first = next(i for i in drawn if returns[i] >= top - 1e-12)
        found[texts[first]] += math.prod(weights[i] for i in drawn)
    return found


@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_edges_are_what_listing_every_tuple_gives(n, gamma):
    task, reference = small_task(gamma=gamma), bigram()
    found = probabilities(task, n, reference)
    for index, prompt in enumerate(task.encoded("train")):
        for tokens, probability in by_tuples(task, n, reference, prompt).items():
            assert found[index, tokens] == pytest.approx(probability, rel=1e-9)


def test_where_the_reference_never_goes_best_of_n_does_not_go_either():
    table = np.array([[0.5, 0.5, 0, 0], [0.2, 0.3, 0, 0.5], [0.25] * 4, [0.25] * 4])
    task, reference = small_task(), NGramReference(table)
    found = probabilities(task, 3, reference)
    (prompt, _) = task.encoded("train")
    expected = by_tuples(task, 3, reference, prompt)
    for (index, tokens), probability in found.items():
        if index == 0:
            assert probability == pytest.approx(expected.get(tokens, 0.0), abs=1e-12)


def test_a_grammar_and_values_by_the_solver():
    # Under a grammar too: E[R] and KL from the levels of the return, by hand from the reference's trajectories.
    task = small_task(mask=odd_grammar)
    solution, values = exact(task, 5, bigram(), "train")
    every = solution.reference.trajectories
    for prompt in range(2):
        own = every.prompt == prompt
        pay, mass = every.returns[own].round(9), np.exp(every.log_probability[own])
        expected, kl, below = 0.0, 0.0, 0.0
        for level in np.unique(pay):
            up_to = below + mass[pay == level].sum()
            chosen = up_to**5 - below**5
            expected += level * chosen
            kl += chosen * math.log(chosen / (up_to - below))
            below = up_to
        assert values.prompt_returns[prompt] == pytest.approx(expected)
        assert values.prompt_kl[prompt] == pytest.approx(kl)


@pytest.mark.parametrize(
    ("name", "optimality"),
    [
        ("DeepSea", 0.02),
        ("Noisy", 0.30),
        ("BetaSweep", -0.15),
        ("Delayed", 1.00),
        ("Distractor", 0.995),
        ("Recall", 0.995),
        ("TwoModes", 1.00),
        ("Stop", 0.81),
        ("Scale", 0.84),
    ],
)
def test_the_optimality_of_best_of_16(name, optimality):
    solution, values = exact(make_task(name), 16)
    assert solution.optimality(values.objective) == pytest.approx(optimality, abs=0.006)
    assert values.kl < best_of_n_kl(16)


def test_a_long_shot_by_hand():
    # DeepSea pays one string of 2^10: P = 1 - (1 - m)^n with m = 2^-10; the reference is uniform.
    _, values = exact(make_task("DeepSea"), 16)
    m = 2.0**-10
    best, rest = 1 - (1 - m) ** 16, (1 - m) ** 16
    expected = best * math.log(best / m) + rest * math.log(rest / (1 - m))
    assert values.kl == pytest.approx(expected, abs=0.02)  # the small costs of going there make a few more levels


def test_returns_that_differ_by_rounding_are_one_level():
    def rounding(prompts, completions, **columns):
        return [0.1 + 0.2 if text.startswith("a") else 0.3 for text in completions]

    assert 0.1 + 0.2 != 0.3
    _, values = exact(small_task(reward=rounding), 4, split="train")
    assert values.kl == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_array_equal(highest(np.array([[0.0, 0.3, 0.1 + 0.2, 0.3], [5.0, 1.0, 2.0, 5.0]])), [1, 0])


def test_an_unlikely_level_costs_no_digits():
    # Two texts, one with probability 1e-14: P = 1 - (1 - 1e-14)^16, which 1 - (1 - x)**16 gets wrong by 1%.
    table = np.tile([1e-14, 1 - 1e-14, 0, 0], (4, 1))
    task = small_task(max_new_tokens=1, reward=lambda prompts, completions, **_: [float(c == "a") for c in completions])
    found = probabilities(task, 16, NGramReference(table))
    assert found[0, (0,)] == pytest.approx(16e-14, rel=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.0])
def test_noise_by_hand_for_two_samples(gamma):
    # Of two noisy returns y's is the higher with probability Phi((R(y) - R(z)) / sqrt(sd(y)^2 + sd(z)^2)).
    reference = bigram(3)
    bare = small_task(gamma=gamma)
    task = replace(bare, reward=Blurred(uneven, 0.4))
    found = probabilities(task, 2, reference)
    normal = NormalDist()
    for index, prompt in enumerate(task.encoded("train")):
        every = [
            (
                y,
                math.exp(log_probability(reference, prompt.ids, y)),
                score(bare, prompt, y),
                0.4 * gamma ** (len(y) - 1),
            )
            for y in completions()
        ]
        for y, p, own, deviation in every:
            wins = 0.0
            for _, q, other, another in every:
                spread = math.hypot(deviation, another)
                gap = own - other
                wins += q * (normal.cdf(gap / spread) if spread else 0.5 + 0.5 * np.sign(gap))
            assert found[index, y] == pytest.approx(2 * p * wins, rel=1e-8)


@pytest.mark.parametrize("deviation", [1e-13, 1e-4, 0.01, 3.0, 1e4])
def test_noise_of_any_size(deviation):
    task = replace(small_task(), reward=Blurred(uneven, deviation))
    _, values = exact(task, 8, bigram(), "train")
    _, silent = exact(small_task(), 8, bigram(), "train")
    if deviation <= 1e-4:  # nothing beside differences of 0.1; texts that pay the same stay equal
        assert values.kl == pytest.approx(silent.kl, rel=1e-6)
    assert 0 <= values.kl <= silent.kl + 1e-9
    if deviation == 1e4:
        assert values.kl < 1e-6


def test_noise_that_declares_no_density_is_named():
    class Hidden:
        name = "hidden"
        noisy = True
        expected = staticmethod(uneven)

        def __call__(self, prompts, completions, **columns):
            return uneven(prompts, completions, **columns)

    task = small_task(reward=Hidden())
    solution = solve(task, split="train")
    with pytest.raises(UnsolvableError, match=r"'hidden' is noisy and declares no density .*`normal_noise`"):
        best_of_n_edges(solution.tree, solution.log_reference, 2, 1.0)
    assert noise_deviation(small_task()) == 0.0


@pytest.mark.parametrize("n", [0, 2.5, True])
def test_a_bad_n_is_named(n):
    solution = solve(small_task(), split="train")
    with pytest.raises(ValueError, match=rf"n={n}: allowed is an integer >= 1"):
        best_of_n_edges(solution.tree, solution.log_reference, n, 1.0)
    with pytest.raises(ValueError, match=rf"n={n}: allowed is an integer >= 1"):
        sampled_kl(np.zeros((1, 8)), np.zeros((1, 8)), n)


# The KL from samples


def draws(values, count, seed):
    """Expected returns and noise (P, N) of completions drawn from the reference."""
    every = values.trajectories
    generator = np.random.default_rng(seed)
    returns, deviations = [], []
    for prompt in range(len(values.prompt_kl)):
        own = np.flatnonzero(every.prompt == prompt)
        drawn = own[generator.choice(len(own), count, p=np.exp(every.log_probability[own]))]
        returns.append(every.returns[drawn])
        deviations.append(noise_deviation(every.tree.task) * every.tree.task.gamma ** (every.length[drawn] - 1.0))
    return np.array(returns), np.array(deviations)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "count"), [("Stop", 16, 128), ("Scale", 16, 256), ("Noisy", 4, 64)])
def test_the_interval_covers_the_exact_kl_about_as_often_as_it_says(name, n, count):
    solution, values = exact(make_task(name), n)
    errors, covered, repeats = [], 0, 60
    for seed in range(repeats):
        means, replicates = sampled_kl(*draws(solution.reference, count, seed), n, seed)
        low, high = np.quantile(replicates @ solution.tree.weights, [0.025, 0.975])
        errors.append(means @ solution.tree.weights - values.kl)
        covered += low <= values.kl <= high
    assert covered >= 0.87 * repeats  # 95% asked; 2.8 standard deviations below
    assert abs(np.mean(errors)) < 3.5 * np.std(errors) / math.sqrt(repeats)


@pytest.mark.slow
def test_the_jackknife_takes_out_a_bias_that_the_plug_in_has():
    # A level of probability 1/16 on top, n = 16, 64 samples: the plug-in estimate is 0.10 nats too low.
    top, n = 1 / 16, 16
    best, rest = 1 - (1 - top) ** n, (1 - top) ** n
    truth = best * math.log(best / top) + rest * math.log(rest / (1 - top))
    returns = (np.random.default_rng(0).random((600, 64)) < top).astype(float)
    means, _ = sampled_kl(returns, np.zeros_like(returns), n)
    assert means.mean() == pytest.approx(truth, abs=4 * means.std() / math.sqrt(600))
    assert abs(means.mean() - truth) < 0.05


def test_returns_that_are_all_different_have_no_levels():
    returns = np.random.default_rng(0).normal(size=(2, 64))
    means, replicates = sampled_kl(returns, np.zeros_like(returns), 16)
    np.testing.assert_allclose(means, best_of_n_kl(16))
    np.testing.assert_allclose(replicates, best_of_n_kl(16))


def test_where_all_returns_are_equal_or_n_is_1_there_is_no_kl():
    for returns, n in ((np.ones((1, 64)), 16), (np.arange(6.0)[None], 1)):
        means, replicates = sampled_kl(returns, np.zeros_like(returns), n)
        np.testing.assert_allclose(means, 0, atol=1e-12)
        np.testing.assert_allclose(replicates, 0, atol=1e-12)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="63 samples a prompt; allowed is 4 n = 64 or more"):
        sampled_kl(np.zeros((1, 63)), np.zeros((1, 63)), 16)
    with pytest.raises(ValueError, match="shapes differ"):
        sampled_kl(np.zeros((1, 64)), np.zeros((1, 63)), 16)


# Rewards and KL from one set of samples


def by_enumeration(proxy, gold, n):
    """Mean proxy and gold of the best of every subset of n; any of equal ones."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        highest = max(proxy[i] for i in subset)
        found.append((highest, np.mean([gold[i] for i in subset if proxy[i] == highest])))
    return np.mean(found, axis=0)


@pytest.mark.slow
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
    np.testing.assert_allclose(best.replicates[:, :2], any_one.replicates[:, :2])
    assert best.gold.mean == pytest.approx(weights @ gold.mean(1))
    assert best.gold.low < best.gold.mean - 0.1


def test_kl_and_reward_are_drawn_together():
    # Where the best level has probability 1/32 its samples decide both: a replicate with more of them pays more, and
    # choosing them takes more KL.
    proxy = np.zeros((1, 128))
    proxy[0, :4] = 1.0
    found = best_of_n(proxy, proxy, np.ones(1), 16)
    assert found.kl is not None
    truth = 1 - (1 - 1 / 32) ** 16
    truth = truth * math.log(32 * truth) + (1 - truth) * math.log((1 - truth) * 32 / 31)
    assert found.kl.low < truth < found.kl.high
    assert np.corrcoef(found.replicates[:, 0], found.replicates[:, 2])[0, 1] > 0.95
    np.testing.assert_array_equal(found.replicates[:, 0], found.replicates[:, 1])


def test_without_enough_samples_the_kl_is_not_known():
    proxy = np.random.default_rng(0).normal(size=(1, 15))
    assert best_of_n(proxy, proxy, np.ones(1), 4).kl is None
    known = best_of_n(proxy, proxy, np.ones(1), 3).kl
    assert known is not None
    assert known.mean == pytest.approx(math.log(3) - 2 / 3)  # no two are alike


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


@pytest.mark.long
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
    with pytest.raises(ValueError, match=rf"n={n}: allowed is an integer in 1..3"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 3)), np.ones(1), n)


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match="shapes differ"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 2)), np.ones(1), 1)
