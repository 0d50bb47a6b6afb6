"""Chapter 8: rewards and reward models."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from textgym.checks import Floats
from textgym_benchmarks.course.exercises import Case, Exercise


def _reward_score() -> list[Case]:
    rng = np.random.default_rng(1)
    cases = []
    for length, width in ((3, 5), (4, 4), (1, 3)):
        hidden, weights = rng.normal(size=(width, 2)).round(1), rng.choice([-1.5, -0.5, 0.5, 2.0], 2)
        last = hidden[length - 1].tolist()
        right = last[0] * weights[0] + last[1] * weights[1]  # by hand
        said = f"hidden {hidden.tolist()}, length {length}, weights {weights.tolist()}"
        cases.append(Case(said, (hidden, length, weights), {"r": right}))
    return cases


def _preference_gradient() -> list[Case]:
    rng = np.random.default_rng(4)
    cases = []
    for size in (1.0, 2.0):
        weights, preferred, other = (rng.normal(size=(3, 3)) * size).round(1)
        w = torch.tensor(weights, requires_grad=True)
        loss = -logsigmoid(w @ (torch.tensor(preferred) - torch.tensor(other)))
        (gradient,) = torch.autograd.grad(loss, w)
        right = {"loss": float(loss.detach()), "grad w": gradient.numpy()}
        said = f"w {weights.tolist()}, preferred {preferred.tolist()}, other {other.tolist()}"
        cases.append(Case(said, (weights, preferred, other), right))
    equal = np.array([1.0, -2.0])
    flat = {"loss": np.log(2), "grad w": -0.5 * (equal + equal)}  # by hand: d = 0, so sigmoid is 1/2
    cases.append(
        Case("equal scores: w [2, 1], preferred [1, -2], other [-1, 2]", (np.array([2.0, 1.0]), equal, -equal), flat)
    )
    return cases


def _pairs(scores: Floats) -> list[float]:
    return [float(np.logaddexp(0, scores[j] - scores[i])) for i, j in combinations(range(len(scores)), 2)]


def _ranking_loss() -> list[Case]:
    given = [[2.0, 0.5, 0.7, -1.0], [1.0, 1.0, 1.0], [0.3, -0.4]]
    return [Case(f"scores {s}", (np.array(s),), {"loss": np.mean(_pairs(np.array(s)))}) for s in given]


def _error(margins: Floats, edges: Floats, weigh: bool = True, label: bool = False) -> float:
    """Return the calibration error; `weigh`: bins by their pairs, `label`: bins of sigmoid(margin) itself."""
    sure = 1 / (1 + np.exp(-(margins if label else np.abs(margins))))
    gaps, counts = [], []
    for low, high in pairwise(edges):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            gaps.append(abs(sure[inside].mean() - (margins[inside] > 0).mean()))
            counts.append(inside.sum())
    return float(np.average(gaps, weights=counts if weigh else None))


def _calibration_error() -> list[Case]:
    rng = np.random.default_rng(2)
    given = {
        "200 margins and five bins": (rng.normal(0.7, 1.5, 200), np.linspace(0.5, 1, 6)),
        "30 margins, of which some bins are empty": (rng.normal(0.1, 0.3, 30), np.linspace(0.5, 1, 11)),
        "one bin": (rng.normal(1, 1, 50), np.array([0.5, 1.0])),
        "margins -50, -0.5 and 1, of which one is sure": (np.array([-50.0, -0.5, 1.0]), np.array([0.5, 1.0])),
    }
    return [Case(said, each, {"ECE": _error(*each)}) for said, each in given.items()]


def _margin_with_flips() -> list[Case]:
    # By hand: 9 of 10 and 2 of 10 turned round are 0.74; 3 of 4 and 1 of 10 are 0.7; 1 of 10 is the mirror image.
    given = [(np.log(9), 0.2, 0.74), (np.log(3), 0.1, 0.7), (-np.log(9), 0.2, 0.26), (1.7, 0.0, 1 / (1 + np.exp(-1.7)))]
    return [
        Case(f"margin {margin:.3f} and {flips:.0%} flipped", (margin, flips), {"margin": np.log(wins / (1 - wins))})
        for margin, flips, wins in given
    ]


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


EXERCISES = (
    Exercise(
        "reward_score",
        "The raw score of a text.",
        _reward_score,
        {
            "the last column is read, which may be padding": lambda hidden, length, weights: hidden[-1] @ weights,
            "hidden states are averaged over the tokens": lambda hidden, length, weights: (
                hidden[:length].mean(0) @ weights
            ),
            "a sigmoid is put on top of the score": lambda hidden, length, weights: _sigmoid(
                hidden[length - 1] @ weights
            ),
        },
    ),
    Exercise(
        "preference_gradient",
        "The pairwise loss and its gradient.",
        _preference_gradient,
        {
            "the gradient of log sigmoid is taken, whose sign is the other one": lambda w, a, b: (
                np.logaddexp(0, -w @ (a - b)),
                _sigmoid(-w @ (a - b)) * (a - b),
            ),
            "sigmoid(d) stands where 1 - sigmoid(d) belongs": lambda w, a, b: (
                np.logaddexp(0, -w @ (a - b)),
                -_sigmoid(w @ (a - b)) * (a - b),
            ),
        },
    ),
    Exercise(
        "ranking_loss",
        "The loss of a ranking of K answers.",
        _ranking_loss,
        {
            "the pairs are added up, not averaged": lambda scores: np.sum(_pairs(scores)),
            "only neighbours in the ranking are compared": lambda scores: np.mean(
                np.logaddexp(0, scores[1:] - scores[:-1])
            ),
            "the order is turned round": lambda scores: np.mean(_pairs(scores[::-1])),
        },
    ),
    Exercise(
        "calibration_error",
        "The gap between confidence and accuracy.",
        _calibration_error,
        {
            "every bin counts the same, however many pairs it holds": lambda margins, edges: _error(
                margins, edges, weigh=False
            ),
            "pairs in the wrong order are left out, as sigmoid(margin) is taken for the confidence": (
                lambda margins, edges: _error(margins, edges, label=True)
            ),
        },
    ),
    Exercise(
        "margin_with_flips",
        "The margin that is learned from flipped labels.",
        _margin_with_flips,
        {
            "the margin is shortened by the share of flips": lambda margin, flips: (1 - flips) * margin,
            "the margin is shortened by twice the share of flips": lambda margin, flips: (1 - 2 * flips) * margin,
        },
    ),
)
