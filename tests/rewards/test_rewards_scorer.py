"""Scorer: terms, arguments, columns, state."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from faulty_rewards import Counting, Faulty, returns, score

from textgym.rewards import RewardError, RunningNorm, Scorer, TermReward, Weighted


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


@pytest.mark.parametrize(
    "result",
    [{"size": [1.0]}, {"size": [1.0], "y": [1.0]}, {"size": [1.0], "x": [1.0], "y": [1.0]}, [1.0], None],
)
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
    calls = []

    def notes(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(completions)
        return []

    scores = Scorer(notes).score([], [], {"answer": []})
    assert scores.total.shape == scores.terms["notes"].shape == (0,)
    assert calls == []


@pytest.mark.parametrize(("pay", "tokens"), [("end", 3 + 1), ("every", 2), ("difference", 2)])
def test_tokens_of_what_was_scored_are_counted_and_never_taken_back(pay: str, tokens: int) -> None:
    reward = returns([0.0, 1.0])
    reward.pay = pay
    scorer = Scorer(reward)
    before = scorer.state_dict()
    scorer.score(["p"] * 2, ["c"] * 2, {"completion_ids": [[4, 5, 6], [7]]})
    assert scorer.tokens == tokens
    scorer.load_state_dict(before)
    assert (scorer.scored, scorer.tokens) == (0, tokens)
    scorer.score(["p"] * 2, ["c"] * 2, {"completion_ids": [[4, 5, 6], [7]]})
    assert scorer.tokens == 2 * tokens


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


def test_array_columns_arrive_as_lists_that_may_be_changed() -> None:
    def changes(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        columns["level"][0] += 5
        columns["completion_ids"][0].append(1)
        return [float(columns["level"][0])]

    level, ids = np.array([2]), np.array([[7]])
    assert Scorer(changes).score(["p"], ["c"], {"level": level, "completion_ids": ids}).total[0] == 7.0
    assert level[0] == 2


def test_state_survives_json_and_copies_do_not_share_counts() -> None:
    scorer = Scorer(Counting(), "skip")
    with pytest.warns(UserWarning, match="lost"):
        scorer.score(["p"] * 3, ["a", "clash", "b"])
    assert scorer.failures == {"raises": 1}
    state = json.loads(json.dumps(scorer.state_dict()))
    assert state == {"scored": 3, "failures": {"raises": 1}, "reward": {"seen": 2}}
    other = Scorer(Counting())
    other.load_state_dict(state)
    assert (other.failures, other.scored) == (scorer.failures, 3)
    assert other.score(["p"], ["a"]).total[0] == 3.0
    for twin in (pickle.loads(pickle.dumps(other)), copy.deepcopy(other)):
        assert twin.score(["p"], ["a"]).total[0] == 4.0
    assert other.scored == 4


def test_names_of_plain_callables() -> None:
    assert Scorer(Faulty("none")).term_names == ("Faulty",)
    assert Scorer(Counting()).term_names == ("counting",)
    assert Scorer(lambda **columns: [0.0]).name == "reward"
    assert Scorer(returns([])).name == "fixed"


@pytest.mark.filterwarnings("ignore:reward")
def test_what_a_failed_batch_has_learned_of_texts_is_kept() -> None:
    class Learned:
        """As a reward model, it remembers the scores of texts."""

        name, calls = "learned", 0

        def __init__(self) -> None:
            self.known: dict[str, float] = {}

        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
            for text in completions:
                if text not in self.known:
                    self.calls += 1
                    self.known[text] = float(len(text))
            return [self.known[text] for text in completions]

        def state_dict(self) -> dict[str, Any]:
            return {"cut": 0, "scores": dict(self.known)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.known = dict(state["scores"])

    def odd(prompts: Any, completions: Any, **columns: Any) -> list[Any]:
        return ["odd" if text == "bb" else 0.0 for text in completions]

    learned = Learned()
    reward = Weighted({"norm": RunningNorm(learned), "odd": odd})
    Scorer(reward, "skip").score(["p"] * 3, ["a", "bb", "ccc"])
    assert learned.calls == 3
    assert reward.rewards["norm"].reward.count == 2


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_counts_of_several_processes_stay_what_they_were_among_others(before, after):
    states = [{"scored": 10 + rank, "failures": {"nan": rank, "timeout": 1}, "reward": None} for rank in range(before)]
    shares = []
    for rank in range(after):
        scorer = Scorer(returns(1.0))
        scorer.load_shares(states, rank, after)
        shares.append(scorer)
    assert sum(share.scored for share in shares) == sum(state["scored"] for state in states)
    for kind in ("nan", "timeout"):
        assert sum(share.failures[kind] for share in shares) == sum(state["failures"][kind] for state in states)
    if before == after:
        assert [share.scored for share in shares] == [state["scored"] for state in states]
