"""The numbers of chapter 9, each computed anew: texts listed here, places that are independent, and quadratic sums."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from course_tools import ran

TARGET = (3, 0, 1)
TEXTS = list(itertools.product(range(4), repeat=3))
RETURNS = np.array([sum(a == b for a, b in zip(text, TARGET, strict=True)) / 3 for text in TEXTS])
REFERENCE = np.full(64, 1 / 64)


@pytest.fixture
def chapter():
    return ran(9)


def kl_of(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def gibbs(beta, reference=REFERENCE, returns=RETURNS):
    weights = [q * math.exp((r - 1) / beta) for q, r in zip(reference, returns, strict=True)]
    return np.array(weights) / sum(weights)


def best_objective(beta):
    """Return J*: the three places are independent, and each is right with weight e^(1 / 3 beta) out of four."""
    return 3 * beta * math.log(0.75 + 0.25 * math.exp(1 / (3 * beta)))


def mode_texts():
    """Return TwoModes: texts, the reference's probabilities, and what they are paid."""
    texts = list(itertools.product("abc", repeat=3))
    first = {"a": 0.5, "b": 0.25, "c": 0.25}
    reference = [
        first[x] * math.prod(0.5 if u == v else 0.25 for u, v in itertools.pairwise((x, *rest))) for x, *rest in texts
    ]
    returns = [float(text in (("a",) * 3, ("b",) * 3)) for text in texts]
    return texts, np.array(reference), np.array(returns)


@pytest.mark.long
def test_9a_the_objective_is_the_return_less_the_price_of_the_kl(chapter):
    assert chapter["objective"](REFERENCE) == pytest.approx((0.25, 0.25, 0.0))
    certain = np.array([float(text == TARGET) for text in TEXTS])
    assert chapter["objective"](certain) == pytest.approx((1 - 0.1 * math.log(64), 1.0, math.log(64)))
    assert "always d a b  J 0.5841 = E[R] 1.0000 - 0.1 x KL 4.1589 nats" in chapter.printed


def test_9b_gibbs_is_the_optimum_and_j_is_beta_log_z(chapter):
    assert chapter["J_star"] == pytest.approx(best_objective(0.1), abs=1e-12)
    assert chapter["gibbs"] == pytest.approx(gibbs(0.1), abs=1e-12)
    right = math.exp(10 / 3) / (math.exp(10 / 3) + 3)
    assert chapter["letter"] == pytest.approx(right)
    assert f"each right letter has probability {right:.4f}, the text d a b {right**3:.4f}" in chapter.printed
    rng = np.random.default_rng(0)
    for scale in (0.01, 0.1, 1.0):  # no policy near it, or far away, is better
        other = chapter["gibbs"] * np.exp(scale * rng.normal(size=64))
        other /= other.sum()
        assert RETURNS @ other - 0.1 * kl_of(other, REFERENCE) < chapter["J_star"]


def test_9c_what_is_lost_is_beta_times_the_kl_to_the_optimum(chapter):
    certain = np.array([float(text == TARGET) for text in TEXTS])
    for name, policy in {"reference": REFERENCE, "always d a b": certain}.items():
        lost = 0.1 * kl_of(policy, gibbs(0.1))
        direct = RETURNS @ policy - 0.1 * kl_of(policy, REFERENCE)
        assert chapter["gaps"][name] == pytest.approx((direct, best_objective(0.1) - lost), abs=1e-12)
        assert direct == pytest.approx(best_objective(0.1) - lost, abs=1e-12)


def test_9d_backward_induction_is_gibbs_token_by_token(chapter):
    assert chapter["V0"] == pytest.approx(best_objective(0.1), abs=1e-12)
    assert chapter["product"] == pytest.approx(gibbs(0.1), abs=1e-12)
    right = math.exp(10 / 3) / (math.exp(10 / 3) + 3)
    assert chapter["first"] == pytest.approx([(1 - right) / 3] * 3 + [right])
    assert chapter["best"].objective == pytest.approx(best_objective(0.1), abs=1e-12)


def test_9e_beta_goes_from_the_best_return_to_the_reference(chapter):
    for beta, (objective, expected, kl) in chapter["sweep"].items():
        policy = gibbs(beta)
        assert expected == pytest.approx(policy @ RETURNS, abs=1e-12)
        assert kl == pytest.approx(kl_of(policy, REFERENCE), abs=1e-9)
        # J* of the places, with the largest term taken out of the logarithm.
        stable = 1 + 3 * beta * math.log(0.25 + 0.75 * math.exp(-1 / (3 * beta)))
        assert objective == pytest.approx(stable, abs=1e-9)
    assert chapter["sweep"][0.001][1] > 1 - 1e-12
    assert chapter["sweep"][10.0][0] == pytest.approx(0.25, abs=0.004)


def test_9f_the_slider_keeps_the_references_proportions(chapter):
    texts, reference, returns = mode_texts()
    assert chapter["mode_ref"] == pytest.approx(reference)
    assert len(chapter["proportions"]) == len(chapter["figures"]) == 7
    for beta, proportion in chapter["proportions"].items():
        policy = gibbs(beta, reference, returns)
        assert proportion == pytest.approx(policy[texts.index(("a",) * 3)] / policy[texts.index(("b",) * 3)])
        assert proportion == pytest.approx(2.0)


