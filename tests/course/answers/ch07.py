"""Answers to chapter 7. Of a wrong one the docstring says which quantity a hint must name."""

import numpy as np
import torch


def softmax(theta):
    weights = np.exp(theta)
    return weights / weights.sum(axis=-1, keepdims=True)


def score_table__right1(theta, text):
    return np.eye(theta.shape[1])[text] - softmax(theta)


def score_table__right2(theta, text):
    given = torch.tensor(theta, requires_grad=True)
    (-torch.nn.functional.cross_entropy(given, torch.tensor(text), reduction="sum")).backward()
    return given.grad


def score_table__wrong1(theta, text):
    """grad log P: the other sign"""
    return softmax(theta) - np.eye(theta.shape[1])[text]


def score_table__wrong2(theta, text):
    """grad log P: one softmax over the whole table"""
    return np.eye(theta.shape[1])[text] - np.exp(theta) / np.exp(theta).sum()


def score_table__wrong3(theta, text):
    """grad log P: a mean over places"""
    return (np.eye(theta.shape[1])[text] - softmax(theta)) / len(text)


def score_table__wrong4(theta, text):
    """grad log P: divided by the probabilities as if they were the parameters"""
    return np.eye(theta.shape[1])[text] / softmax(theta)


def reward_to_go_estimate__right1(scores, rewards):
    total = np.zeros(scores.shape[2])
    for text in range(len(scores)):
        for t in range(scores.shape[1]):
            total += rewards[text, t:].sum() * scores[text, t]
    return total / len(scores)


def reward_to_go_estimate__right2(scores, rewards):
    # Each reward multiplies the scores of all choices up to it.
    return (rewards[:, :, None] * scores.cumsum(axis=1)).sum(axis=1).mean(axis=0)


def reward_to_go_estimate__wrong1(scores, rewards):
    """grad J: the past"""
    return (rewards.cumsum(axis=1)[:, :, None] * scores).sum(axis=1).mean(axis=0)


def reward_to_go_estimate__wrong2(scores, rewards):
    """grad J: a mean over steps, too"""
    to_go = rewards[:, ::-1].cumsum(axis=1)[:, ::-1]
    return (to_go[:, :, None] * scores).mean(axis=(0, 1))


def reward_to_go_estimate__wrong3(scores, rewards):
    """grad J: the whole return, which is right on average alone"""
    return (rewards.sum(axis=1)[:, None, None] * scores).sum(axis=1).mean(axis=0)


def reward_to_go_estimate__wrong4(scores, rewards):
    """grad J: rewards after the next step"""
    to_go = rewards[:, ::-1].cumsum(axis=1)[:, ::-1] - rewards
    return (to_go[:, :, None] * scores).sum(axis=1).mean(axis=0)


def finite_differences__right1(objective, theta, step):
    return [(objective(theta + e) - objective(theta - e)) / (2 * step) for e in step * np.eye(len(theta))]


def finite_differences__right2(objective, theta, step):
    moved, gradient = theta.copy(), []
    for i in range(len(moved)):
        moved[i] = theta[i] + step
        up = objective(moved)
        moved[i] = theta[i] - step
        gradient.append(0.5 * (up - objective(moved)) / step)
        moved[i] = theta[i]
    return np.array(gradient)


def finite_differences__wrong1(objective, theta, step):
    """grad J: one side alone"""
    return [(objective(theta + e) - objective(theta)) / step for e in step * np.eye(len(theta))]


def finite_differences__wrong2(objective, theta, step):
    """grad J: twice too long"""
    return [(objective(theta + e) - objective(theta - e)) / step for e in step * np.eye(len(theta))]


def finite_differences__wrong3(objective, theta, step):
    """grad J: the direction of all parameters at once"""
    return [(objective(theta + step) - objective(theta - step)) / (2 * step)] * len(theta)


def optimal_baseline__right1(probabilities, scores, returns):
    return np.average(returns, weights=probabilities * np.linalg.norm(scores, axis=1) ** 2)


def optimal_baseline__right2(probabilities, scores, returns):
    above = below = 0.0
    for p, score, value in zip(probabilities, scores, returns, strict=True):
        above += p * score @ score * value
        below += p * score @ score
    return above / below


def optimal_baseline__wrong1(probabilities, scores, returns):
    """b*: the expected return"""
    return probabilities @ returns


def optimal_baseline__wrong2(probabilities, scores, returns):
    """b*: a plain mean"""
    return returns.mean()


def optimal_baseline__wrong3(probabilities, scores, returns):
    """b*: not divided by the mean squared length"""
    return probabilities @ ((scores**2).sum(axis=1) * returns)


def optimal_baseline__wrong4(probabilities, scores, returns):
    """b*: the length, not its square"""
    weights = probabilities * np.linalg.norm(scores, axis=1)
    return weights @ returns / weights.sum()


def estimator_moments__right1(probabilities, estimates):
    mean = sum(p * estimate for p, estimate in zip(probabilities, estimates, strict=True))
    second = sum(p * (estimate @ estimate) for p, estimate in zip(probabilities, estimates, strict=True))
    return mean, second - mean @ mean


def estimator_moments__right2(probabilities, estimates):
    mean = np.average(estimates, axis=0, weights=probabilities)
    covariance = np.cov(estimates.T, aweights=probabilities, ddof=0)
    return mean, np.trace(covariance)


def estimator_moments__wrong1(probabilities, estimates):
    """mean: a plain one"""
    return estimates.mean(axis=0), estimates.var(axis=0).sum()


def estimator_moments__wrong2(probabilities, estimates):
    """variance: for each parameter"""
    mean = probabilities @ estimates
    return mean, probabilities @ (estimates - mean) ** 2


def estimator_moments__wrong3(probabilities, estimates):
    """variance: the mean is not subtracted"""
    return probabilities @ estimates, probabilities @ (estimates**2).sum(axis=1)


def estimator_moments__wrong4(probabilities, estimates):
    """variance: its root"""
    mean = probabilities @ estimates
    return mean, np.sqrt(probabilities @ ((estimates - mean) ** 2).sum(axis=1))
