"""Chapter 2: the Markov decision process."""

import numpy as np


def policy_transitions(transitions, pi):
    """Return (S, S) array: P_pi(s' | s)."""
    return (pi[:, :, None] * transitions).sum(axis=1)


def state_distribution(rho, chain, t):
    """Return (S,) array: d_t, the probability of each state at time t."""
    d = rho
    for _ in range(t):
        d = d @ chain
    return d


def expected_reward(rho, transitions, pi, r, steps):
    """Return J without a discount."""
    chain = np.einsum("sa,sat->st", pi, transitions)
    d, total = rho, 0.0
    for _ in range(steps):
        total += d @ (pi * r).sum(axis=1)
        d = d @ chain
    return total


def number_of_states(going_on, stopping, horizon):
    """Return how many states there are after one prompt."""
    total = running = 1
    for _ in range(horizon):
        total += running * (going_on + stopping)
        running *= going_on
    return total
