"""The numbers of chapter 7, each computed anew: the policy's places are independent, so all has a closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from course_tools import ran

TARGET = (3, 0, 1)
TEXTS = list(itertools.product(range(4), repeat=3))


@pytest.fixture
def chapter():
    return ran(7)


@pytest.fixture
def pi(chapter):
    weights = np.exp(chapter["theta"])
    return weights / weights.sum(1, keepdims=True)


@pytest.fixture
def gradient(pi):
    """Return dJ/dtheta in closed form: J is a third of the sum of pi(right letter), whose slope is a softmax's."""
    right = pi[range(3), TARGET]
    return (np.eye(4)[list(TARGET)] - pi) * right[:, None] / 3


def one_text(pi, text, weight):
    """Return the estimate of one text, with weight(t, text) in front of the score of its choice t."""
    return np.concatenate([weight(t, text) * (np.eye(4)[text[t]] - pi[t]) for t in range(3)])


def moments_of(pi, weight):
    mass = [np.prod([pi[t, letter] for t, letter in enumerate(text)]) for text in TEXTS]
    estimates = [one_text(pi, text, weight) for text in TEXTS]
    mean = sum(p * e for p, e in zip(mass, estimates, strict=True))
    return mean, sum(p * ((e - mean) ** 2).sum() for p, e in zip(mass, estimates, strict=True))


def pay(t, text):
    return (text[t] == TARGET[t]) / 3


def whole(t, text):
    return sum(pay(k, text) for k in range(3))


def to_go(t, text):
    return sum(pay(k, text) for k in range(t, 3))


@pytest.mark.slow
def test_7a_the_gradient_is_an_expectation_over_texts(chapter, pi, gradient):
    assert chapter["by_listing"] == pytest.approx(gradient, abs=1e-12)
    assert pi[range(3), TARGET].mean() == pytest.approx(chapter["P"] @ chapter["R"], abs=1e-12)
    assert "J = 0.247018" in chapter.printed


def test_7b_the_score_has_mean_0(chapter, pi):
    mean, _ = moments_of(pi, lambda t, text: 1.0)
    assert np.abs(mean).max() < 1e-15
    assert np.abs(chapter["mean_score"]).max() < 1e-15


def test_7c_four_ways_lead_to_the_same_gradient(chapter, gradient):
    off = {name: np.abs(found - gradient).max() for name, found in chapter["ways"].items()}
    assert off["list of texts"] < 1e-15
    assert off["theorem"] < 1e-15
    assert off["differences"] < 1e-9
    assert 1e-9 < off["Monte Carlo"] < 5 * np.sqrt(chapter["variance"] / 10_000)
    assert str(np.round(gradient[1], 4)) in chapter.printed


def test_7d_the_error_falls_as_one_over_the_root_of_n(chapter, pi):
    _, variance = moments_of(pi, whole)
    assert list(chapter["errors"]) == [100, 1_000, 10_000, 100_000]
    for n, error in chapter["errors"].items():
        assert error == pytest.approx(np.sqrt(variance / n), rel=0.1)
    assert chapter["errors"][1_000] / chapter["errors"][100_000] == pytest.approx(10, rel=0.15)


def test_7e_a_constant_changes_the_variance_and_not_the_gradient(chapter, pi, gradient):
    mean, variance = moments_of(pi, lambda t, text: whole(t, text) + 10)
    assert mean == pytest.approx(gradient.ravel(), abs=1e-12)
    assert chapter["raised_variance"] == pytest.approx(variance)
    before = moments_of(pi, whole)[1]
    assert (
        f"variance {before:.4f}, with 10 more {variance:.4f}: {variance / before:.0f} times as much" in chapter.printed
    )


def test_7f_the_best_constant_baseline_weighs_returns_by_squared_scores(chapter, pi):
    def variance(b):
        return moments_of(pi, lambda t, text: whole(t, text) - b)[1]

    best = chapter["best_b"]
    assert variance(best) < min(variance(best - 0.01), variance(best + 0.01))
    assert variance(best + 0.1) == pytest.approx(variance(best - 0.1), abs=1e-12)  # a parabola around it
    assert list(chapter["baseline_variance"].values()) == pytest.approx([variance(b) for b in (0.0, 0.247018, best)])
    assert "b = 0.2282 (b*): variance 0.0804" in chapter.printed


def test_7g_all_forms_have_the_same_mean_and_another_variance(chapter, pi, gradient):
    right = pi[range(3), TARGET] / 3
    later = [right[t + 1 :].sum() for t in range(3)]  # what the places after t pay on average
    forms = {
        "R": whole,
        "R - E[R]": lambda t, text: whole(t, text) - right.sum(),
        "G": to_go,
        "G - V": lambda t, text: to_go(t, text) - right[t] - later[t],
        "Q": lambda t, text: pay(t, text) + later[t],
        "A": lambda t, text: pay(t, text) - right[t],
    }
    for name, weight in forms.items():
        mean, variance = moments_of(pi, weight)
        off, found, referee = chapter["table"][name]
        assert mean == pytest.approx(gradient.ravel(), abs=1e-12)
        assert off < 1e-15
        assert (found, referee) == pytest.approx((variance, variance), abs=1e-12)
        assert f"variance {variance:.4f}   that of the referee {variance:.4f}" in chapter.printed
    spread = {name: moments_of(pi, weight)[1] for name, weight in forms.items()}
    assert spread["A"] < spread["G - V"] < spread["Q"] < spread["G"] < spread["R"]
    assert f"A needs {spread['R'] / spread['A']:.1f} times fewer texts" in chapter.printed


def test_7h_without_gamma_to_the_t_it_is_another_gradient(chapter, gradient):
    scale = 0.5 ** np.arange(3)[:, None]
    # Place t pays what it pays, and gamma^t weighs it; the scores of other places have mean 0.
    exact = gradient * scale
    bias = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    cosine = (gradient * exact).sum() / np.linalg.norm(gradient) / np.linalg.norm(exact)
    assert chapter["discounted"]["with gamma^t"].bias < 1e-15
    assert chapter["discounted"]["without"].relative_bias == pytest.approx(bias, rel=1e-9)
    assert chapter["discounted"]["without"].cosine == pytest.approx(cosine, rel=1e-9)
    assert (
        f"without       bias {bias:.4f} of the gradient's length, cosine of the angle {cosine:.4f}" in chapter.printed
    )
