"""The numbers of chapter 3, each computed anew."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from course_tools import ran

TEXTS = list(itertools.product("abcd", repeat=3))
PLACES = np.array([[letter == right for letter, right in zip(text, "dab", strict=True)] for text in TEXTS])


@pytest.fixture
def chapter():
    return ran(3)


def test_3a_a_trajectory_has_the_product_of_its_probabilities(chapter):
    assert chapter["every"].probability == pytest.approx(np.full(64, 0.25**3), abs=1e-15)
    assert "64 trajectories, each of probability 0.015625 = 1 / 64" in chapter.printed


def test_3b_probabilities_sum_to_1_and_the_optimum_has_gibbs(chapter):
    weights = np.exp(PLACES.mean(axis=1) / 0.1)
    best = max(weights / weights.sum())
    assert chapter["soft"].probability.sum() == pytest.approx(1, abs=1e-12)
    assert f"d a b   P = {best:.4f}" in chapter.printed
    assert chapter.printed.count("1.000000000000") == 2


def test_3c_the_first_reward_is_not_discounted(chapter):
    # "dcb" agrees in its first and third place.
    assert chapter["rewards"] == pytest.approx([1 / 3, 0, 1 / 3])
    assert chapter["returns"](chapter["rewards"], 0.9) == pytest.approx([1 / 3 + 0.81 / 3, 0.9 / 3, 1 / 3])
    assert "gamma 0.9: G_0, G_1, G_2 = [0.6033 0.3    0.3333]" in chapter.printed


def test_3d_the_expected_return_is_a_sum_over_all_texts(chapter):
    for gamma in (1.0, 0.9):
        mean = (PLACES / 3 @ gamma ** np.arange(3)).mean()
        assert chapter["expected"][gamma] == pytest.approx(mean, abs=1e-12)
    assert "gamma 0.9: E[R] = 0.225833" in chapter.printed


def test_3e_discounting_bounds_a_sum_without_end(chapter):
    for gamma, bound in ((0.9, 10), (0.97, 100 / 3)):  # 1 / 0.1 and 1 / 0.03
        total, after = 0.0, {}
        for step in range(1000):
            total += gamma**step
            after[step + 1] = total
        shown = rf"gamma {gamma}: rewards of 1 sum to (\S+) in 10 steps, (\S+) in 100, (\S+) in 1000; 1 / .* = (\S+)"
        found = [float(number) for number in re.search(shown, chapter.printed).groups()]
        assert found == pytest.approx([after[10], after[100], after[1000], bound], abs=6e-5)
        assert found[0] < found[1] < found[2] <= bound + 5e-5
    shrunk = re.search(r"gamma 0\.99: a reward .*: \[(.*)\]", chapter.printed)[1].split()
    assert [float(number) for number in shrunk] == pytest.approx([0.99**19, 0.99**199, 0.99**1999], abs=1e-6)


def test_3f_the_textbooks_value_is_the_solvers_over_gamma_to_the_t(chapter):
    for t, solver, textbook in chapter["by_depth"]:
        right = sum(0.9**k for k in range(3 - t)) / 12  # what each later place pays on average
        assert textbook == pytest.approx(right, abs=1e-12)
        assert solver == pytest.approx(right * 0.9**t, abs=1e-12)
