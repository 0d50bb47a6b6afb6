"""Weighted, Clipped and the penalties: numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import (
    Clipped,
    Grouped,
    Length,
    LengthPenalty,
    MissingStopPenalty,
    RewardError,
    Scorer,
    Shaped,
    TermReward,
    Weighted,
    make_reward,
)
from textgym.task import make_task
from textgym.vector import TokenVectorEnv


def characters(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """The number of characters; abstains on "?"."""
    return [None if text == "?" else float(len(text)) for text in completions]


def answers(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """1 where the completion is the answer."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


class Parts(TermReward):
    """Two terms of one reward."""

    name = "parts"
    term_names = ("two", "none")

    def terms(self, prompts: list[str], completions: list[str], **columns: Any) -> dict[str, Any]:
        return {"two": [2.0] * len(completions), "none": [None] * len(completions)}


def test_weighted_sum_with_every_term_logged() -> None:
    reward = Weighted({"size": characters, "right": answers, "parts": Parts()}, {"size": 0.5, "right": -3})
    assert reward.term_names == ("size", "right", "parts/two", "parts/none")
    columns = {"answer": ["abc", "b", "?"]}
    scores = Scorer(reward).score(["p"] * 3, ["abc", "abcd", "?"], columns)
    # 0.5*3 - 3*1 + 2 = 0.5;  0.5*4 - 0 + 2 = 4;  (abstains) - 3*1 + 2 = -1
    np.testing.assert_array_equal(scores.total, [0.5, 4.0, -1.0])
    np.testing.assert_array_equal(scores.terms["size"], [1.5, 2.0, np.nan])
    np.testing.assert_array_equal(scores.terms["right"], [-3.0, 0.0, -3.0])
    np.testing.assert_array_equal(scores.terms["parts/two"], [2.0, 2.0, 2.0])
    assert np.isnan(scores.terms["parts/none"]).all()
    assert reward(prompts=["p"] * 3, completions=["abc", "abcd", "?"], **columns) == [0.5, 4.0, -1.0]


def test_a_sum_abstains_where_everything_in_it_does() -> None:
    assert Weighted({"a": characters, "b": characters})(["p"] * 2, ["?", "ab"]) == [None, 4.0]


def test_a_sum_of_sums_keeps_the_path_of_every_term() -> None:
    inner = Weighted({"a": characters}, {"a": 2.0})
    scores = Scorer(Weighted({"outer": inner}, {"outer": 10.0})).score(["p"], ["abc"])
    assert {name: values.tolist() for name, values in scores.terms.items()} == {"outer/a": [60.0]}


def test_one_reward_cannot_change_what_the_next_one_sees() -> None:
    def vandal(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        completions[0] = "?"
        columns["answer"][0].append("changed")
        return [0.0]

    def looks(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(completions[0]) + len(columns["answer"][0]))]

    assert Weighted({"first": vandal, "second": looks})(["p"], ["abc"], answer=[["x"]]) == [4.0]


