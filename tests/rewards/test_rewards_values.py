"""Which results of a reward are read as numbers, and which are failures of which kind."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from faulty_rewards import returns, score
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import RewardError, Scorer


class Zero:
    """Has `__float__`, as a torch scalar has."""

    def __float__(self) -> float:
        return 0.25


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, 2.5], [1, 2.5]),
        ((1.5, -2), [1.5, -2]),
        ([True, False], [1, 0]),
        ([np.float32(0.5), np.int64(3)], [0.5, 3]),
        ([np.bool_(True), np.array(2.0)], [1, 2]),
        (np.array([1, 2], dtype=np.int32), [1, 2]),
        (np.array([True, False]), [1, 0]),
        (np.array([1.0, None], dtype=object), [1, 0]),
        ([Fraction(1, 4), Decimal("0.75")], [0.25, 0.75]),
        ([None, Zero()], [0, 0.25]),
        ([None, None], [0, 0]),
    ],
)
def test_results_that_are_numbers(result: Any, expected: list[float]) -> None:
    scores = score(result)
    np.testing.assert_array_equal(scores.total, expected)
    assert scores.total.dtype == scores.terms["fixed"].dtype == np.float64


def test_torch_results() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(score(torch.tensor([0.5, 2.0], requires_grad=True)).total, [0.5, 2])
    np.testing.assert_array_equal(score([torch.tensor(0.5), torch.tensor(3)]).total, [0.5, 3])
    for bad in (
        torch.tensor(1.0),
        torch.ones(2, 1),
        [torch.ones(1)] * 2,
        torch.tensor([1j, 2j]),
        [torch.tensor(1 + 0j)] * 2,
    ):
        with pytest.raises(RewardError) as caught:
            score(bad)
        assert caught.value.kind == "wrong_type"


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (None, "wrong_type"),
        (1.0, "wrong_type"),
        ("12", "wrong_type"),
        ({0: 1.0, 1: 2.0}, "wrong_type"),
        (iter([1.0, 2.0]), "wrong_type"),
        (np.array(1.0), "wrong_type"),
        (np.ones((2, 1)), "wrong_type"),
        (np.array(["1", "2"]), "wrong_type"),
        (["1.0", 2.0], "wrong_type"),
        ([b"1", 2.0], "wrong_type"),
        ([[1.0], 2.0], "wrong_type"),
        ([np.ones(1), 2.0], "wrong_type"),
        ([1j, 2.0], "wrong_type"),
        ([np.complex128(1j), 2.0], "wrong_type"),
        ([np.array(1 + 0j), 2.0], "wrong_type"),
        ([], "wrong_length"),
        ([1.0], "wrong_length"),
        ([1.0, 2.0, 3.0], "wrong_length"),
        ([1.0, 10**400], "inf"),
        ([1.0, -(10**400)], "inf"),
        ([1.0, np.float32("nan")], "nan"),
    ],
)
def test_results_that_are_not(result: Any, kind: str) -> None:
    with pytest.raises(RewardError) as caught:
        score(result)
    assert caught.value.kind == kind


def test_an_array_of_another_shape_is_told_by_its_shape() -> None:
    with pytest.raises(RewardError, match=r"a ndarray of shape \(2, 1\)"):
        score(np.ones((2, 1)))


numbers = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=2))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.one_of(numbers, st.lists(numbers, max_size=4), st.dictionaries(st.text(), numbers)))
@pytest.mark.filterwarnings("ignore::textgym.rewards.TextGymWarning")
def test_whatever_comes_back_the_totals_are_finite_and_failures_counted(result: Any) -> None:
    scorer = Scorer(returns(result), "penalty", penalty=-3.0)
    scores = scorer.score(["p", "p"], ["a", "b"])
    assert np.isfinite(scores.total).all()
    failed = (scores.total == -3.0) & np.isnan(scores.terms["fixed"])
    assert failed.sum() == sum(scorer.failures.values())
    if isinstance(result, list) and len(result) == 2 and all(type(v) is float and math.isfinite(v) for v in result):
        np.testing.assert_array_equal(scores.total, result)
