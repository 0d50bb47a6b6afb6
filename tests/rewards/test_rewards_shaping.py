"""Shaped, Dense and PerToken: when they are paid, and that differences add up to the reward of the finished text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textgym_agents.registry import make_env

from textgym.optimum import optimum_of
from textgym.rewards import Dense, Length, PerToken, RewardError, Scorer, Shaped, Weighted, potential_difference


def test_difference_by_hand() -> None:
    # potentials 0 -> 1 -> 4 -> 2 (end), gamma 0.5: 0.5*1 - 0, 0.5*4 - 1, 2 - 4
    assert potential_difference(0.0, 1.0, False, 0.5) == 0.5
    assert potential_difference(1.0, 4.0, False, 0.5) == 1.0
    assert potential_difference(4.0, 2.0, True, 0.5) == -2.0
    batch = potential_difference(np.array([0, 1, 4.0]), np.array([1, 4, 2.0]), np.array([False, False, True]), 0.5)
    np.testing.assert_array_equal(batch, [0.5, 1.0, -2.0])


potentials = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


@settings(deadline=None, max_examples=100)
@given(potentials, st.floats(0, 1))
def test_the_discounted_sum_is_the_discounted_reward_of_the_finished_text(phi: list[float], gamma: float) -> None:
    last = len(phi) - 1
    earned = [
        potential_difference(b, a, t == last, gamma) for t, (b, a) in enumerate(zip([0.0, *phi], phi, strict=False))
    ]
    paid = sum(gamma**t * reward for t, reward in enumerate(earned))
    assert paid == pytest.approx(gamma**last * phi[-1], abs=1e-9)


def test_what_the_environment_reads() -> None:
    plain, dense, shaped = Scorer(Length()), Scorer(Dense(Length())), Scorer(Shaped("length", gamma=0.9))
    assert (plain.pay, dense.pay, shaped.pay) == ("end", "every", "difference")
    assert (plain.gamma, shaped.gamma) == (1.0, 0.9)
    assert Scorer({"name": "shaped", "reward": {"name": "length", "target": 3}}).reward.inner.reward.target == 3
    for gamma in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma="):
            Shaped(Length(), gamma)
    with pytest.raises(ValueError, match="outermost"):
        Shaped(Dense(Length()))


def test_terms_and_faults_come_through() -> None:
    def fails(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return []

    inner = Weighted({"a": Length(2), "b": Length(4)}, {"b": 2.0})
    for outer in (Shaped(inner), Dense(inner)):
        scores = Scorer(outer).score(["p"], ["one two three"])
        assert {name: value.tolist() for name, value in scores.terms.items()} == {"a": [0.5], "b": [1.5]}
    assert Scorer(Shaped(Length())).term_names == ("length",)
    with pytest.raises(RewardError, match="returned 0 values") as caught:
        Scorer(Shaped(fails)).score(["p"], ["c"])
    assert caught.value.kind == "wrong_length"


def first_of_its_kind(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: object
) -> list[list[float]]:
    return [[0.5 if token in ids[:at] else 2.0 for at, token in enumerate(ids)] for ids in completion_ids]


WORDS: dict[str, Any] = {"prompts": ["a"], "tokenizer": ["a", "b", "<end>"], "stop": "<end>", "max_new_tokens": 3}


def test_every_token_is_paid_its_own_number() -> None:
    env = make_env("textgym/Text-v0", 2, reward={"name": "per_token", "score": first_of_its_kind}, **WORDS)
    env.reset(seed=0)
    paid = [env.step(np.array(actions))[1].tolist() for actions in ([0, 1], [0, 0], [1, 2])]
    assert paid == [[2, 2], [0.5, 2], [2, 2]]
    # The best text has two words of different kinds and the end.
    optimum = optimum_of(env.unwrapped.task, beta=0.0)
    assert optimum.exact
    assert optimum.value is not None
    assert optimum.value.mean == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ([[1.0], [1.0]], "wrong_length", "a list of 1; allowed is one number for each of a completion's 2"),
        ([[1.0, 2.0]], "wrong_length", "a list of 1; allowed is a list of numbers for each of 2"),
        (3.0, "wrong_type", "float; allowed"),
        ([1.0, 2.0], "wrong_type", "float; allowed is one number"),
    ],
)
def test_rows_of_another_shape_are_refused(answer: Any, kind: str, words: str) -> None:
    reward = PerToken(lambda **given: answer, name="own")
    with pytest.raises(RewardError, match=words) as caught:
        Scorer(reward).score(["p"] * 2, ["x", "x y"], {"completion_ids": [[1], [1, 2]]})
    assert caught.value.kind == kind
    with pytest.raises(TypeError, match="score=3: allowed is a function"):
        PerToken(3)  # type: ignore[arg-type]
