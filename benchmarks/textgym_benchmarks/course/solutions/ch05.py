"""Chapter 5: families of algorithms, and exploration."""

import numpy as np


def q_update(q, s, a, r, s_next, ended, alpha, gamma):
    """Return the new value of Q(s, a)."""
    target = r if ended else r + gamma * q[s_next].max()
    return q[s, a] + alpha * (target - q[s, a])


def epsilon_greedy(q, epsilon):
    """Return (A,) array: the probability of each action."""
    best = q == q.max()
    return (1 - epsilon) * best / best.sum() + epsilon / len(q)


def exploration_schedule(kind, start, end, progress):
    """Return epsilon or the temperature."""
    progress = min(progress, 1.0)
    if kind == "linear":
        return start + (end - start) * progress
    return start * (end / start) ** progress


def puct_scores(q, prior, visits, c):
    """Return (A,) array: what MCTS maximises when it chooses an action."""
    return q + c * prior * np.sqrt(visits.sum()) / (1 + visits)


def chance_to_find(epsilons, actions, depth):
    """Return the chance that epsilon-greedy finds a string of `depth` actions at least once."""
    return 1 - np.prod(1 - (epsilons / actions) ** depth)
