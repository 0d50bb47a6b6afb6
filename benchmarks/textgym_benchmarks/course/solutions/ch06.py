"""Chapter 6: guess and correct."""

import numpy as np


def chain_rule(bias, guess):
    """Return a tuple: C, dC/dP, dP/dX, dX/db, dC/db."""
    probability = 1 / (1 + np.exp(-bias))
    if guess == 1:
        loss = -np.log(probability)
        outer = -1 / probability
    else:
        loss = -np.log(1 - probability)
        outer = 1 / (1 - probability)
    slope = probability * (1 - probability)
    return loss, outer, slope, 1.0, outer * slope * 1.0


def corrected_bias(bias, guess, reward, rate):
    """Return the bias after one step of guess and correct."""
    probability = 1 / (1 + np.exp(-bias))
    derivative = probability - guess
    return bias - rate * reward * derivative


def expected_bias_gradient(bias, reward_one, reward_zero):
    """Return dJ/db."""
    probability = 1 / (1 + np.exp(-bias))
    return probability * (1 - probability) * (reward_one - reward_zero)


def many_places(scores, guess, reward):
    """Return (K,) array: r dC/dX_k."""
    policy = np.exp(scores) / np.exp(scores).sum()
    guessed = np.zeros(len(scores))
    guessed[guess] = 1
    return reward * (policy - guessed)


def hungry_neuron(weight, bias, hunger, guess, reward):
    """Return a tuple: r dC/dw and r dC/db."""
    probability = 1 / (1 + np.exp(-(weight * hunger + bias)))
    derivative = reward * (probability - guess)
    return derivative * hunger, derivative