def test_an_inner_fault_is_told_under_its_own_name_and_kind() -> None:
    def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0]

    with pytest.raises(RewardError, match="'short' returned 1 values for 2") as caught:
        Scorer(Weighted({"a": characters, "b": short})).score(["p"] * 2, ["x", "y"])
    assert caught.value.kind == "wrong_length"
    with pytest.raises(RewardError, match="'b' is nan for completion 0") as caught:
        Scorer(Weighted({"a": characters, "b": lambda **columns: [math.nan]})).score(["p"], ["x"])
    assert caught.value.kind == "nan"


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"rewards": {}}, "at least one name"),
        ({"rewards": []}, "or a list"),
        ({"rewards": [characters], "weights": [1.0, 2.0]}, "a number for each of 1 rewards"),
        ({"rewards": {"size": characters}, "weights": {"sise": 1.0}}, "Did you mean 'size'"),
        ({"rewards": {"size": characters}, "weights": {"size": math.inf}}, r"weights\['size'\]=inf"),
        ({"rewards": {"size": characters}, "weights": {"size": "2"}}, r"weights\['size'\]='2'"),
        ({"rewards": {"size": Shaped(characters)}}, "outermost"),
        ({"rewards": {"a": Weighted({"b": characters}), "a/b": characters}}, "distinct"),
    ],
)
def test_weighted_refuses(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Weighted(**parameters)


def test_clipped() -> None:
    reward = Clipped(characters, low=2.0, high=3.0)
    assert reward(["p"] * 5, ["a", "ab", "abc", "abcd", "?"]) == [2.0, 2.0, 3.0, 3.0, None]
    assert Scorer(reward).term_names == ("characters",)
    for low, high in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="low <= high"):
            Clipped(characters, low, high)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_clipping_hides_no_failure(value: float) -> None:
    with pytest.raises(RewardError, match="for completion 0"):
        Scorer(Clipped(lambda **columns: [value])).score(["p"], ["c"])


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1),
    st.floats(-1e9, 1e9),
    st.floats(0, 1e9),
)
def test_clipped_values_are_in_range(values: list[float | None], low: float, width: float) -> None:
    reward = Clipped(lambda **columns: values, low, low + width)
    for before, after in zip(values, reward(["p"] * len(values), ["c"] * len(values)), strict=True):
        assert (before is None) == (after is None)
        assert after is None or low <= after <= low + width
        assert before is None or not low <= before <= low + width or before == after


