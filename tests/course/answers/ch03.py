"""Answers to chapter 3. Of a wrong one the docstring says which quantity a hint must name."""

import itertools
import math

import numpy as np


def trajectory_log_probability__right1(start, chosen):
    total = math.log(start)
    for probability in chosen:
        total += math.log(probability)
    return total


def trajectory_log_probability__right2(start, chosen):
    import torch

    return torch.tensor([start, *chosen], dtype=torch.float64).log().sum()


def trajectory_log_probability__wrong1(start, chosen):
    """log P(tau): underflows to -inf"""
    with np.errstate(divide="ignore"):
        return np.log(start * np.prod(chosen))


def trajectory_log_probability__wrong2(start, chosen):
    """log P(tau): no rho"""
    return np.log(chosen).sum()


def trajectory_log_probability__wrong3(start, chosen):
    """log P(tau): a mean over tokens"""
    return np.log(start) + np.log(chosen).mean()


def discounted_returns__right1(rewards, gamma):
    length = len(rewards)
    return [sum(gamma ** (j - t) * rewards[j] for j in range(t, length)) for t in range(length)]


def discounted_returns__right2(rewards, gamma):
    backwards = itertools.accumulate(reversed(list(rewards)), lambda later, reward: reward + gamma * later)
    return np.array(list(backwards))[::-1]


def discounted_returns__wrong1(rewards, gamma):
    """G: the first reward is discounted"""
    return [sum(gamma ** (j - t + 1) * rewards[j] for j in range(t, len(rewards))) for t in range(len(rewards))]


def discounted_returns__wrong2(rewards, gamma):
    """G: sums of the past"""
    return np.cumsum(rewards)


def discounted_returns__wrong3(rewards, gamma):
    """G: one return alone"""
    return sum(gamma**t * reward for t, reward in enumerate(rewards))


def expected_return__right1(log_probabilities, rewards, gamma):
    total = 0.0
    for log_probability, row in zip(log_probabilities, rewards, strict=True):
        total += math.exp(log_probability) * sum(gamma**t * reward for t, reward in enumerate(row))
    return total


def expected_return__right2(log_probabilities, rewards, gamma):
    return np.einsum("i,it,t->", np.exp(log_probabilities), rewards, gamma ** np.arange(rewards.shape[1]))


def expected_return__wrong1(log_probabilities, rewards, gamma):
    """J: logs as weights"""
    return log_probabilities @ (rewards @ gamma ** np.arange(rewards.shape[1]))


def expected_return__wrong2(log_probabilities, rewards, gamma):
    """J: a plain mean"""
    return np.mean(rewards @ gamma ** np.arange(rewards.shape[1]))


def expected_return__wrong3(log_probabilities, rewards, gamma):
    """J: discounted once too often"""
    return np.exp(log_probabilities) @ (rewards @ gamma ** np.arange(1, rewards.shape[1] + 1))


def longest_wait__right1(gamma, share):
    return math.ceil(round(math.log(share) / math.log(gamma), 9))


def longest_wait__right2(gamma, share):
    return int(np.argmax(gamma ** np.arange(100_000) <= share))


def longest_wait__wrong1(gamma, share):
    """k: rounded down"""
    return math.floor(math.log(share) / math.log(gamma))


def longest_wait__wrong2(gamma, share):
    """k: not a whole number"""
    return math.log(share) / math.log(gamma)


def longest_wait__wrong3(gamma, share):
    """k: the horizon"""
    return 1 / (1 - gamma)


def textbook_values__right1(values, gamma):
    return [value * gamma**-t for t, value in enumerate(values)]


def textbook_values__right2(values, gamma):
    return np.exp(np.log(values) - np.arange(len(values)) * np.log(gamma))


def textbook_values__wrong1(values, gamma):
    """V: the wrong way round"""
    return values * gamma ** np.arange(len(values))


def textbook_values__wrong2(values, gamma):
    """V: one step too far"""
    return values / gamma ** np.arange(1, len(values) + 1)


def textbook_values__wrong3(values, gamma):
    """V: nothing done"""
    return values
