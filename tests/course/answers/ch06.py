"""Answers to chapter 6. Of a wrong one the docstring says which quantity a hint must name."""

import math

import numpy as np
import torch


def chain_rule__right1(bias, guess):
    p = math.exp(bias) / (1 + math.exp(bias))
    chosen = p if guess else 1 - p
    return -math.log(chosen), (1 - 2 * guess) / chosen, p * (1 - p), 1, p - guess


def chain_rule__right2(bias, guess):
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(b)
    p.retain_grad()
    loss = -(guess * torch.log(p) + (1 - guess) * torch.log(1 - p))
    loss.backward()
    return loss, p.grad, b.grad / p.grad, 1.0, b.grad


def chain_rule__wrong1(bias, guess):
    """C: the cross entropy of the other action"""
    p = 1 / (1 + np.exp(-bias))
    loss = -np.log(1 - p if guess else p)
    outer = -1 / p if guess else 1 / (1 - p)
    return loss, outer, p * (1 - p), 1.0, p - guess


def chain_rule__wrong2(bias, guess):
    """dC/dP: the same sign for both guesses"""
    p = 1 / (1 + np.exp(-bias))
    chosen = p if guess else 1 - p
    return -np.log(chosen), -1 / chosen, p * (1 - p), 1.0, -(1 - chosen)


def chain_rule__wrong3(bias, guess):
    """dP/dX: the slope of something else"""
    p = 1 / (1 + np.exp(-bias))
    outer = -1 / p if guess else 1 / (1 - p)
    return -np.log(p if guess else 1 - p), outer, p, 1.0, outer * p


def chain_rule__wrong4(bias, guess):
    """dC/db: a sum instead of a product"""
    p = 1 / (1 + np.exp(-bias))
    outer = -1 / p if guess else 1 / (1 - p)
    return -np.log(p if guess else 1 - p), outer, p * (1 - p), 1.0, outer + p * (1 - p) + 1


def corrected_bias__right1(bias, guess, reward, rate):
    p = 1 / (1 + math.exp(-bias))
    return bias + rate * reward * (guess * (1 - p) - (1 - guess) * p)


def corrected_bias__right2(bias, guess, reward, rate):
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([b], lr=rate)
    p = torch.sigmoid(b)
    (-reward * torch.log(p if guess else 1 - p)).backward()
    optimizer.step()
    return b


def corrected_bias__wrong1(bias, guess, reward, rate):
    """b: up instead of down"""
    return bias + rate * reward * (1 / (1 + np.exp(-bias)) - guess)


def corrected_bias__wrong2(bias, guess, reward, rate):
    """b: no reward"""
    return bias - rate * (1 / (1 + np.exp(-bias)) - guess)


def corrected_bias__wrong3(bias, guess, reward, rate):
    """b: the new probability, not the new bias"""
    new = bias - rate * reward * (1 / (1 + np.exp(-bias)) - guess)
    return 1 / (1 + np.exp(-new))


def corrected_bias__wrong4(bias, guess, reward, rate):
    """b: the reward is in the cross entropy of the canteen alone"""
    return bias - rate * reward * (1 / (1 + np.exp(-bias)) - 1)


def expected_bias_gradient__right1(bias, reward_one, reward_zero):
    p = 1 / (1 + math.exp(-bias))
    return p * reward_one * (1 - p) - (1 - p) * reward_zero * p


def expected_bias_gradient__right2(bias, reward_one, reward_zero):
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(b)
    (p * reward_one + (1 - p) * reward_zero).backward()
    return b.grad


def expected_bias_gradient__wrong1(bias, reward_one, reward_zero):
    """dJ/db: an unweighted mean of both guesses"""
    p = 1 / (1 + np.exp(-bias))
    return 0.5 * (reward_one * (1 - p) - reward_zero * p)


def expected_bias_gradient__wrong2(bias, reward_one, reward_zero):
    """dJ/db: J itself"""
    p = 1 / (1 + np.exp(-bias))
    return p * reward_one + (1 - p) * reward_zero


def expected_bias_gradient__wrong3(bias, reward_one, reward_zero):
    """dJ/db: with respect to P"""
    return reward_one - reward_zero


def many_places__right1(scores, guess, reward):
    shifted = scores - scores.max()
    weights = [math.exp(x) for x in shifted]
    return [reward * (w / sum(weights) - (k == guess)) for k, w in enumerate(weights)]


def many_places__right2(scores, guess, reward):
    x = torch.tensor(scores, requires_grad=True)
    (reward * torch.nn.functional.cross_entropy(x[None], torch.tensor([guess]))).backward()
    return x.grad


def many_places__wrong1(scores, guess, reward):
    """r dC/dX: the sign of log pi"""
    policy = np.exp(scores) / np.exp(scores).sum()
    return reward * (np.eye(len(scores))[guess] - policy)


def many_places__wrong2(scores, guess, reward):
    """r dC/dX: a sigmoid for each"""
    return reward * (1 / (1 + np.exp(-scores)) - np.eye(len(scores))[guess])


def many_places__wrong3(scores, guess, reward):
    """r dC/dX: the guessed one alone"""
    policy = np.exp(scores) / np.exp(scores).sum()
    return reward * (policy[guess] - 1)


def many_places__wrong4(scores, guess, reward):
    """r dC/dX: no reward"""
    policy = np.exp(scores) / np.exp(scores).sum()
    return policy - np.eye(len(scores))[guess]


def hungry_neuron__right1(weight, bias, hunger, guess, reward):
    p = 1 / (1 + math.exp(-weight * hunger - bias))
    outer = -1 / p if guess else 1 / (1 - p)
    return reward * outer * p * (1 - p) * hunger, reward * outer * p * (1 - p)


def hungry_neuron__right2(weight, bias, hunger, guess, reward):
    w, b = (torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (weight, bias))
    p = torch.sigmoid(w * hunger + b)
    loss = -torch.distributions.Bernoulli(p).log_prob(torch.tensor(float(guess), dtype=torch.float64))
    (reward * loss).backward()
    return w.grad, b.grad


def hungry_neuron__wrong1(weight, bias, hunger, guess, reward):
    """r dC/dw: no input"""
    derivative = reward * (1 / (1 + np.exp(-(weight * hunger + bias))) - guess)
    return derivative, derivative


def hungry_neuron__wrong2(weight, bias, hunger, guess, reward):
    """r dC/dw: the weight in the input's place"""
    derivative = reward * (1 / (1 + np.exp(-(weight * hunger + bias))) - guess)
    return derivative * weight, derivative


def hungry_neuron__wrong3(weight, bias, hunger, guess, reward):
    """r dC/db: the input is in both"""
    derivative = reward * (1 / (1 + np.exp(-(weight * hunger + bias))) - guess)
    return derivative * hunger, derivative * hunger
