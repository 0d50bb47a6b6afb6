"""The numbers of chapter 2, each computed anew."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from course_tools import ran

# Texts of the task: words, and after them one of two stops, at most three tokens.
TEXTS = [
    text
    for length in range(4)
    for text in itertools.product(["word", "<end>", "<halt>"], repeat=length)
    if all(token == "word" for token in text[:-1])
]


@pytest.fixture
def chapter():
    return ran(2)


def words(chapter, state):
    return tuple(chapter["names"][token] for token in state)


@pytest.mark.slow
def test_2a_the_six_symbols_of_a_small_task(chapter):
    assert sorted(words(chapter, state) for state in chapter["states"]) == sorted(TEXTS)
    assert [chapter["names"][a] for a in chapter["actions"]] == ["word", "<end>", "<halt>"]
    paid = {(*words(chapter, s), chapter["names"][a]) for (s, a), r in chapter["rewards"].items() if r == 1}
    assert paid == {("word", "<end>"), ("word", "<halt>")}
    assert set(chapter["rewards"].values()) == {0.0, 1.0}
    assert "10 states, 7 of them terminal; 9 pairs" in chapter.printed


def test_2b_the_loop_appends_what_the_agent_chose(chapter):
    rng = np.random.default_rng(35)
    text = []
    for t, (action, reward) in enumerate(chapter["loop"]):
        assert action == rng.choice([0, 1, 2])
        text.append(chapter["names"][action])
        assert reward == float(tuple(text) in {("word", "<end>"), ("word", "<halt>")})
        assert f"s_{t + 1} = (1, {', '.join(text)})" in chapter.printed
    assert tuple(text) in TEXTS
    assert text[-1] != "word" or len(text) == 3


def test_2c_concatenation_is_deterministic(chapter):
    for (state, action), seen in chapter["successors"].items():
        assert seen == {(*state, action)}
    assert chapter["uncertain"] == 0
    assert "every next state is the old one with the token appended: True" in chapter.printed


def test_2d_matrices_give_the_expected_reward(chapter):
    by_hand = 1 / 3 * 2 / 3
    assert chapter["J"] == pytest.approx(by_hand, abs=1e-12)
    assert chapter["d"].sum() == pytest.approx(1, abs=1e-12)
    assert "t=2  sum of d_t 1.000000   ended 0.8889" in chapter.printed  # 1 - 1/9
    assert "J = 0.222222, the solver says 0.222222" in chapter.printed


def test_2e_the_last_token_is_no_state(chapter):
    once, twice = 1 / 3, 1 / 9  # "word", which pays when <end> follows, and "word word", which does not
    assert chapter["average"] == pytest.approx(once / (once + twice), abs=1e-12)
    assert "given the last token alone: P(r = 1) = 0.7500" in chapter.printed
    assert list(chapter["paid"]) == [1, 0]


def test_2f_rho_draws_prompts_by_their_shares(chapter):
    shares = {"fact": 0.60, "howto": 0.15, "sum": 0.15, "greeting": 0.10}
    assert dict(chapter["rho_kinds"]) == pytest.approx(shares)
    for kind, share in shares.items():
        assert chapter["draws"][kind] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_2g_a_car_is_uncertain_where_a_text_is_not(chapter):
    entropy = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    assert chapter["bits"]["car"] == pytest.approx(entropy)
    assert chapter["bits"]["text"] == 0
    assert chapter["car"].sum(axis=2) == pytest.approx(np.ones((3, 2)))
    assert f"at most 2; their entropy: at most {entropy:.4f} bits" in chapter.printed
    assert "at most 1; their entropy: at most 0.0000 bits" in chapter.printed


def test_2h_real_vocabularies_have_more_states_than_can_be_listed(chapter):
    assert "Stop here: 10" in chapter.printed
    digits = 20 * math.log10(50_000)
    assert math.log10(chapter["sizes"][50_000, 20]) == pytest.approx(digits, abs=0.001)
    assert "V = 50,000, T = 20: 9.5e+93 states" in chapter.printed
