"""Answers to chapter 4. Of a wrong one the docstring says which quantity a hint must name."""

import numpy as np


def value_and_advantage__right1(policy, action_values):
    value = [sum(p * q for p, q in zip(*rows, strict=True)) for rows in zip(policy, action_values, strict=True)]
    advantage = [[q - v for q in row] for row, v in zip(action_values, value, strict=True)]
    return value, advantage


def value_and_advantage__right2(policy, action_values):
    value = np.einsum("sk,sk->s", policy, action_values)
    return value, (action_values.T - value).T


def value_and_advantage__wrong1(policy, action_values):
    """V: an even mean"""
    value = action_values.mean(axis=1)
    return value, action_values - value[:, None]


def value_and_advantage__wrong2(policy, action_values):
    """V: the best action"""
    value = action_values.max(axis=1)
    return value, action_values - value[:, None]


def value_and_advantage__wrong3(policy, action_values):
    """A: the other way round"""
    value = (policy * action_values).sum(axis=1)
    return value, value[:, None] - action_values


def value_and_advantage__wrong4(policy, action_values):
    """A: weighted with the policy"""
    value = (policy * action_values).sum(axis=1)
    return value, policy * (action_values - value[:, None])


def policy_evaluation__right1(policy, rewards, following, gamma):
    def value(state):
        if state >= len(rewards):
            return 0.0
        pairs = zip(policy[state], rewards[state], following[state], strict=True)
        return sum(p * (r + gamma * value(after)) for p, r, after in pairs)

    return [value(state) for state in range(len(rewards))]


def policy_evaluation__right2(policy, rewards, following, gamma):
    states = len(rewards)
    matrix = np.zeros((states, states))  # V = r + gamma M V
    for state, action in np.argwhere(following < states):
        matrix[state, following[state, action]] += policy[state, action]
    return np.linalg.solve(np.eye(states) - gamma * matrix, (policy * rewards).sum(axis=1))


def policy_evaluation__wrong1(policy, rewards, following, gamma):
    """V: one step alone"""
    return (policy * rewards).sum(axis=1)


def policy_evaluation__wrong2(policy, rewards, following, gamma):
    """V: from the front, so that later values are still 0 when they are asked for, save one sweep"""
    value = np.zeros(following.max() + 1)
    for _ in range(2):
        for state in range(len(rewards)):
            value[state] = policy[state] @ (rewards[state] + gamma * value[following[state]])
    return value[: len(rewards)]


def policy_evaluation__wrong3(policy, rewards, following, gamma):
    """V: a maximum"""
    value = np.zeros(following.max() + 1)
    for state in reversed(range(len(rewards))):
        value[state] = (rewards[state] + gamma * value[following[state]]).max()
    return value[: len(rewards)]


def policy_evaluation__wrong4(policy, rewards, following, gamma):
    """V: ended states are kept"""
    value = np.zeros(following.max() + 1)
    for state in reversed(range(len(rewards))):
        value[state] = policy[state] @ (rewards[state] + gamma * value[following[state]])
    return value


def optimal_values__right1(rewards, following, gamma):
    value = np.zeros(following.max() + 1)
    for _ in range(len(rewards)):
        action_values = rewards + gamma * value[following]
        value[: len(rewards)] = action_values.max(axis=1)
    return value[: len(rewards)], action_values


def optimal_values__right2(rewards, following, gamma):
    found = {}
    for state in sorted(range(len(rewards)), reverse=True):
        pairs = zip(rewards[state], following[state], strict=True)
        found[state] = [r + gamma * max(found.get(int(after), [0.0])) for r, after in pairs]
    table = [found[state] for state in range(len(rewards))]
    return [max(row) for row in table], table


def optimal_values__wrong1(rewards, following, gamma):
    """V*: greedy for the next reward"""
    return rewards.max(axis=1), rewards


def optimal_values__wrong2(rewards, following, gamma):
    """V*: no discount, and a mean"""
    value = np.zeros(following.max() + 1)
    for state in reversed(range(len(rewards))):
        value[state] = (rewards[state] + value[following[state]]).mean()
    return value[: len(rewards)], rewards + gamma * value[following]


def optimal_values__wrong3(rewards, following, gamma):
    """Q*: the reward is left out"""
    value = np.zeros(following.max() + 1)
    for state in reversed(range(len(rewards))):
        value[state] = (rewards[state] + gamma * value[following[state]]).max()
    return value[: len(rewards)], gamma * value[following]


def greedy_policy__right1(action_values):
    table = []
    for row in action_values.tolist():
        table.append([(value == max(row)) / row.count(max(row)) for value in row])
    return table


def greedy_policy__right2(action_values):
    policy = np.zeros(action_values.shape)
    for state, values in enumerate(action_values):
        best = np.flatnonzero(values == values.max())
        policy[state, best] = 1 / len(best)
    return policy


def greedy_policy__wrong1(action_values):
    """pi: the first of equal ones"""
    return np.eye(action_values.shape[1])[action_values.argmax(axis=1)]


def greedy_policy__wrong2(action_values):
    """pi: a softmax"""
    weights = np.exp(action_values)
    return weights / weights.sum(axis=1, keepdims=True)


def greedy_policy__wrong3(action_values):
    """pi: actions, not probabilities"""
    return action_values.argmax(axis=1)


def greedy_policy__wrong4(action_values):
    """pi: as many winners in every state as in the first"""
    best = action_values == action_values.max(axis=1, keepdims=True)
    return best / best[0].sum()


def performance_difference__right1(passing, steps, policy, advantages, gamma):
    total = 0.0
    for state in range(len(steps)):
        for action in range(policy.shape[1]):
            weight = passing[state] * gamma ** steps[state]
            total += weight * policy[state, action] * advantages[state, action]
    return total


def performance_difference__right2(passing, steps, policy, advantages, gamma):
    return np.einsum("s,sk,sk->", passing * np.power(gamma, steps), policy, advantages)


def performance_difference__wrong1(passing, steps, policy, advantages, gamma):
    """J(new) - J(old): no discount"""
    return (passing[:, None] * policy * advantages).sum()


def performance_difference__wrong2(passing, steps, policy, advantages, gamma):
    """J(new) - J(old): every state as often"""
    return (gamma**steps) @ (policy * advantages).sum(axis=1)


def performance_difference__wrong3(passing, steps, policy, advantages, gamma):
    """J(new) - J(old): actions count alike"""
    return (passing * gamma**steps) @ advantages.mean(axis=1)
