"""Chapter 7: the policy-gradient theorem."""

import numpy as np


def score_table(theta, text):
    """Return (T, K) array: grad log P of a text with respect to theta."""
    score = np.zeros(theta.shape)
    for t, letter in enumerate(text):
        weights = np.exp(theta[t])
        score[t] = -weights / weights.sum()
        score[t, letter] += 1
    return score


def reward_to_go_estimate(scores, rewards):
    """Return (D,) array: the mean over texts of sum_t G_t grad log pi(a_t given s_t)."""
    to_go = rewards[:, ::-1].cumsum(axis=1)[:, ::-1]
    per_text = (to_go[:, :, None] * scores).sum(axis=1)
    return per_text.mean(axis=0)


def finite_differences(objective, theta, step):
    """Return (D,) array: grad J by central differences."""
    gradient = np.zeros(len(theta))
    for i in range(len(theta)):
        shift = np.zeros(len(theta))
        shift[i] = step
        gradient[i] = (objective(theta + shift) - objective(theta - shift)) / (2 * step)
    return gradient


def optimal_baseline(probabilities, scores, returns):
    """Return b*, the constant baseline of least variance."""
    weights = probabilities * (scores**2).sum(axis=1)
    return (weights * returns).sum() / weights.sum()


def estimator_moments(probabilities, estimates):
    """Return a tuple: the mean (D,) and the variance of an estimate of a gradient."""
    mean = probabilities @ estimates
    squared_distance = ((estimates - mean) ** 2).sum(axis=1)
    return mean, probabilities @ squared_distance
