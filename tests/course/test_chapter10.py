"""The numbers of chapter 10, each computed anew."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from course_tools import ran

pytestmark = pytest.mark.long  # it holds a short training

TEXTS = list(itertools.product(range(3), repeat=3))
FIRST, AGAIN = (0.5, 0.25, 0.25), 0.5  # the reference of TwoModes


@pytest.fixture
def chapter():
    return ran(10)


@pytest.fixture
def old(chapter):
    """The policy's probabilities by prefix, its log-ratio (27, 3) and the score (27,), from the tables alone."""
    tables = [np.exp(table.numpy()) for table in chapter["old_logits"]]
    probabilities = [table / table.sum(1, keepdims=True) for table in tables]
    logs, base = np.zeros((27, 3)), np.zeros((27, 3))
    for i, text in enumerate(TEXTS):
        for t, word in enumerate(text):
            place = sum(w * 3 ** (t - 1 - k) for k, w in enumerate(text[:t]))
            logs[i, t] = math.log(probabilities[t][place, word])
            again = AGAIN if t and word == text[t - 1] else (1 - AGAIN) / 2
            base[i, t] = math.log(FIRST[word] if t == 0 else again)
    score = np.array([float(text in ((0, 0, 0), (1, 1, 1))) for text in TEXTS])
    return logs, logs - base, score


def mean_after(old, numbers, prefix):
    """The mean of numbers (27,) over texts that begin so."""
    rows = [i for i, text in enumerate(TEXTS) if text[: len(prefix)] == prefix]
    weights = np.exp(old[0][rows].sum(1))
    return float(weights @ numbers[rows] / weights.sum())


def test_10a_first_ratios_are_1_and_the_surrogates_gradient_is_js(chapter, old):
    assert chapter["ratio"].detach().numpy() == pytest.approx(np.ones((27, 3)), abs=1e-12)
    assert chapter["first_gap"] < 1e-12
    right = np.exp(old[0].sum(1)) @ (old[2] - 0.2 * old[1].sum(1))
    assert float(chapter["J"].detach()) == pytest.approx(right, abs=1e-12)
    assert f"J {right:.6f}" in chapter.printed


def test_10b_the_clip_cuts_only_what_has_improved(chapter):
    slopes = chapter["clip_slopes"]
    assert [slopes[1.0, at] for at in (0.5, 1.0, 1.5)] == pytest.approx([-1, -1, 0])
    assert [slopes[-1.0, at] for at in (0.5, 1.0, 1.5)] == pytest.approx([0, 1, 1])
    # J against what the surrogates promise, far along the gradient: (E[rho A], clipped, J).
    plain, clipped, true = chapter["walk"].T
    assert plain[-1] == plain.max()
    assert true[-1] < 0.8 * true.max()
    assert clipped.max() < 0.1 < plain[-1] - true[-1]
    assert np.all(clipped <= plain + 1e-12)


def test_10c_token_rewards_add_up_to_the_score_less_the_kl(chapter, old):
    _, log_ratio, score = old
    right = -0.2 * log_ratio
    right[:, 2] += score
    assert chapter["rewards"] == pytest.approx(right, abs=1e-12)
    assert chapter["mean_sum"] == pytest.approx(float(chapter["J"].detach()), abs=1e-12)
    assert "mean of the sums 0.014371   J 0.014371" in chapter.printed


def test_10d_gae_is_the_td_error_or_the_return_less_v_at_its_ends(chapter, old):
    assert max(chapter["lam_gaps"].values()) < 1e-12
    values, rewards = chapter["V"], chapter["rewards"]
    to_go = old[2][:, None] - 0.2 * np.stack([old[1][:, t:].sum(1) for t in range(3)], axis=1)
    for i, text in enumerate(TEXTS):
        for t in range(3):
            assert values[i, t] == pytest.approx(mean_after(old, to_go[:, t], text[:t]), abs=1e-12)
    powers = 0.5 ** np.arange(3)
    deltas = rewards[7] + np.append(values[7, 1:], 0.0) - values[7]
    assert chapter["gae"](rewards, values, 0.5)[7, 0] == pytest.approx(powers @ deltas, abs=1e-12)


