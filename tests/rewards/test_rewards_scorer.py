"""Scorer: which results are read as numbers, terms, arguments, state."""

from __future__ import annotations

import copy
import json
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from faulty_rewards import Counting, Faulty
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import RewardError, Scorer, TermReward, Weighted


def returns(result: Any) -> Any:
    def fixed(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return result

    return fixed


def score(result: Any, count: int = 2, **options: Any) -> Any:
    return Scorer(returns(result), **options).score(["p"] * count, ["c"] * count)


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
    for bad in (torch.tensor(1.0), torch.ones(2, 1), [torch.ones(1), torch.ones(1)], torch.tensor([1j, 2j])):
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


class Parts(TermReward):
    """Two terms: characters, and 10 for an "x"; the second abstains on short texts."""

    name = "parts"
    term_names = ("size", "x")

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Any]:
        size = [None if text == "?" else float(len(text)) for text in completions]
        return {"x": [10.0 * ("x" in text) if len(text) > 1 else None for text in completions], "size": size}


def test_terms_add_up_and_may_abstain() -> None:
    scores = Scorer(Parts()).score(["p"] * 4, ["ab", "axb", "x", "?"])
    np.testing.assert_array_equal(scores.total, [2, 13, 1, 0])
    assert list(scores.terms) == ["size", "x"]
    np.testing.assert_array_equal(scores.terms["size"], [2, 3, 1, np.nan])
    np.testing.assert_array_equal(scores.terms["x"], [0, 10, np.nan, np.nan])
    assert Parts()(prompts=["p"] * 2, completions=["axb", "?"]) == [13.0, None]


def test_a_failed_completion_has_no_terms_at_all() -> None:
    class Half(Parts):
        def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Any]:
            return {"size": [1.0, 2.0], "x": [math.nan, 3.0]}

    with pytest.warns(UserWarning, match="'x' is nan for completion 0"):
        scores = Scorer(Half(), "penalty", penalty=-2.0).score(["p"] * 2, ["a", "b"])
    np.testing.assert_array_equal(scores.total, [-2, 5])
    np.testing.assert_array_equal(scores.terms["size"], [np.nan, 2])


@pytest.mark.parametrize("result", [{"size": [1.0]}, {"size": [1.0], "y": [1.0]}, [1.0], None])
def test_terms_of_another_shape_are_refused(result: Any) -> None:
    class Odd(Parts):
        def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> Any:
            return result

    with pytest.raises(RewardError, match=r"\['size', 'x'\]") as caught:
        Scorer(Odd()).score(["p"], ["c"])
    assert caught.value.kind == "wrong_type"


def test_overflow_of_the_sum_is_a_failure() -> None:
    both = Weighted({"a": returns([1e308, 1.0]), "b": returns([1e308, 2.0])})
    with pytest.warns(UserWarning, match="inf for completion 0") as caught:
        scores = Scorer(both, "skip").score(["p"] * 2, ["c"] * 2)
    np.testing.assert_array_equal(scores.total, [0, 3])
    assert len(caught) == 1


def test_an_empty_batch_does_not_call_the_reward() -> None:
    scores = Scorer(returns("never")).score([], [], {"answer": []})
    assert scores.total.shape == scores.terms["fixed"].shape == (0,)


def test_totals_and_terms_are_separate_arrays() -> None:
    scores = score([1.0, 2.0])
    scores.total[0] = 9.0
    assert scores.terms["fixed"][0] == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"penalty": math.nan}, "penalty=nan"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": math.inf}, "timeout=inf"),
        ({"timeout": True}, "timeout=True"),
        ({"timeout": 1.0}, "picklable"),  # `fixed` is defined inside a function
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        score([1.0, 1.0], **options)


def test_rewards_that_do_not_fit_are_refused_when_the_scorer_is_made() -> None:
    with pytest.raises(ValueError, match=r"must take any column"):
        Scorer(lambda prompts, completions: [0.0])
    reward = returns([1.0])
    reward.pay = "sometimes"
    with pytest.raises(ValueError, match="pay='sometimes'"):
        Scorer(reward)
    reward = returns([1.0])
    reward.terms = returns({})
    with pytest.raises(ValueError, match="term_names=None"):
        Scorer(reward)
    reward.term_names = ("a", "a")
    with pytest.raises(ValueError, match="distinct"):
        Scorer(reward)


def test_unequal_batches_are_the_callers_mistake() -> None:
    scorer = Scorer(returns([1.0]), "skip")
    with pytest.raises(ValueError, match="completions has 2 values; one for each of 1"):
        scorer.score(["p"], ["a", "b"])
    with pytest.raises(ValueError, match="column 'answer' has 0 values"):
        scorer.score(["p"], ["a"], {"answer": []})
    with pytest.raises(ValueError, match="column 'prompts'"):
        scorer.score(["p"], ["a"], {"prompts": ["q"]})


def test_state_survives_json_and_copies_do_not_share_counts() -> None:
    scorer = Scorer(Counting(), "skip")
    with pytest.warns(UserWarning, match="lost"):
        scorer.score(["p"] * 3, ["a", "clash", "b"])
    assert scorer.failures == {"raises": 1}
    state = json.loads(json.dumps(scorer.state_dict()))
    assert state == {"scored": 3, "failures": {"raises": 1}, "reward": {"seen": 2}}
    other = Scorer(Counting())
    other.load_state_dict(state)
    assert other.score(["p"], ["a"]).total[0] == 3.0
    for twin in (pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        assert twin.score(["p"], ["a"]).total[0] == 4.0
    assert other.scored == 4


def test_names_of_plain_callables() -> None:
    assert Scorer(Faulty("none")).term_names == ("Faulty",)
    assert Scorer(Counting()).term_names == ("counting",)
    assert Scorer(lambda **columns: [0.0]).name == "reward"
    assert Scorer(returns([])).name == "fixed"


numbers = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=2)
)


@settings(deadline=None, max_examples=200)
@given(st.one_of(numbers, st.lists(numbers, max_size=4), st.dictionaries(st.text(), numbers)))
@pytest.mark.filterwarnings("ignore::textgym.rewards.TextGymWarning")
def test_whatever_comes_back_the_totals_are_finite_and_failures_counted(result: Any) -> None:
    scorer = Scorer(returns(result), "penalty", penalty=-3.0)
    scores = scorer.score(["p", "p"], ["a", "b"])
    assert np.isfinite(scores.total).all()
    failed = (scores.total == -3.0) & np.isnan(scores.terms["fixed"])
    assert failed.sum() == sum(scorer.failures.values())
    if (
        isinstance(result, list)
        and len(result) == 2
        and all(type(v) is float and math.isfinite(v) for v in result)
    ):
        np.testing.assert_array_equal(scores.total, result)