def test_length_penalty() -> None:
    ids = [[5], [5, 6], [5, 6, 7, 1]]
    texts = ["a b c", "", "abcd"]
    assert LengthPenalty(2, per_unit=0.25)(["p"] * 3, texts, completion_ids=ids) == [0.0, 0.0, -0.5]
    assert LengthPenalty(1, 2.0, "words")(["p"] * 3, texts) == [-4.0, 0.0, 0.0]
    assert LengthPenalty(3, 1.0, "characters")(["p"] * 3, texts) == [-2.0, 0.0, -1.0]
    assert math.copysign(1.0, LengthPenalty(3, 1.0, "words")(["p"], [""])[0]) == 1.0
    with pytest.raises(ValueError, match="'completion_ids' is needed"):
        LengthPenalty(2)(["p"], ["a"])
    for bad in ({"limit": -1}, {"limit": 1.5}, {"limit": True}, {"limit": 1, "per_unit": -1.0}):
        with pytest.raises(ValueError, match="allowed is"):
            LengthPenalty(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit='lines'"):
        LengthPenalty(1, unit="lines")  # type: ignore[arg-type]


def test_missing_stop_penalty_reads_the_configured_ids() -> None:
    # the last token decides: 7 stops, 3 in the middle does not; no token is no stop
    ids = [[3, 7], [3, 5], [7, 5], [9], []]
    reward = MissingStopPenalty([7, 9], penalty=0.5)
    assert reward(["p"] * 5, [""] * 5, completion_ids=ids) == [0.0, -0.5, -0.5, 0.0, -0.5]
    with pytest.raises(ValueError, match="'completion_ids' is needed"):
        reward(["p"], ["a"])
    for bad in ((), "7", [True], [-1], [1.0], 7):
        with pytest.raises(ValueError, match="stop_ids="):
            MissingStopPenalty(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="penalty=inf"):
        MissingStopPenalty([1], math.inf)


def test_penalties_compose_with_a_reward() -> None:
    reward = make_reward(
        {
            "name": "weighted",
            "rewards": {
                "length": {"name": "length", "target": 2},
                "stop": {"name": "missing_stop", "stop_ids": [1], "penalty": 1.0},
            },
            "weights": {"stop": 0.5},
        }
    )
    scores = Scorer(reward).score(["p"] * 2, ["two words", "one"], {"completion_ids": [[4, 5, 1], [4]]})
    np.testing.assert_array_equal(scores.total, [1.0, 0.0])
    np.testing.assert_array_equal(scores.terms["stop"], [0.0, -0.5])
    assert isinstance(reward.rewards["length"].reward, Length)


def ranks(prompts: list[str], completions: list[str], mark: Any, **columns: Any) -> list[float | None]:
    """The rank of each by length, from 0; None where it is marked. Only completions of one prompt may be there."""
    assert len(set(prompts)) == 1
    order = sorted(completions, key=len)
    return [None if own else float(order.index(text)) for text, own in zip(completions, mark, strict=True)]


def test_a_grouped_reward_compares_the_completions_of_a_prompt() -> None:
    scorer = Scorer({"name": "grouped", "reward": ranks})
    assert (scorer.pay, scorer.one_by_one) == ("together", False)
    prompts, texts = ["p", "q", "p", "p"], ["ccc", "z", "a", "bb"]
    marks = [False, False, False, True]
    assert scorer.score(prompts, texts, {"mark": marks}).total.tolist() == [2, 0, 0, 0]
    assert np.isnan(scorer.score(prompts, texts, {"mark": marks}).terms["ranks"]).tolist() == marks
    with pytest.raises(ValueError, match="outermost"):
        Grouped(Shaped("length"))


def test_a_group_has_its_own_rows_of_every_column_and_of_messages() -> None:
    def right(prompts: list[str], completions: list[str], turns: Any, **columns: Any) -> list[float]:
        assert len(turns) == len(prompts)
        return [float(said[-1] == ("environment", "right")) for said in turns]

    task = replace(make_task("Clarify"), reward=Grouped(right), gold=None)
    alone = replace(task, reward=right)
    prompts = ["paint red", "paint blue", "paint red", "paint blue"]
    paid = []
    for each in (task, alone):
        env = TokenVectorEnv(each, 4, autoreset_mode="Disabled", score_together=True)
        env.reset(seed=0, options={"prompt": prompts})
        red, blue = (task.vocabulary.codec.encode(word)[0] for word in ("red", "blue"))
        paid.append(env.step(np.array([red, red, blue, blue]))[1].tolist())
    assert paid[0] == paid[1] == [1, 0, 0, 1]
    talk = [[{"role": "user", "content": "p"}], [{"role": "user", "content": "q"}], [{"role": "user", "content": "p"}]]
    replies = [[{"role": "assistant", "content": text}] for text in ("ccc", "z", "a")]

    def counted(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        return [float(len(prompts))] * len(prompts)

    assert Grouped(counted)(talk, replies) == [2, 1, 2]


def test_a_subclass_with_a_method_of_its_own_is_asked_by_it():
    class Doubled(Clipped):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Any:
            return [2 * value for value in super().__call__(prompts, completions, **columns)]

    class Halved(Weighted):
        def terms(self, prompts: Any, completions: Any, **columns: Any) -> Any:
            return {name: [v / 2 for v in own] for name, own in super().terms(prompts, completions, **columns).items()}

    doubled = Doubled(characters, high=2.0)
    assert Scorer(doubled).score(["p", "p"], ["a", "abc"]).total.tolist() == [2.0, 4.0]
    assert Scorer(Halved([doubled])).score(["p", "p"], ["a", "abc"]).total.tolist() == [1.0, 2.0]


def test_what_holds_a_reward_that_may_take_for_ever_may_too():
    slow = make_reward("length")
    object.__setattr__(slow, "needs_timeout", True)
    held = {"name": "clipped", "reward": slow}
    for spec in ({"name": "weighted", "rewards": ["length", slow]}, held, {"name": "weighted", "rewards": [held]}):
        with pytest.raises(ValueError, match=r"timeout=None: reward .* may take for ever"):
            Scorer(make_reward(spec))
    assert Scorer(make_reward({"name": "clipped", "reward": "length"})).pay == "end"
