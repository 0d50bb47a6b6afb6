"""The numbers of chapter 4, each computed anew from the rules of the task alone."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from course_tools import ran

LENGTH = 5
COIN = 0.5
WORDS = ("near", "far")


@pytest.fixture
def chapter():
    return ran(4)


def paid(text):
    """Return the reward of every step of a text of 0 (near) and 1 (far)."""
    steps = [0.1 * (word == 0) for word in text]
    return [*steps[:-1], float(sum(text) == LENGTH)] if text[-1] else steps


def mean_return(beginning, gamma=1.0):
    """Return the coin's mean return, counted from the state after a beginning."""
    start = len(beginning)
    endings = list(itertools.product((0, 1), repeat=LENGTH - start))
    return np.mean([sum(gamma**k * r for k, r in enumerate(paid(beginning + end)[start:])) for end in endings])


@cache
def best(beginning):
    """Return the largest return to come, by trying all endings."""
    start = len(beginning)
    return max(
        (sum(paid(beginning + end)[start:]) for end in itertools.product((0, 1), repeat=LENGTH - start)), default=0.0
    )


def states():
    """Return the texts of states 0 to 30, in the chapter's order."""
    return [text for length in range(LENGTH) for text in itertools.product((0, 1), repeat=length)]


def reward_of(text):
    return paid(text)[-1] if len(text) == LENGTH else 0.1 * (text[-1] == 0)


def test_4a_v_q_and_a_are_means_over_texts(chapter):
    for i, text in enumerate(states()):
        value = mean_return(text)
        action_values = [
            reward_of((*text, word)) + (mean_return((*text, word)) if len(text) < LENGTH - 1 else 0.0)
            for word in (0, 1)
        ]
        assert chapter["V"][i] == pytest.approx(value, abs=1e-12)
        assert chapter["Q"][i] == pytest.approx(action_values, abs=1e-12)
        assert chapter["A"][i] == pytest.approx(np.array(action_values) - value, abs=1e-12)
    assert chapter["by_listing"] == pytest.approx([0.1 + 4 * 0.05, 4 * 0.05 + 1 / 16])
    assert "Q(s_0, near) = 0.300000   Q(s_0, far) = 0.262500" in chapter.printed
    assert "J = V(s_0) = 0.281250" in chapter.printed


def test_4b_the_advantage_has_mean_0(chapter):
    assert len(chapter["average"]) == 31
    assert np.abs(chapter["average"]).max() < 1e-15


def test_4c_the_expectation_equations_hold_on_every_edge(chapter):
    # The tables are those of the rules, so that the equations are about the right numbers.
    for i, text in enumerate(states()):
        assert chapter["rewards"][i] == pytest.approx([reward_of((*text, word)) for word in (0, 1)])
    edges, values = chapter["expectation_errors"]
    assert (edges.size, values.size) == (62, 31)
    assert max(edges.max(), values.max()) < 1e-14


def test_4d_backward_induction_solves_the_optimality_equations(chapter):
    for i, text in enumerate(states()):
        assert chapter["V_star"][i] == pytest.approx(best(text), abs=1e-12)
    assert chapter["Q_star"][0] == pytest.approx([0.5, 1.0])
    assert chapter["off"] < 1e-14
    assert max(each.max() for each in chapter["optimality_errors"]) < 1e-14
    assert "Q*(s_0, near) = 0.5000   Q*(s_0, far) = 1.0000" in chapter.printed


def test_4e_value_iteration_is_right_after_as_many_sweeps_as_there_are_words(chapter):
    for k, (first, error) in enumerate(chapter["sweeps"]):
        # With k words to see, the coins of near are all there is, up to the end.
        assert first == pytest.approx(1.0 if k == LENGTH else 0.1 * k)
        assert error == pytest.approx(0.0 if k == LENGTH else 1 - 0.1 * k)


def test_4f_greedy_with_respect_to_the_coins_q_is_not_optimal(chapter):
    text = ()
    while len(text) < LENGTH:
        text += (int(np.argmax([reward_of((*text, w)) + mean_or_0((*text, w)) for w in (0, 1)])),)
    assert text == (0,) * LENGTH
    assert "greedy with respect to the coin's Q: near near near near near" in chapter.printed
    assert "greedy with respect to Q*:           far far far far far" in chapter.printed


def mean_or_0(text):
    return mean_return(text) if len(text) < LENGTH else 0.0


def test_4g_policy_improvement_is_better_in_every_state_and_ends_at_the_optimum(chapter):
    rounds = chapter["rounds"]
    assert [each[0] for each in rounds] == pytest.approx([9 / 32, 0.5, 1.0, 1.0])
    assert all((new >= old - 1e-15).all() for old, new in itertools.pairwise(rounds))
    assert rounds[2] == pytest.approx([best(text) for text in states()])


def test_4h_the_performance_difference_is_a_sum_of_advantages(chapter):
    on_the_way = [0.1 + mean_or_0((0,) * (t + 1)) - mean_return((0,) * t) for t in range(LENGTH)]
    assert sum(on_the_way) == pytest.approx(0.5 - 9 / 32)
    assert "sum 0.21875\nJ(new) - J(coin) = 0.21875" in chapter.printed


def test_4i_units_differ_by_gamma_to_the_t_at_beta_0(chapter):
    for t, solver, textbook, converted in chapter["units"]:
        right = mean_return((0,) * t, gamma=0.9)
        assert textbook == pytest.approx(right, abs=1e-12)
        assert solver == pytest.approx(0.9**t * right, abs=1e-12)
        assert converted == pytest.approx(right, abs=1e-12)


def soft_parts(text, policy, gamma):
    """Return the expected discounted reward, counted from a state, and the KL to the coin to come."""
    if len(text) == LENGTH:
        return 0.0, 0.0
    reward = kl = 0.0
    for word, probability in enumerate(policy(text)):
        later, more = soft_parts((*text, word), policy, gamma)
        reward += probability * (reward_of((*text, word)) + gamma * later)
        kl += probability * (np.log(probability / COIN) + more)
    return reward, kl


def test_4j_with_a_price_of_kl_no_factor_converts(chapter):
    beta, gamma = 0.1, 0.9

    @cache
    def gibbs(text):
        """Return the mean of exp(R / beta) over the coin's endings, R discounted from time 0."""
        endings = itertools.product((0, 1), repeat=LENGTH - len(text))
        returns = [sum(gamma**k * r for k, r in enumerate(paid(text + end))) for end in endings]
        return np.exp(np.array(returns) / beta).mean()

    def policy(text):
        weights = [gibbs((*text, word)) for word in (0, 1)]
        return np.array(weights) / sum(weights)

    for price, t in itertools.product((0.0, beta), (1, 4)):
        ratios = []
        for text in (each for each in states() if len(each) == t):
            reward, kl = soft_parts(text, policy, gamma)
            ratios.append((gamma**t * reward - price * kl) / (reward - price * kl))
        assert chapter["ratios"][price, t] == pytest.approx((min(ratios), max(ratios)), abs=1e-10)
    low, high = chapter["ratios"][beta, 1]
    assert high - low > 0.03
    assert "beta 0.1, t = 1: ratio of the units between 0.8544 and 0.8865; gamma^t = 0.9000" in chapter.printed
