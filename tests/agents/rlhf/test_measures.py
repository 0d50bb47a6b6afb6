"""Measures of reward models against hand arithmetic and against data whose calibration is known."""

import json
import math
from typing import Any

import numpy as np
import pytest
from textgym_agents.rlhf.ranking import (
    accuracy_interval,
    calibration_error,
    draw_reliability,
    in_order,
    length_correlation,
    log_loss,
    measure_rankings,
    ranking_margins,
    reliability,
    score_answers,
    shifted,
)
from textgym_agents.training.measures import prompts_of

from textgym.estimates import Estimate


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def simulated(count, sharpness, seed=0):
    """Margins of pairs whose better answer is decided with the probability sigmoid(difference / sharpness)."""
    rng = np.random.default_rng(seed)
    difference = rng.normal(0.0, 2.0, count)
    first_is_better = rng.random(count) < 1 / (1 + np.exp(-difference))
    return sharpness * np.where(first_is_better, difference, -difference)


def test_margins_of_rankings():
    margins, groups = ranking_margins([[3.0, 1.0, 2.0], [0.0, 5.0]])
    assert margins.tolist() == [2.0, 1.0, -1.0, -5.0]
    assert groups.tolist() == [0, 0, 0, 1]


def test_order_and_log_loss_by_hand():
    margins = np.array([1.0, 0.0, -2.0])
    assert in_order(margins).tolist() == [1.0, 0.5, 0.0]
    want = -(math.log(sigmoid(1)) + math.log(0.5) + math.log(sigmoid(-2))) / 3
    assert log_loss(margins) == pytest.approx(want)
    assert log_loss(np.zeros(4)) == pytest.approx(math.log(2))
    assert log_loss(np.array([-1e5])) == 1e5


def test_reliability_bins_by_hand():
    # confidences 0.6, 0.6, 0.9, 0.5: with two bins (0.5, 0.75] has three pairs, of which 1, 0 and 0.5 are right
    margins = np.log([0.6 / 0.4, 0.4 / 0.6, 0.9 / 0.1, 1.0])
    low, high = reliability(margins, bins=2)
    assert (low.low, low.high, low.pairs, low.accuracy) == (0.5, 0.75, 3, 0.5)
    assert low.confidence == pytest.approx((0.6 + 0.6 + 0.5) / 3)
    assert (high.pairs, high.accuracy) == (1, 1.0)
    want = 3 / 4 * (1.7 / 3 - 0.5) + 1 / 4 * 0.1
    assert calibration_error([low, high]) == pytest.approx(want)


def test_an_empty_bin_has_no_means():
    bins = reliability(np.array([100.0]), bins=4)
    assert [entry.pairs for entry in bins] == [0, 0, 0, 1]
    assert bins[0].accuracy is None
    assert bins[0].confidence is None


def test_without_pairs_the_calibration_error_is_not_known():
    assert math.isnan(calibration_error(reliability(np.array([]))))


def test_a_calibrated_model_has_no_calibration_error():
    assert calibration_error(reliability(simulated(40_000, 1.0))) < 0.01


def test_an_overconfident_model_is_found_out():
    margins = simulated(40_000, 3.0)
    curve = reliability(margins)
    assert calibration_error(curve) > 0.08
    assert all(entry.accuracy < entry.confidence for entry in curve[1:])
    assert in_order(margins).mean() == in_order(simulated(40_000, 1.0)).mean()


def test_correlations_with_length_by_hand():
    pearson, spearman = length_correlation([0.0, 1.0, 10.0], [1, 2, 3])
    assert pearson == pytest.approx(10 / math.sqrt((182 / 3) * 2))
    assert spearman == pytest.approx(1.0)
    # ranks with ties: 1.5, 1.5, 3 against 3, 2, 1 -> covariance -1.5, squares 1.5 and 2
    assert length_correlation([4.0, 4.0, 5.0], [30, 20, 10])[1] == pytest.approx(-1.5 / math.sqrt(1.5 * 2))
    # ranks 2, 2, 2, 4, 5 against 1, 2, 3, 4, 5 -> covariance 8, squares 8 and 10
    assert length_correlation([0.0, 0.0, 0.0, 1.0, 9.0], [1, 2, 3, 4, 8])[1] == pytest.approx(8 / math.sqrt(8 * 10))
    assert length_correlation([0.0, 1.0], [2, 1]) == (pytest.approx(-1.0), pytest.approx(-1.0))
    assert length_correlation([1.0, 2.0], [7, 7]) == length_correlation([7.0, 7.0], [1, 2]) == (None, None)


def test_the_interval_of_the_accuracy_has_the_width_of_a_binomial():
    right = (np.random.default_rng(0).random(2000) < 0.7).astype(float)
    got = accuracy_interval(right, np.arange(2000), seed=0)
    assert got.mean == right.mean()
    assert got.high - got.low == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 2000), rel=0.1)


def test_rankings_that_differ_have_the_quantiles_of_a_binomial():
    # Of ten fair coins P(X <= 1) = 11 / 1024 < 0.025 < P(X <= 2) = 56 / 1024.
    got = accuracy_interval(np.repeat([0.0, 1.0], 5), np.arange(10), seed=0)
    assert (got.mean, got.low, got.high) == pytest.approx((0.5, 0.2, 0.8))


def test_pairs_of_one_ranking_are_drawn_together():
    right = np.repeat(np.random.default_rng(0).integers(2, size=200), 10).astype(float)
    grouped = accuracy_interval(right, np.repeat(np.arange(200), 10), seed=0)
    alone = accuracy_interval(right, np.arange(2000), seed=0)
    assert grouped.high - grouped.low == pytest.approx((alone.high - alone.low) * math.sqrt(10), rel=0.15)


