"""The numbers of chapter 8, each computed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from course_tools import ran
from textgym_agents.rlhf.ranking import calibration_error, plackett_luce_loss, reliability
from transformers import AutoModelForSequenceClassification

from textgym.rewards import make_reward
from textgym.world import REWARD_MODEL_PATH

pytestmark = [pytest.mark.slow, pytest.mark.long]  # its training takes seven seconds


@pytest.fixture
def chapter():
    return ran(8)


def test_8a_rules_add_up_terms(chapter):
    # By hand: content 0.6, courtesy 0.2, concision 0.1, ending 0.1; a wrong claim -0.2; a stray sentence halves.
    assert chapter["paid"] == pytest.approx([1.0, 0.8, -0.2, 0.4])
    assert " 1.00  Of course! 2 plus 3 is 5." in chapter.printed


def test_8b_bradley_terry_gives_the_share_of_preferences(chapter):
    right = 1 / (1 + math.exp(-2))
    assert chapter["right"].dtype == bool  # the name is used again, so the number is read from the text
    assert f"sigmoid(0.6 / 0.3) = {right:.4f}" in chapter.printed
    assert abs(chapter["share"] - right) < 4 * math.sqrt(right * (1 - right) / 20_000)


def test_8c_the_score_is_a_linear_head_on_the_last_hidden_state(chapter):
    model = AutoModelForSequenceClassification.from_pretrained(REWARD_MODEL_PATH).eval()
    task, rows = chapter["task"], []
    for answer in chapter["answers"]:
        ids = [*task.vocabulary.conversation.encode(chapter["question"], answer), task.vocabulary.stop_ids[0]]
        rows.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())  # alone, so without any padding
    assert chapter["by_hand"] == pytest.approx(rows, abs=1e-4)
    assert chapter["by_package"] == pytest.approx(rows, abs=1e-4)
    alone, beside = chapter["alone"][0], chapter["hidden"][1]
    assert float(alone @ chapter["w"]) == pytest.approx(float(beside @ chapter["w"]), abs=1e-5)


def test_8d_the_gradient_by_hand_is_autograds(chapter):
    assert chapter["gradient_gap"] < 1e-12
    w, h_a, h_b = (chapter[name].detach().numpy() for name in ("weights", "h_a", "h_b"))
    step = np.zeros(len(w))
    step[0] = 1e-6
    losses = [np.logaddexp(0, -(w + s) @ (h_a - h_b)) for s in (step, -step)]
    assert float(chapter["by_rule"][0]) == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-8)
    assert f"{math.log(2):.6f}" in chapter.printed


def test_8e_training_a_head_beats_saying_nothing(chapter):
    differences, held = chapter["differences"].numpy(), chapter["held"]
    head = chapter["heads"][0.03].numpy()
    pushed = 1 / (1 + np.exp(differences[~held] @ head))
    # At the minimum the gradient of the penalised loss is 0.
    assert -(pushed[:, None] * differences[~held]).mean(0) + 0.03 * head == pytest.approx(np.zeros(96), abs=1e-4)
    assert chapter["results"][0.03][1] == np.mean(differences[held] @ head > 0)
    assert chapter["results"][0.03][2] < chapter["results"][0.001][2] < math.log(2)


def test_8f_only_differences_count(chapter):
    right = np.mean(np.logaddexp(0, [-1.6, 0.6]))
    assert chapter["pair_losses"] == pytest.approx([right, right], abs=1e-12)
    assert "[0.61069435 0.61069435]" in chapter.printed


def test_8g_a_ranking_of_four_has_six_pairs_in_one_loss(chapter):
    r = [2.0, 0.5, 0.7, -1.0]
    losses = [math.log1p(math.exp(r[j] - r[i])) for i, j in chapter["pairs"]]
    assert len(losses) == 4 * 3 // 2
    assert float(chapter["pairwise"].detach()) == pytest.approx(sum(losses) / 6, abs=1e-12)
    assert float(chapter["slopes"].sum()) == pytest.approx(0, abs=1e-12)
    choices = [math.log(sum(map(math.exp, r[i:]))) - r[i] for i in range(4)]
    assert float(chapter["plackett_luce"].detach()) == pytest.approx(sum(choices), abs=1e-12)
    assert float(plackett_luce_loss(torch.tensor([r]))) == pytest.approx(sum(choices), abs=1e-5)


def test_8h_the_reliability_table_is_the_packages(chapter):
    for penalty, rows in chapter["tables"].items():
        margins = (chapter["differences"] @ chapter["heads"][penalty]).numpy()[chapter["held"]]
        curve = reliability(margins, 5)
        assert [row[2] for row in rows] == [entry.pairs for entry in curve]
        assert [row[4] for row in rows] == pytest.approx([entry.accuracy for entry in curve])
        assert chapter["calibration_errors"][penalty] == pytest.approx(calibration_error(curve), abs=1e-12)
    # The score test of a share of 0.8 in 65 pairs, by hand: it is rejected just outside of the interval.
    low, high = chapter["wilson"](52, 65)
    for edge in (low, high):
        assert abs(0.8 - edge) / math.sqrt(edge * (1 - edge) / 65) == pytest.approx(1.96, abs=1e-9)
    says, upper = chapter["tables"][0.001][-1][3], chapter["tables"][0.001][-1][6]
    assert upper < says


def test_8i_flipped_labels_shrink_the_margin(chapter):
    for flips, found in chapter["found_margins"].items():
        wins = 0.9 * (1 - flips) + 0.1 * flips
        assert found == pytest.approx(math.log(wins / (1 - wins)), abs=1e-9)
    assert chapter["found_margins"][0.2] == pytest.approx(1.0460, abs=5e-5)
    grid = np.linspace(0, 3, 3001)  # the minimum without calculus
    losses = 0.74 * np.logaddexp(0, -grid) + 0.26 * np.logaddexp(0, grid)
    assert grid[losses.argmin()] == pytest.approx(1.046, abs=1e-3)


def test_8j_heads_trained_on_flipped_labels_have_smaller_margins(chapter):
    sizes = [chapter["noisy"][flips][0] for flips in (0.0, 0.1, 0.2, 0.3)]
    assert sizes == sorted(sizes, reverse=True)
    shares = {flips: chapter["noisy"][flips][1] for flips in (0.0, 0.1, 0.2, 0.3)}
    assert min(shares, key=shares.get) == 0.3
    assert [min(shares.values()), max(shares.values())] == pytest.approx([0.692, 0.771], abs=0.01)
    rules = make_reward("helpful_rules")
    first = chapter["rankings"][0]
    paid = rules([first.prompt] * 2, list(first.completions), completion_ids=[[3] if e else [9] for e in first.ended])
    assert chapter["gold"][0] == pytest.approx(paid[0] - paid[1], abs=1e-9)
