"""Collecting preferences on a task so small that everything that can come out is known."""

from __future__ import annotations

from math import exp, isnan, sqrt

import numpy as np
import pytest

from textgym import make_task
from textgym.lm.reference import NGramReference, UniformReference
from textgym.preferences import Ranking, collect, disagreement

WORDS = ("a", "b", "<end>")
SCORES = {"a a": 2.0, "a b": 1.0, "b a": 1.0, "b b": 0.0, "a": 1.0, "b": 0.0}


def count_a(prompts, completions, **columns):
    return [float(text.split().count("a")) for text in completions]


def nothing(prompts, completions, **columns):
    return [0.0] * len(prompts)


def small(**changed):
    settings = {
        "prompts": ["a", "b"],
        "tokenizer": WORDS,
        "stop": "<end>",
        "max_new_tokens": 2,
        "weights": [3, 1],
    }
    return make_task("Text", **{**settings, "reward": nothing, "gold": count_a, "eval_prompts": None, **changed})


@pytest.fixture(scope="module")
def policy():
    return UniformReference(np.ones(3, dtype=bool))


def test_better_ones_come_first_and_scores_are_gold(policy):
    collected = collect(small(), policy, n=300, candidates=3)
    assert collected.rankings
    for ranking in collected.rankings:
        assert ranking.scores == tuple(SCORES[text] for text in ranking.completions)
        assert list(ranking.scores) == sorted(set(ranking.scores), reverse=True)
        assert ranking.margin is None
        # Two words fill the budget; one word was followed by the stop token.
        assert ranking.ended == tuple(len(text.split()) == 1 for text in ranking.completions)
    assert disagreement(collected.rankings) == 0.0


@pytest.mark.slow
def test_prompts_are_drawn_by_their_weights(policy):
    rankings = collect(small(), policy, n=2000, keep_ties=True).rankings
    # The policy is the same for both prompts, so the few that give no ranking take nothing from the shares.
    assert len(rankings) > 1800
    share = sum(ranking.prompt == "a" for ranking in rankings) / len(rankings)
    assert abs(share - 0.75) < 4 * sqrt(0.75 * 0.25 / len(rankings))