def test_9g_best_of_n_lies_below_the_frontier_and_its_kl_below_the_bound(chapter):
    levels = np.array([math.comb(3, k) * 3 ** (3 - k) / 64 for k in range(4)])  # k of three letters right
    up_to = np.cumsum(levels)
    for n, (kl, bound, expected, frontier) in chapter["best_of"].items():
        chosen = up_to**n - np.append(0.0, up_to[:-1]) ** n
        assert expected == pytest.approx(chosen @ np.arange(4) / 3, abs=1e-12)
        assert kl == pytest.approx(kl_of(chosen, levels), abs=1e-12)
        assert bound == pytest.approx(math.log(n) - (n - 1) / n)
        assert kl < bound
        assert expected < frontier
        assert frontier == pytest.approx(return_at(kl), abs=1e-6)


def return_at(kl):
    """Return Gibbs' expected return at a KL; each place is right with probability p, and has a third of both."""
    grid = np.linspace(0.25, 1 - 1e-9, 2_000_001)
    cost = 3 * (grid * np.log(4 * grid) + (1 - grid) * np.log(4 * (1 - grid) / 3))
    return np.interp(kl, cost, grid)


def k1_k2_k3(log_r):
    return {"k1": -log_r, "k2": log_r**2 / 2, "k3": math.exp(log_r) - 1 - log_r}


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.1])
def test_9h_k1_and_k3_have_no_bias_and_their_variance_depends_on_the_distance(chapter, beta):
    policy = gibbs(beta)
    assert chapter["exact_kl"][beta] == pytest.approx(kl_of(policy, REFERENCE))
    for name in ("k1", "k2", "k3"):
        values = np.array([k1_k2_k3(math.log(q / p))[name] for p, q in zip(policy, REFERENCE, strict=True)])
        mean = policy @ values
        bias, variance = mean - kl_of(policy, REFERENCE), policy @ (values - mean) ** 2
        assert chapter["estimates"][beta, name] == pytest.approx((bias, variance), abs=1e-9)
        assert f"{name}: mean {mean:.4f}   bias {bias:z7.4f}   variance {variance:9.4f}" in chapter.printed
    assert abs(chapter["estimates"][beta, "k3"][0]) < 1e-12 < chapter["estimates"][beta, "k2"][0]
    spread = {name: chapter["estimates"][beta, name][1] for name in ("k1", "k3")}
    assert (spread["k3"] < spread["k1"]) == (beta > 0.1)


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.1])
def test_9i_sums_over_tokens_are_other_numbers_for_k2_and_k3(chapter, beta):
    # Three independent places of the same kind: means and variances add up.
    right = 1 / (1 + 3 * math.exp(-1 / (3 * beta)))
    place = np.array([right, *[(1 - right) / 3] * 3])
    kl = kl_of(place, [0.25] * 4)
    for name in ("k1", "k2", "k3"):
        values = np.array([k1_k2_k3(math.log(0.25 / p))[name] for p in place])
        mean = place @ values
        expected = 3 * (mean - kl), 3 * (place @ (values - mean) ** 2)
        assert chapter["per_token"][beta, name] == pytest.approx(expected, abs=1e-9)


def test_9j_a_good_estimate_can_have_a_wrong_gradient(chapter):
    right = 1 / (1 + 3 * math.exp(-1 / 0.9))
    place = np.array([right, *[(1 - right) / 3] * 3])
    l = np.log(4 * place)  # noqa: E741
    scores = np.eye(4) - place  # grad log pi of each letter, one place; the others are the same
    exact = (place * l) @ scores
    expected = {"k1 in the loss": 0 * exact, "k2 in the loss": (place * l) @ scores}
    expected["k3 in the loss"] = (place * (1 - np.exp(-l))) @ scores
    for name, gradient in expected.items():
        bias = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
        assert chapter["gradients"][name] == pytest.approx(bias, abs=1e-7)
        assert f"{name:17} bias {bias:.4f}" in chapter.printed
    assert chapter["gradients"]["k1 in the reward"] < 1e-7


def test_9k_the_forward_kl_covers_and_the_reverse_kl_settles(chapter):
    texts, reference, returns = mode_texts()
    target = gibbs(0.1, reference, returns)
    inside = [i for i, text in enumerate(texts) if "c" not in text]
    counts = [texts[i].count("a") for i in inside]
    # The forward KL is least at the mean share of a; the reverse one at an end, of which p = 1 is log 1.5 away.
    mean = sum(target[i] * k for i, k in zip(inside, counts, strict=True)) / (3 * sum(target[inside]))
    assert chapter["ps"][np.argmin(chapter["forward"])] == pytest.approx(mean, abs=0.001)
    assert np.argmin(chapter["reverse"]) == 998
    coin = [0.999**k * 0.001 ** (3 - k) for k in counts]
    assert chapter["reverse"][-1] == pytest.approx(kl_of(coin, target[inside]))
    assert kl_of([1.0], [target[texts.index(("a",) * 3)]]) == pytest.approx(math.log(1.5), abs=1e-3)
    assert kl_of([1.0], [target[texts.index(("b",) * 3)]]) == pytest.approx(math.log(3), abs=1e-3)
    assert chapter["reverse"][0] < min(chapter["reverse"][50:500])  # a minimum of its own
    assert sum(target[i] for i in range(27) if i not in inside) < 0.0002
