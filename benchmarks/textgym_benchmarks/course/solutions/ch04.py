"""Chapter 4: value functions."""

import numpy as np


def value_and_advantage(policy, action_values):
    """Return a tuple: V (S,) and A (S, K)."""
    value = (policy * action_values).sum(axis=1)
    return value, action_values - value[:, None]


def policy_evaluation(policy, rewards, following, gamma):
    """Return V (S,) of a policy (S, K), by Bellman's expectation equations."""
    states = len(rewards)
    value = np.zeros(following.max() + 1)
    for state in reversed(range(states)):
        action_values = rewards[state] + gamma * value[following[state]]
        value[state] = policy[state] @ action_values
    return value[:states]


def optimal_values(rewards, following, gamma):
    """Return a tuple: V* (S,) and Q* (S, K), by Bellman's optimality equations."""
    states = len(rewards)
    value = np.zeros(following.max() + 1)
    for state in reversed(range(states)):
        value[state] = (rewards[state] + gamma * value[following[state]]).max()
    return value[:states], rewards + gamma * value[following]


def greedy_policy(action_values):
    """Return pi (S, K): the greedy policy with respect to Q (S, K)."""
    best = action_values == action_values.max(axis=1, keepdims=True)
    return best / best.sum(axis=1, keepdims=True)


def performance_difference(passing, steps, policy, advantages, gamma):
    """Return J(new) - J(old)."""
    gain = (policy * advantages).sum(axis=1)
    return (passing * gamma**steps * gain).sum()