def test_the_seed_decides(policy):
    options = {"n": 50, "candidates": 3, "noise": 0.5}
    first, again, other = (collect(small(), policy, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again
    assert first.rankings != other.rankings


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_annotator_errs_as_its_temperature_says(policy, noise):
    rankings = collect(small(), policy, n=4000, noise=noise).rankings
    gaps = np.array([abs(ranking.scores[0] - ranking.scores[1]) for ranking in rankings])
    for gap in (1.0, 2.0):
        wrong = [r.scores[0] < r.scores[1] for r, each in zip(rankings, gaps, strict=True) if each == gap]
        expected = 1 / (1 + exp(gap / noise))
        assert len(wrong) > 300
        assert abs(np.mean(wrong) - expected) < 4 * sqrt(expected * (1 - expected) / len(wrong))
    assert disagreement(rankings) == np.mean([r.scores[0] < r.scores[1] for r in rankings])


def test_disagreement_counts_pairs_by_hand():
    # Of the pairs of (1, 3, 1) one is wrong, (1, 3); equal scores are no mistake. (2, 1) is right.
    rankings = [
        Ranking("p", ("a", "b", "c"), scores=(1.0, 3.0, 1.0)),
        Ranking("p", ("a", "b"), scores=(2.0, 1.0)),
    ]
    assert disagreement(rankings) == 0.25
    assert isnan(disagreement([Ranking("p", ("a", "b"))]))


def test_ties_are_left_out_and_counted(policy):
    wordy = NGramReference(np.array([[0.499, 0.499, 0.002]] * 3))
    collected = collect(small(gold=nothing, max_new_tokens=12), wordy, n=40, candidates=3)
    assert (collected.rankings, collected.dropped, collected.tied) == ([], {"tied": 40}, 80)
    # Two candidates of three are left where two of them are tied.
    collected = collect(small(max_new_tokens=3), policy, n=200, candidates=3)
    assert sum(len(ranking.completions) == 2 for ranking in collected.rankings) == collected.short > 20
    # Of 0.1 + 0.2 and 0.3, which are the same reward summed in another order, one is left too.
    rounding = {"a": 0.1 + 0.2, "b": 0.3}
    task = small(max_new_tokens=1, gold=lambda prompts, completions, **_: [rounding.get(t, 0.0) for t in completions])
    evenly = NGramReference(np.array([[0.5 - 1e-9, 0.5 - 1e-9, 2e-9]] * 3))
    assert collect(task, evenly, n=10).dropped == {"tied": 10}


def test_a_coin_ranks_ties_that_are_kept(policy):
    # One token: the candidates are "a" and "b", since the stop token alone is an empty answer.
    collected = collect(small(gold=nothing, max_new_tokens=1), policy, n=1000, keep_ties=True, noise=0.3)
    assert (len(collected.rankings), collected.tied) == (1000 - collected.dropped.get("alike", 0), 0)
    assert {ranking.completions for ranking in collected.rankings} == {("a", "b"), ("b", "a")}
    share = np.mean([ranking.completions[0] == "a" for ranking in collected.rankings])
    assert abs(share - 0.5) < 4 * sqrt(0.25 / 1000)


@pytest.mark.slow
def test_what_is_missing_is_drawn_again_and_counted(policy):
    # Only "a" and "b" are answers: 9 rounds of draws of 1/3 each miss one of them rarely.
    collected = collect(small(max_new_tokens=1), policy, n=500)
    assert len(collected.rankings) + collected.dropped["alike"] == 500
    assert 0 < collected.dropped["alike"] < 60
    assert collected.short == 0
    collected = collect(small(max_new_tokens=1), policy, n=500, candidates=4)
    assert collected.short == len(collected.rankings) > 450
    assert all(ranking.completions == ("a", "b") for ranking in collected.rankings)


def test_a_policy_that_says_one_thing_gives_nothing():
    always = NGramReference(np.array([[1 - 2e-9, 1e-9, 1e-9]] * 3))
    assert collect(small(), always, n=20).dropped == {"alike": 20}


def test_without_gold_the_reward_ranks_and_another_reward_goes_before_both(policy):
    def count_b(prompts, completions, **columns):
        return [-score for score in count_a(prompts, completions)]

    by_return = collect(small(reward=count_a, gold=None), policy, n=50).rankings
    assert by_return == collect(small(), policy, n=50).rankings
    for ranking in collect(small(), policy, n=50, reward=count_b).rankings:
        assert ranking.scores == tuple(-SCORES[text] for text in ranking.completions)
        assert ranking.scores[0] > ranking.scores[1]


@pytest.mark.filterwarnings("ignore::textgym.rewards.TextGymWarning")
@pytest.mark.parametrize("rewards", [{"gold": lambda texts: texts}, {"gold": None, "reward": lambda texts: texts}])
def test_a_gold_reward_that_fails_is_counted(policy, rewards):
    def broken(prompts, completions, **columns):
        return [float("nan") if text == "a a" else SCORES.get(text, 0.0) for text in completions]

    task = small(**{name: value and broken for name, value in rewards.items()}, on_error="skip")
    collected = collect(task, policy, n=60)
    assert set(collected.failures) == {"nan"}
    assert collected.failures["nan"] >= sum("a a" in ranking.completions for ranking in collected.rankings) > 0
    assert collect(small(), policy, n=60).failures == {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 0}, "n=0: allowed is an integer in 1..1048576"),
        ({"n": True}, "n=True"),
        ({"candidates": 1}, "candidates=1: allowed is an integer in 2..1048576"),
        ({"noise": -0.1}, "temperature=-0.1"),
        ({"split": "trian"}, "trian"),
    ],
)
def test_bad_values_are_refused(policy, changed, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        collect(small(), policy, **{"n": 5} | changed)
    assert said in str(caught.value)
