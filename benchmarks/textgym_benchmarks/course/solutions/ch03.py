"""Chapter 3: trajectories and returns."""

import numpy as np


def trajectory_log_probability(start, chosen):
    """Return log P(tau)."""
    return np.log(start) + np.log(chosen).sum()


def discounted_returns(rewards, gamma):
    """Return (T,) array G_0, ..., G_{T-1}."""
    found, later = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        found[t] = later = rewards[t] + gamma * later
    return found


def expected_return(log_probabilities, rewards, gamma):
    """Return J, the expected return."""
    returns = rewards @ gamma ** np.arange(rewards.shape[1])
    return np.exp(log_probabilities) @ returns


def longest_wait(gamma, share):
    """Return the least number of steps k for which gamma^k is at most `share`."""
    k = 0
    while gamma**k > share:
        k += 1
    return k


def textbook_values(values, gamma):
    """Return (T,) array: the textbook's V(s_t), counted from step t."""
    return values / gamma ** np.arange(len(values))
