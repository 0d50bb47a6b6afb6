"""The numbers of chapter 12, each computed anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
from answers import ch12
from course_tools import ran
from textgym_benchmarks.course.bugs import findings, right_parts
from textgym_benchmarks.course.chapters import chapter_of

pytestmark = pytest.mark.long  # it trains three dozen agents on a small task

GOLD = np.array([0.0, 0.6, 1.0, 0.6, 0.2, -0.3, -0.8])
COUNTS = np.arange(7)
BINOMIAL = np.array([math.comb(6, k) * 0.15**k * 0.85 ** (6 - k) for k in COUNTS])


@pytest.fixture
def chapter():
    return ran(12)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_12a_the_proxy_is_the_best_line_through_its_comparisons(chapter):
    x, w = chapter["x"], chapter["w"]
    assert (x * sigmoid(-w * x)).sum() == pytest.approx(0, abs=1e-9)  # the gradient of the pairwise loss
    assert chapter["slope"] == pytest.approx(0.2 * w)
    assert chapter["right_pairs"] == np.sum(x > 0) / np.sum(x != 0) > 0.93
    assert chapter["solution"].reference.expected_return == pytest.approx(BINOMIAL @ GOLD, abs=1e-12)
    assert chapter["seen"].sum() == 400
    assert chapter["seen"][4:].sum() <= 2


def test_12b_the_proxy_rises_and_gold_falls(chapter):
    slope = chapter["slope"]
    for beta, (kl, own, true) in chapter["by_beta"].items():
        weights = BINOMIAL * np.exp(slope * COUNTS / beta)
        p = weights / weights.sum()
        assert kl == pytest.approx(p @ np.log(p / BINOMIAL), abs=1e-9)
        assert (own, true) == pytest.approx((slope * p @ COUNTS, p @ GOLD), abs=1e-9)
    for n, (kl, own, true) in chapter["by_n"].items():
        up_to = np.cumsum(BINOMIAL)
        p = up_to**n - np.append(0, up_to[:-1]) ** n
        assert kl == pytest.approx(p @ np.log(np.maximum(p, 1e-300) / BINOMIAL), abs=1e-6)
        assert (own, true) == pytest.approx((slope * p @ COUNTS, p @ GOLD), abs=1e-6)
    for curve in (chapter["by_beta"], chapter["by_n"]):
        _, own, true = np.array(list(curve.values())).T
        assert np.all(np.diff(own) > 0)
        assert true.max() > true[0] > 0 > true[-1]
    assert max(chapter["by_n"], key=lambda n: chapter["by_n"][n][2]) == 8
    assert max(chapter["by_beta"], key=lambda b: chapter["by_beta"][b][2]) == 0.4


def test_12c_reward_hacking_is_seen(chapter):
    assert chapter["hardest"].text == chapter["exploit"].completion == " ".join(["please"] * 6)
    weights = BINOMIAL * np.exp(chapter["slope"] * COUNTS / 0.05)
    assert chapter["hardest"].probability == pytest.approx(weights[6] / weights.sum(), abs=1e-9)
    assert chapter["exploit"].gap == pytest.approx(6 * chapter["slope"] + 0.8)
    assert chapter["exploit"].exact


def test_12d_flipped_preferences_move_the_policy(chapter):
    base = 0.5 * 0.5**2 + 0.25 * 0.5**2  # what the reference writes of a a a and b b b
    for flips, (learned, true, kl) in chapter["flipped"].items():
        wins = (1 - flips) * sigmoid(4) + flips * sigmoid(-4)
        assert learned == pytest.approx(0.25 * math.log(wins / (1 - wins)), abs=1e-12)
        odds = base / (1 - base) * math.exp(learned / 0.2)
        p = odds / (1 + odds)
        assert true == pytest.approx(p, abs=1e-9)
        assert kl == pytest.approx(p * math.log(p / base) + (1 - p) * math.log((1 - p) / (1 - base)), abs=1e-9)
    assert [chapter["flipped"][flips][1] > base for flips in (0.0, 0.1, 0.3, 0.7)] == [True, True, True, False]


def test_12e_the_model_of_the_average_pleases_neither(chapter):
    wishes = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
    base = np.array([0.125, 0.0625, 0.8125])
    for name, share in {"group 1 alone": 1.0, "group 2 alone": 0.0, "half and half": 0.5, "70% group 1": 0.7}.items():
        r, one, two = chapter["averages"][name]
        gradient = np.zeros(3)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wins = share * sigmoid((wishes[0, i] - wishes[0, j]) / 0.25)
            wins += (1 - share) * sigmoid((wishes[1, i] - wishes[1, j]) / 0.25)
            gradient[[i, j]] += np.array([1, -1]) * (sigmoid((r[i] - r[j]) / 0.25) - wins)
        assert gradient == pytest.approx(np.zeros(3), abs=1e-6)
        p = base * np.exp(r / 0.2)
        p /= p.sum()
        assert (one, two) == pytest.approx((p[0] - p[1], p[1] - p[0]), abs=1e-9)
    assert chapter["averages"]["half and half"][1:] == pytest.approx((0.0625, -0.0625), abs=1e-9)
    assert min(chapter["averages"]["group 1 alone"][1], chapter["averages"]["group 2 alone"][2]) > 0.9
    assert chapter["averages"]["70% group 1"][2] < -0.0625


FOUND_BY = {
    "tempered_log_probs": "act draws from log-probs",
    "action_mask": "gradient of the stop action",
    "scores_on_tokens": "score on the last action",
    "discounted_rewards": "gradient with a discount",
    "charged_rewards": "token rewards add up",
    "gae_rows": "GAE",
    "whitened": "whitening",
    "ppo_losses": "clipping",
    "micro_batch_loss": "gradient with a discount",
    "mean_kl": "logged KL",
}


def test_12f_the_kit_finds_ten_bugs_and_none_in_the_right_agent(chapter):
    assert chapter["found"]["no bug"] == []
    for name, check in FOUND_BY.items():
        assert check in [finding.check for finding in chapter["found"][name]], name
    assert list(chapter["BUGS"]) == list(FOUND_BY) == chapter_of(12).exercises
    signs = {f.check: f.found for f in chapter["found"]["charged_rewards"]}
    assert float(signs["gradient of J"].split()[1]) > 0.2


@pytest.mark.parametrize("right", ["right1", "right2"])
def test_12f_the_kit_passes_other_right_functions(right):
    # Functions that return lists of numbers have no gradient, and the loss needs one.
    parts = {name: getattr(ch12, f"{name}__{right}") for name in FOUND_BY}
    parts |= {name: right_parts()[name] for name in ("ppo_losses", "micro_batch_loss")}
    assert findings(parts) == []


def test_12g_a_reward_that_rises_proves_nothing(chapter):
    least = {name: min(reached) for name, (reached, _) in chapter["training"].items()}
    most = {name: max(reached) for name, (reached, _) in chapter["training"].items()}
    assert round(np.mean(chapter["training"]["no bug"][0]), 2) == 1.0
    assert round(np.mean(chapter["training"]["action_mask"][0]), 2) == 0.99
    assert most["action_mask"] < least["no bug"]
    assert [name for name in FOUND_BY if least[name] <= 0.98] == ["scores_on_tokens", "charged_rewards", "gae_rows"]
    assert most["scores_on_tokens"] < 0.3 > most["gae_rows"]


def test_12h_the_doctor_sees_symptoms(chapter):
    every = {name: {each for each, n in said.items() if n == 3} for name, (_, said) in chapter["training"].items()}
    assert [name for name in FOUND_BY if every[name]] == ["tempered_log_probs", "charged_rewards"]
    assert not chapter["training"]["no bug"][1]
    assert every["tempered_log_probs"] == {"ratio not 1 at the first mini-batch"}
    assert every["charged_rewards"] == {"entropy collapse"}


def test_12i_a_reference_that_is_trained_along_is_found(chapter):
    assert "logged KL" in [finding.check for finding in chapter["shared"]]
    reached, alarms = chapter["shared_training"]
    assert max(reached) < min(chapter["training"]["no bug"][0]) - 0.05
    assert not alarms