def test_all_measures_together():
    card = measure_rankings([[3.0, 1.0, 2.0], [0.0, 5.0]], [[5, 6, 1], [9, 2]], bins=5)
    assert (card["rankings"], card["pairs"], card["accuracy"]) == (2, 4, 0.5)
    assert card["accuracy_low"] <= 0.5 <= card["accuracy_high"]
    assert card["log_loss"] == pytest.approx(-np.mean([math.log(sigmoid(margin)) for margin in (2, 1, -1, -5)]))
    assert card["longer_accuracy"] == 3 / 4  # 5 < 6 is wrong; 5 > 1, 6 > 1 and 9 > 2 are right
    assert len(card["reliability"]) == 5
    assert card == json.loads(json.dumps(card))
    assert card == measure_rankings([[3.0, 1.0, 2.0], [0.0, 5.0]], [[5, 6, 1], [9, 2]], bins=5)


def test_bad_rankings_are_named():
    with pytest.raises(ValueError, match="ranking 1 has 1 answers"):
        measure_rankings([[1.0, 2.0], [1.0]], [[1, 2], [1]])
    with pytest.raises(ValueError, match="one length for every score"):
        measure_rankings([[1.0, 2.0]], [[1]])
    with pytest.raises(ValueError, match="at least one ranking"):
        measure_rankings([], [])


@pytest.mark.long
@pytest.mark.slow
def test_the_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    draw_reliability(reliability(simulated(500, 2.0)), tmp_path / "reliability.png", "a $title$ with_$")
    picture = image.open(tmp_path / "reliability.png")
    assert picture.size == (832, 832)
    assert len(picture.getcolors(1 << 20)) > 50
    draw_reliability([], tmp_path / "reliability.png", "")
    assert [path.name for path in tmp_path.iterdir()] == ["reliability.png"]


def test_prompts_are_all_of_them_or_as_many_as_their_weight_says():
    weights = np.array([0.5, *[0.01] * 50, 0.0])
    chosen, own = prompts_of(weights, 51)
    assert chosen.tolist() == list(range(51))
    assert own == pytest.approx(weights[:51])
    chosen, own = prompts_of(weights, 10)
    assert (len(chosen), own[0], own.sum()) == (6, pytest.approx(0.5), pytest.approx(1.0))


def test_rankings_of_one_prompt_are_drawn_together():
    generator = np.random.default_rng(0)
    scores = [[float(each), 0.0] for each in generator.normal(0.5, 1, 30)]
    tokens = [[3, 4]] * len(scores)
    prompts = [f"p{number}" for number in range(len(scores))]
    once = measure_rankings(scores, tokens, prompts=prompts)
    often = measure_rankings(scores * 10, tokens * 10, prompts=prompts * 10)  # ten annotators who agree
    ends = ("accuracy", "accuracy_low", "accuracy_high")
    assert [often[end] for end in ends] == pytest.approx([once[end] for end in ends])
    apart = measure_rankings(scores * 10, tokens * 10)
    assert apart["accuracy_high"] - apart["accuracy_low"] < 0.5 * (once["accuracy_high"] - once["accuracy_low"])


def test_one_prompt_has_an_accuracy_without_an_interval():
    found = measure_rankings([[1.0, 0.0, -1.0], [2.0, 1.0]], [[3, 4, 5], [1, 2]], prompts=["a", "a"])
    assert found["accuracy"] == 1.0
    assert math.isnan(found["accuracy_low"])
    assert math.isnan(found["accuracy_high"])


def test_prompts_that_agree_do_not_make_the_accuracy_certain():
    def ends(*margins):
        found = measure_rankings([[margin, 0.0] for margin in margins], [[3, 4]] * len(margins))
        return found["accuracy"], found["accuracy_low"], found["accuracy_high"]

    # A model that is wrong on a fourth of all prompts is right on ten of them with 0.75^10 = 0.056: 3 / 10 holds that.
    assert ends(*[1.0] * 10) == (1.0, pytest.approx(0.7), 1.0)
    assert ends(*[-1.0] * 10) == (0.0, 0.0, pytest.approx(0.3))
    assert ends(1.0, 2.0) == (1.0, 0.0, 1.0)
    assert ends(0.0, 0.0, 0.0) == (0.5, 0.5, 0.5)  # ties alone
    thirds = measure_rankings([[1.0, 2.0, 0.0]] * 10, [[1, 2, 3]] * 10)  # two of three pairs, in every ranking
    assert thirds["accuracy_low"] == pytest.approx(2 / 3 - 0.3)
    assert thirds["accuracy_high"] == pytest.approx(2 / 3 + 0.3)
    tied = measure_rankings([[1.0, 1.0, 2.0]] * 10, [[1, 2, 3]] * 10)  # a tie and two wrong pairs, in every ranking
    assert tied["accuracy_low"] == 0.0
    assert tied["accuracy_high"] == pytest.approx(1 / 6 + 0.3)


def test_a_shifted_estimate_moves_with_its_ends():
    assert shifted(Estimate(1.0, 0.5, 3.0), 2.0) == Estimate(3.0, 2.5, 5.0)


def test_an_answer_that_came_to_its_end_ends_with_the_first_stop_token():
    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert (prompts, completions) == (["p", "q"], ["one", "three"])
        return [len(text) + sum(ids) for text, ids in zip(completions, completion_ids, strict=True)]

    answers = [("p", "one", True), ("q", "three", False)]
    assert score_answers(reward, answers, [10, 100]).tolist() == [13.0, 5.0]
    assert score_answers(reward, answers, []).tolist() == [3.0, 5.0]
    with pytest.raises(ValueError, match="zip"):
        score_answers(reward, [("p", "one", True), ("q", "three")], [10])
