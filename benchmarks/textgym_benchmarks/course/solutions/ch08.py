"""Chapter 8: rewards and reward models."""

import numpy as np


def reward_score(hidden, length, weights):
    """Return the raw score w.h_end of one text."""
    return weights @ hidden[length - 1]


def preference_gradient(weights, preferred, other):
    """Return the pairwise loss of one pair and its gradient with respect to w."""
    difference = preferred - other
    d = weights @ difference
    return np.log(1 + np.exp(-d)), -(1 - 1 / (1 + np.exp(-d))) * difference


def ranking_loss(scores):
    """Return InstructGPT's loss of one ranking, the mean over its pairs."""
    losses = []
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            losses.append(np.log(1 + np.exp(scores[j] - scores[i])))
    return np.mean(losses)


def calibration_error(margins, edges):
    """Return the expected calibration error of a reward model."""
    sure, total = 1 / (1 + np.exp(-abs(margins))), 0.0
    for k in range(len(edges) - 1):
        inside = (sure > edges[k]) & (sure <= edges[k + 1])
        if inside.any():
            total += inside.sum() * abs(sure[inside].mean() - (margins[inside] > 0).mean())
    return total / len(margins)


def margin_with_flips(margin, flips):
    """Return the margin that is learned from comparisons of which a share is turned round."""
    p = 1 / (1 + np.exp(-margin))
    wins = (1 - flips) * p + flips * (1 - p)
    return np.log(wins / (1 - wins))
