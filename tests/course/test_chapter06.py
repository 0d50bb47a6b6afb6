"""The numbers of chapter 6, each computed anew with the standard library alone."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from course_tools import ran


@pytest.fixture
def chapter():
    return ran(6)


def probability(b):
    return 1 / (1 + math.exp(-b))


def cross_entropy(b, a):
    return -math.log(probability(b) if a else 1 - probability(b))


def slope(function, x, step=1e-6):
    return (function(x + step) - function(x - step)) / (2 * step)


def test_6a_the_neuron_is_a_sigmoid_of_its_bias(chapter):
    assert chapter["sigmoid"](0.4) == pytest.approx(0.598687660112452, abs=1e-14)
    assert "b =  0.4: canteen with probability 0.5987, kiosk 0.4013" in chapter.printed


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [-3.0, 0.4, 2.0])
def test_6b_the_chain_rule_has_three_factors(chapter, b, a):
    loss, outer, inner, last, whole = chapter["by_hand"](b, a)
    assert loss == pytest.approx(cross_entropy(b, a), abs=1e-12)
    assert outer == pytest.approx(slope(lambda p: -math.log(p if a else 1 - p), probability(b)), rel=1e-6)
    assert inner == pytest.approx(slope(probability, b), abs=1e-9)
    assert last == 1
    assert whole == pytest.approx(slope(lambda x: cross_entropy(x, a), b), abs=1e-8)
    assert whole == pytest.approx(probability(b) - a, abs=1e-14)


def test_6c_the_reward_corrects_the_step(chapter):
    # At b = 0 the derivative of the guess kiosk is 1/2.
    assert chapter["predicted"] == pytest.approx({-1.0: 0.5, 0.0: 0.0, 1.0: -0.5})
    assert f"b becomes +0.50, P(canteen) {probability(0.5):.4f}" in chapter.printed
    assert f"b becomes -0.50, P(canteen) {probability(-0.5):.4f}" in chapter.printed


def test_6d_autograd_says_the_same_to_1e_12(chapter):
    assert len(chapter["autograd_errors"]) == 24
    assert max(chapter["autograd_errors"]) < 1e-12


def test_6e_reinforce_is_the_same_on_average_to_1e_12(chapter):
    for b in (-3.0, 0.0, 0.4, 5.0):
        p = probability(b)
        right = slope(lambda x: probability(x) * 1.0 + (1 - probability(x)) * 0.2, b)
        assert p * (1 - p) * 0.8 == pytest.approx(right, abs=1e-9)
        assert f"by hand, on average {right:.6f}   exact dJ/db {right:.6f}" in chapter.printed
    assert len(chapter["exact_errors"]) == len(chapter["referee_errors"]) == 4
    assert max(chapter["exact_errors"]) < 1e-12
    assert max(chapter["referee_errors"]) < 1e-12


def test_6f_the_sign_of_the_rewards_changes_the_spread_and_not_the_mean(chapter):
    assert len(chapter["moves"]) == 3
    for (r1, r0), found in chapter["moves"].items():
        steps = [r1 * 0.5, -r0 * 0.5]  # r (a - P) at P = 1/2
        assert found == pytest.approx((*steps, np.mean(steps), np.std(steps)))
        assert found[2] == pytest.approx(0.2)
    assert [found[3] for found in chapter["moves"].values()] == pytest.approx([0.3, 0.0, 0.3])


def stuck(rate, rewards, neurons, seed):
    """Return the share of neurons below 0.1 after 200 steps, with the random numbers of the standard library."""
    generator, count = random.Random(seed), 0
    for _ in range(neurons):
        b = 0.0
        for _ in range(200):
            p = probability(b)
            a = generator.random() < p
            b += rate * rewards[a] * (a - p)
        count += probability(b) < 0.1
    return count / neurons


def test_6g_a_large_rate_gets_stuck(chapter):
    found = {rate: (path[-1] < 0.1).mean() for rate, path in chapter["paths"].items()}
    assert found[0.03] == found[0.3] == 0
    expected = stuck(30.0, (0.2, 1.0), 1000, seed=1)
    assert found[30.0] == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 100))
    assert found[30.0] > 0.1
    assert chapter["paths"][0.03][-1].mean() < chapter["paths"][0.3][-1].mean()
    assert f"{found[30.0] * 100:.0f} of 100 are stuck" in chapter.printed


def test_6h_with_positive_rewards_alone_some_get_stuck_and_with_negative_ones_none_rests(chapter):
    (_, stuck_positive, _), (mean, stuck_mixed, rest), (_, stuck_negative, jump) = chapter["ends"].values()
    assert stuck_positive / 100 == pytest.approx(stuck(10.0, (0.2, 1.0), 1000, seed=2), abs=0.08)
    assert (stuck_mixed, stuck_negative) == (0, 0)
    assert stuck_positive > 0
    assert stuck(10.0, (-0.4, 0.4), 300, seed=3) == 0
    assert mean > 0.999
    assert rest < 1e-4 < 0.1 < jump


def test_6i_a_softmax_has_the_same_difference(chapter):
    scores = [0.5, -1.0, 2.0, 0.0]

    def loss(k, x):
        moved = [*scores[:k], x, *scores[k + 1 :]]
        return math.log(sum(map(math.exp, moved))) - moved[2]

    right = [slope(lambda x, k=k: loss(k, x), scores[k]) for k in range(4)]
    assert chapter["many"].numpy() == pytest.approx(right, abs=1e-8)
    assert chapter["X"].grad.numpy() == pytest.approx(chapter["many"].numpy(), abs=1e-12)
