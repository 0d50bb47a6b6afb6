"""Chapter 1: a language model writes."""

import numpy as np


def sequence_log_probability(log_probs, tokens):
    """Return log P(x_1, ..., x_T) in nats."""
    return log_probs[np.arange(len(tokens)), tokens].sum()


def temperature_probabilities(logits, temperature):
    """Return (V,) array: the policy at a temperature > 0."""
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def sample_token(probabilities, uniform):
    """Return the token that a uniform random number in [0, 1) draws."""
    return int(np.argmax(np.cumsum(probabilities) > uniform))


def greedy_and_likeliest(first, following):
    """Return (P of the greedy text, P of the likeliest text), for texts of three tokens."""
    a = first.argmax()
    b = following[a].argmax()
    greedy = first[a] * following[a, b] * following[b].max()
    every = first[:, None, None] * following[:, :, None] * following[None, :, :]
    return greedy, every.max()
