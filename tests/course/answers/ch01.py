"""Answers to chapter 1. Of a wrong one the docstring says which quantity a hint must name."""

import itertools
import math

import numpy as np


def sequence_log_probability__right1(log_probs, tokens):
    total = 0.0
    for t, token in enumerate(tokens):
        total += log_probs[t][token]
    return total


def sequence_log_probability__right2(log_probs, tokens):
    import torch

    return torch.from_numpy(log_probs).gather(1, torch.from_numpy(tokens)[:, None]).sum()


def sequence_log_probability__wrong1(log_probs, tokens):
    """log P: the probability itself"""
    return np.exp(log_probs[np.arange(len(tokens)), tokens].sum())


def sequence_log_probability__wrong2(log_probs, tokens):
    """log P: the likeliest tokens"""
    return log_probs.max(axis=1).sum()


def sequence_log_probability__wrong3(log_probs, tokens):
    """log P: the first token is left out"""
    return log_probs[np.arange(1, len(tokens)), tokens[1:]].sum()


def temperature_probabilities__right1(logits, temperature):
    import torch

    return torch.softmax(torch.as_tensor(logits) / temperature, dim=0)


def temperature_probabilities__right2(logits, temperature):
    scaled = np.asarray(logits) / temperature
    return np.exp(scaled - np.logaddexp.reduce(scaled))


def temperature_probabilities__wrong1(logits, temperature):
    """pi: multiplied by the temperature"""
    weights = np.exp((logits - logits.max()) * temperature)
    return weights / weights.sum()


def temperature_probabilities__wrong2(logits, temperature):
    """pi: overflows"""
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp(logits / temperature)
        return weights / weights.sum()


def temperature_probabilities__wrong3(logits, temperature):
    """pi: divided after the softmax"""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum() / temperature


def sample_token__right1(probabilities, uniform):
    total = 0.0
    for token, probability in enumerate(probabilities):
        total += probability
        if uniform < total:
            return token
    return len(probabilities) - 1


def sample_token__right2(probabilities, uniform):
    return np.searchsorted(np.cumsum(probabilities), uniform, side="right")


def sample_token__wrong1(probabilities, uniform):
    """token: the likeliest one"""
    return int(np.argmax(probabilities))


def sample_token__wrong2(probabilities, uniform):
    """token: one may be drawn that has probability 0"""
    return np.searchsorted(np.cumsum(probabilities), uniform, side="left")


def sample_token__wrong3(probabilities, uniform):
    """token: all alike"""
    return int(uniform * len(probabilities))


def greedy_and_likeliest__right1(first, following):
    def probability(text):
        return math.prod([first[text[0]], following[text[0]][text[1]], following[text[1]][text[2]]])

    greedy = [int(np.argmax(first))]
    for _ in range(2):
        greedy.append(int(np.argmax(following[greedy[-1]])))
    return probability(greedy), max(map(probability, itertools.product(range(len(first)), repeat=3)))


def greedy_and_likeliest__right2(first, following):
    best = first.copy()  # of texts that end in each token: dynamic programming
    last, greedy = first.argmax(), first.max()
    for _ in range(2):
        best = (best[:, None] * following).max(axis=0)
        greedy *= following[last].max()
        last = following[last].argmax()
    return greedy, best.max()


def greedy_and_likeliest__wrong1(first, following):
    """P likeliest: the greedy one"""
    a = first.argmax()
    b = following[a].argmax()
    greedy = first[a] * following[a, b] * following[b].max()
    return greedy, greedy


def greedy_and_likeliest__wrong2(first, following):
    """P greedy: the greatest probability anywhere"""
    every = first[:, None, None] * following[:, :, None] * following[None, :, :]
    return first.max() * following.max() ** 2, every.max()


def greedy_and_likeliest__wrong3(first, following):
    """P greedy: the table is read the other way round"""
    a = first.argmax()
    b = following[:, a].argmax()
    every = first[:, None, None] * following[:, :, None] * following[None, :, :]
    return first[a] * following[b, a] * following[:, b].max(), every.max()
