"""RunningNorm: statistics by hand and against numpy, state, faults."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textgym.rewards import Clipped, Dense, RunningNorm, Scorer, Shaped, Weighted


def number(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """The number that the completion is; abstains on "?"."""
    return [None if text == "?" else float(text) for text in completions]


def ask(reward: Any, *values: Any) -> Any:
    return reward(["p"] * len(values), [str(value) for value in values])


def test_by_hand() -> None:
    reward = RunningNorm(number)
    # 1 and 3: mean 2, standard deviation 1
    assert ask(reward, 1, 3) == [-1.0, 1.0]
    # with 8 and an abstention: mean 4, squares 9 + 1 + 16 = 26 over 3
    assert ask(reward, 8, "?") == [pytest.approx(4 / math.sqrt(26 / 3)), None]
    assert (reward.count, reward.mean) == (3, 4.0)
    assert reward.std == pytest.approx(math.sqrt(26 / 3))
    scaled = RunningNorm(number, center=False)
    assert ask(scaled, 1, 3) == [1.0, 3.0]
    assert Scorer(reward).term_names == ("number",)


def test_values_that_do_not_differ_are_only_centred() -> None:
    reward = RunningNorm(number)
    assert ask(reward, 5) == [0.0]
    assert ask(reward, 5, 5) == [0.0, 0.0]


def test_frozen_statistics_stay() -> None:
    reward = RunningNorm(number)
    ask(reward, 1, 3)
    reward.frozen = True
    assert ask(reward, 100) == [98.0]
    assert reward.count == 2


def test_a_failure_is_passed_on_and_leaves_the_statistics_alone() -> None:
    reward = RunningNorm(number)
    ask(reward, 1, 3)
    scorer = Scorer(reward, "skip")
    with pytest.warns(UserWarning, match="for completion"):
        scores = scorer.score(["p"] * 4, ["nan", "inf", "-inf", "2"])
    np.testing.assert_array_equal(scores.total, [0, 0, 0, 0])
    assert scorer.failures == {"nan": 1, "inf": 2}
    assert (reward.count, reward.mean) == (3, 2.0)
    assert reward.std == pytest.approx(math.sqrt(2 / 3))


def test_state_goes_through_json_and_through_composition() -> None:
    first = Weighted({"a": RunningNorm(number), "b": number})
    ask(first, 1, 3, 10)
    state = json.loads(json.dumps(first.state_dict()))
    second = Weighted({"a": RunningNorm(number), "b": number})
    second.load_state_dict(state)
    assert ask(second, 7) == ask(first, 7)
    assert second.state_dict() == first.state_dict() != state


@pytest.mark.parametrize("outer", [Clipped, Shaped, Dense, RunningNorm])
def test_state_reaches_through_every_wrapper(outer: Any) -> None:
    first, second = outer(RunningNorm(number)), outer(RunningNorm(number))
    ask(first, 1, 3, 10)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert ask(second, 7) == ask(first, 7)
    assert Scorer(second).state_dict()["reward"] == first.state_dict()


values = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=5))
def test_statistics_equal_numpys_over_all_batches(batches: list[list[float]]) -> None:
    reward = RunningNorm(number)
    for batch in batches:
        ask(reward, *batch)
    together = np.concatenate([np.array(batch) for batch in batches])
    assert reward.count == len(together)
    assert reward.mean == pytest.approx(together.mean(), rel=1e-9, abs=1e-6)
    if together.std() > 1e-3:
        assert reward.std == pytest.approx(together.std(), rel=1e-6)


@pytest.mark.parametrize("count", [3, 5, 6, 7, 10, 11, 48])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.07, 1 / 3])
def test_values_that_do_not_differ_but_for_rounding_are_not_scaled(value, count):
    for center in (True, False):
        norm = RunningNorm(lambda prompts, completions, **columns: [value] * len(prompts), center=center)
        for _ in range(3):
            paid = Scorer(norm).score(["p"] * count, ["c"] * count).total
            np.testing.assert_allclose(paid, 0.0 if center else value, atol=1e-12)


def test_frozen_is_a_setting_and_not_a_state() -> None:
    first, second = RunningNorm(number), RunningNorm(number, frozen=True)
    ask(first, 1, 3)
    second.load_state_dict(first.state_dict())
    assert ask(second, 100) == ask(second, 100) == [98.0]
    assert (second.frozen, second.count) == (True, 2)


@pytest.mark.filterwarnings("ignore:reward")
def test_a_batch_that_failed_is_counted_as_it_is_asked_about_again() -> None:
    def odd(prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        return ["odd" if text == "2" else 0.0 for text in completions]

    reward = Weighted({"norm": RunningNorm(number), "odd": odd})
    Scorer(reward, "skip").score(["p"] * 3, ["1", "2", "3"])
    assert reward.rewards["norm"].reward.count == 2