def test_10e_with_the_exact_v_gaes_mean_is_the_advantage(chapter, old):
    table = chapter["gae_table"]
    assert max(table["exact V", lam][0] for lam in (0.0, 0.5, 0.95, 1.0)) < 1e-12
    assert table["V = 0", 1.0][0] < 1e-12
    assert table["V = 0", 0.0][0] > 10 * table["V = 0", 0.95][0] > 0.1
    deviations = [table["exact V", lam][1] for lam in (0.0, 0.5, 0.95, 1.0)]
    assert deviations == sorted(deviations)
    # One edge by hand: the word `a` first, lambda 0.5.
    advantages = chapter["gae"](chapter["rewards"], chapter["V"], 0.5)[:, 0]
    assert chapter["exact"].advantages[0][0] == pytest.approx(mean_after(old, advantages, (0,)), abs=1e-12)


def test_10f_the_value_loss_is_least_at_v_and_the_best_critic_explains_a_part(chapter, old):
    assert chapter["value_slope"] < 1e-12
    gaps = chapter["target_gaps"]
    assert max(gaps["exact V", 0.0], gaps["exact V", 0.95], gaps["exact V", 1.0], gaps["V = 0", 1.0]) < 1e-12
    # V_old = 0 at lambda 0: the target is the next token's reward alone.
    alone = [mean_after(old, chapter["rewards"][:, t], text[:t]) for text in TEXTS for t in range(3)]
    assert gaps["V = 0", 0.0] == pytest.approx(abs(np.array(alone) - chapter["V"].ravel()).max(), abs=1e-12)
    assert gaps["V = 0", 0.0] > gaps["V = 0", 0.95] > 1e-3
    weights = np.repeat(np.exp(old[0].sum(1)), 3) / 3
    returns, values = chapter["G"].ravel(), chapter["V"].ravel()
    variances = [weights @ x**2 - (weights @ x) ** 2 for x in (returns - values, returns, returns + values)]
    assert chapter["explained"]["exact V"] == pytest.approx(1 - variances[0] / variances[1], abs=1e-9)
    assert chapter["explained"]["-V"] == pytest.approx(1 - variances[2] / variances[1], abs=1e-9)
    assert chapter["explained"]["V = 0"] == pytest.approx(0, abs=1e-12)


def test_10g_the_demos_log_holds_what_the_formulas_say(chapter):
    rows = chapter["rows"]
    assert len(rows) == 16
    for row in rows:
        assert row["val/first_ratio"] == pytest.approx(1, abs=1e-5)
        assert row["val/first_clipfrac"] == 0
        assert row["objective/rlhf_reward"] == pytest.approx(row["objective/scores"] - 0.05 * row["objective/kl"])
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 0.4
    assert rows[-1]["policy/entropy_avg"] < rows[0]["policy/entropy_avg"]


def test_10h_the_trained_policy_earns_more_when_it_acts(chapter):
    first, last = (row["objective/scores"] for row in (chapter["rows"][0], chapter["rows"][-1]))
    assert f"reward {first:.3f} -> {last:.3f}" in chapter.printed
    assert first == pytest.approx(0.28, abs=0.01)
    assert last == pytest.approx(0.90, abs=0.04)  # of 256 texts: a standard error of 0.015, beside that of the training
    # 256 new answers of the agent: the standard error of their mean is below 0.02.
    env = chapter["make_env"]("textgym/Helpful-v0", 256)
    observation, _ = env.reset(seed=77)
    total, active = np.zeros(256), np.ones(256, dtype=bool)
    while active.any():
        observation, reward, ended, _, _ = env.step(chapter["agent"].act(observation))
        total += np.where(active, reward, 0.0)
        active &= ~ended
    assert total.std() / 16 < 0.02
    assert total.mean() == pytest.approx(last, abs=0.08)
