"""Answers to chapter 2. Of a wrong one the docstring says which quantity a hint must name."""

import numpy as np


def policy_transitions__right1(transitions, pi):
    return np.einsum("ij,ijk->ik", pi, transitions)


def policy_transitions__right2(transitions, pi):
    return [
        [sum(pi[s][a] * transitions[s][a][t] for a in range(len(pi[s]))) for t in range(len(transitions))]
        for s in range(len(transitions))
    ]


def policy_transitions__wrong1(transitions, pi):
    """P_pi: all actions alike"""
    return transitions.mean(axis=1)


def policy_transitions__wrong2(transitions, pi):
    """P_pi: transposed"""
    return np.einsum("sa,sat->ts", pi, transitions)


def policy_transitions__wrong3(transitions, pi):
    """P_pi: the likeliest action alone"""
    return transitions[np.arange(len(transitions)), pi.argmax(axis=1)]


def state_distribution__right1(rho, chain, t):
    return rho @ np.linalg.matrix_power(chain, t)


def state_distribution__right2(rho, chain, t):
    if t == 0:
        return rho
    return chain.T @ state_distribution__right2(rho, chain, t - 1)


def state_distribution__wrong1(rho, chain, t):
    """d_t: the wrong side"""
    return np.linalg.matrix_power(chain, t) @ rho


def state_distribution__wrong2(rho, chain, t):
    """d_t: powers of the entries"""
    return rho @ chain**t


def state_distribution__wrong3(rho, chain, t):
    """d_t: one step too many"""
    return rho @ np.linalg.matrix_power(chain, t + 1)


def expected_reward__right1(rho, transitions, pi, r, steps):
    values = np.zeros(len(rho))  # backwards: V of the steps that are left
    for _ in range(steps):
        values = (pi * (r + transitions @ values)).sum(axis=1)
    return rho @ values


def expected_reward__right2(rho, transitions, pi, r, steps):
    chain = np.einsum("sa,sat->st", pi, transitions)
    paid = np.einsum("sa,sa->s", pi, r)
    return sum(rho @ np.linalg.matrix_power(chain, t) @ paid for t in range(steps))


def expected_reward__wrong1(rho, transitions, pi, r, steps):
    """J: the first step alone"""
    return rho @ (pi * r).sum(axis=1)


def expected_reward__wrong2(rho, transitions, pi, r, steps):
    """J: the policy chooses but does not weigh rewards"""
    chain = np.einsum("sa,sat->st", pi, transitions)
    return sum(rho @ np.linalg.matrix_power(chain, t) @ r.sum(axis=1) for t in range(steps))


def expected_reward__wrong3(rho, transitions, pi, r, steps):
    """J: one step too late"""
    chain = np.einsum("sa,sat->st", pi, transitions)
    paid = np.einsum("sa,sa->s", pi, r)
    return sum(rho @ np.linalg.matrix_power(chain, t) @ paid for t in range(1, steps))


def number_of_states__right1(going_on, stopping, horizon):
    return 1 + sum(going_on ** (t - 1) * (going_on + stopping) for t in range(1, horizon + 1))


def number_of_states__right2(going_on, stopping, horizon):
    if horizon == 0:
        return 1
    return 1 + stopping + going_on * number_of_states__right2(going_on, stopping, horizon - 1)


def number_of_states__wrong1(going_on, stopping, horizon):
    """|S|: stop tokens do not stop"""
    return sum((going_on + stopping) ** t for t in range(horizon + 1))


def number_of_states__wrong2(going_on, stopping, horizon):
    """|S|: the longest texts alone"""
    return (going_on + stopping) ** horizon


def number_of_states__wrong3(going_on, stopping, horizon):
    """|S|: without the prompt"""
    return sum(going_on ** (t - 1) * (going_on + stopping) for t in range(1, horizon + 1))
