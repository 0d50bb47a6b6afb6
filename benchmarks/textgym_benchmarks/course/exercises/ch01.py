"""Chapter 1: a language model writes."""

from __future__ import annotations

from itertools import product

import numpy as np

from textgym.checks import Floats
from textgym_benchmarks.course.exercises import Case, Exercise


def _tables(seed: int, *shape: int) -> Floats:
    """Return random distributions over the last axis."""
    return np.asarray(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]))


def _sequence() -> list[Case]:
    cases = []
    for seed, length, size in ((0, 3, 4), (1, 5, 10), (2, 2000, 3)):
        table = np.log(_tables(seed, length, size))
        tokens = np.random.default_rng(seed).integers(size, size=length)
        right = sum(float(row[token]) for row, token in zip(table, tokens, strict=True))
        cases.append(Case(f"a text of {length} tokens", (table, tokens), {"log P": right}))
    return cases


def _temperature() -> list[Case]:
    cases = []
    for logits, temperature in (([0.0, np.log(3.0)], 1.0), ([0.0, np.log(3.0)], 0.5), ([1.0, 2.0, 4.0], 2.0)):
        # Ratios of probabilities are exp of differences over the temperature, so one of them gives all.
        right = [1 / sum(np.exp((other - own) / temperature) for other in logits) for own in logits]
        cases.append(
            Case(
                f"logits {np.round(logits, 3)}, temperature {temperature}",
                (np.array(logits), temperature),
                {"pi": right},
            )
        )
    cases.append(Case("logits 1000 and 1000, temperature 1", (np.full(2, 1000.0), 1.0), {"pi": [0.5, 0.5]}))
    return cases


def _sample() -> list[Case]:
    given = [
        ([0.5, 0.3, 0.2], 0.1, 0),
        ([0.5, 0.3, 0.2], 0.79, 1),
        ([0.5, 0.3, 0.2], 0.95, 2),
        ([0.25, 0.0, 0.75], 0.25, 2),  # the token of probability 0 is never drawn
    ]
    return [
        Case(f"probabilities {shares}, uniform {uniform}", (np.array(shares), uniform), {"token": token})
        for shares, uniform, token in given
    ]


def _texts(first: Floats, following: Floats) -> dict[tuple[int, ...], float]:
    """Return the probability of every text of three tokens."""
    every = product(range(len(first)), repeat=3)
    return {(a, b, c): float(first[a] * following[a, b] * following[b, c]) for a, b, c in every}


def _greedy() -> list[Case]:
    trap = np.array([0.55, 0.45]), np.array([[0.5, 0.5], [0.1, 0.9]])
    drawn = _tables(3, 4), _tables(4, 4, 4)
    cases = []
    for said, (first, following) in (("two tokens", trap), ("four tokens", drawn)):
        a = int(first.argmax())
        b = int(following[a].argmax())
        every = _texts(first, following)
        right = {"P greedy": every[a, b, int(following[b].argmax())], "P likeliest": max(every.values())}
        cases.append(Case(f"{said}, P(x_1) = {np.round(first, 2)}", (first, following), right))
    return cases


def _greedy_twice(first: Floats, following: Floats) -> tuple[float, float]:
    greedy = float(first.max() * following[first.argmax()].max())
    greedy *= float(following[following[first.argmax()].argmax()].max())
    return greedy, greedy


EXERCISES = (
    Exercise(
        "sequence_log_probability",
        "The log-probability of a text.",
        _sequence,
        {
            "the likeliest tokens are scored, not those of the text": lambda logs, tokens: logs.max(axis=1).sum(),
            "the mean over the tokens is returned": lambda logs, tokens: logs[np.arange(len(tokens)), tokens].mean(),
        },
    ),
    Exercise(
        "temperature_probabilities",
        "The policy at a temperature.",
        _temperature,
        {
            "logits are multiplied by the temperature": lambda logits, temperature: (
                np.exp((logits - logits.max()) * temperature) / np.exp((logits - logits.max()) * temperature).sum()
            ),
            "the temperature is left out": lambda logits, temperature: (
                np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            ),
        },
    ),
    Exercise(
        "sample_token",
        "A token from a uniform random number.",
        _sample,
        {"the likeliest token is taken": lambda probabilities, uniform: int(probabilities.argmax())},
    ),
    Exercise(
        "greedy_and_likeliest",
        "The greedy text and the likeliest text.",
        _greedy,
        {"the greedy text is taken to be the likeliest one": _greedy_twice},
    ),
)
