"""Chapter 6: guess and correct."""

from __future__ import annotations

import numpy as np
import torch
from textgym_agents.exact.objective import policy_gradient
from torch import Tensor

from textgym import make_task
from textgym_benchmarks.course.exercises import Case, Exercise


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def _cross_entropy(x: Tensor, guess: int) -> Tensor:
    """Return the cross entropy of a guess from the neuron's X; exact where the sigmoid is 0 or 1."""
    return -torch.nn.functional.logsigmoid(x if guess else -x)


def _derivative(x: float, guess: int) -> tuple[float, float]:
    """Return C and dC/dX, by autograd."""
    given = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    loss = _cross_entropy(given, guess)
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.item(), gradient.item()


def _chain_rule() -> list[Case]:
    cases = []
    for bias, guess in ((0.4, 1), (0.4, 0), (-2.0, 1), (3.0, 0)):
        probability = torch.tensor(_sigmoid(bias), dtype=torch.float64, requires_grad=True)
        loss = -torch.log(probability if guess else 1 - probability)
        (outer,) = torch.autograd.grad(loss, probability)
        x = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.sigmoid(x), x)
        whole = _derivative(bias, guess)[1]
        right = {"C": loss.item(), "dC/dP": outer.item(), "dP/dX": slope.item(), "dX/db": 1.0, "dC/db": whole}
        cases.append(Case(f"bias {bias} and guess {guess}", (bias, guess), right))
    return cases


def _corrected_bias() -> list[Case]:
    cases = []
    for bias, guess, reward, rate in (
        (0.0, 0, -1.0, 1.0),
        (0.4, 1, 0.5, 0.1),
        (-1.0, 1, -2.0, 0.3),
        (1.0, 0, 0.0, 5.0),
    ):
        right = bias - rate * reward * _derivative(bias, guess)[1]
        said = f"bias {bias}, guess {guess}, reward {reward}, rate {rate}"
        cases.append(Case(said, (bias, guess, reward, rate), {"b": right}))
    return cases


class _Arms(torch.nn.Module):
    """The neuron on the bandit of two arms: the second one, which pays 1, is its action 1."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def states(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, None]:
        x = self.bias.expand(len(rows))
        return torch.stack([torch.zeros_like(x), x, torch.zeros_like(x)], 1), None


def _expected_bias_gradient() -> list[Case]:
    cases = []
    for bias, one, zero in ((0.0, 1.0, -1.0), (1.5, 1.0, 0.2), (-0.7, -2.0, -1.0)):
        # The bandit pays 1 and 0; J is linear in the rewards, and a constant has no gradient.
        slope = policy_gradient(make_task("Bandit", difficulty=1), _Arms(bias), beta=0.0).gradient.item()
        right = (one - zero) * slope
        cases.append(Case(f"bias {bias}, rewards {one} and {zero}", (bias, one, zero), {"dJ/db": right}))
    return cases


def _many_places() -> list[Case]:
    cases = []
    for scores, guess, reward in (([0.5, -1.0, 2.0, 0.0], 2, 1.0), ([0.0, 0.0, 0.0], 0, -0.5), ([3.0, 1.0], 1, 2.0)):
        x = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(-reward * torch.log_softmax(x, 0)[guess], x)
        said = f"X {scores}, guess {guess}, reward {reward}"
        cases.append(Case(said, (np.array(scores), guess, reward), {"r dC/dX": gradient.numpy()}))
    return cases


def _hungry_neuron() -> list[Case]:
    cases = []
    for weight, bias, hunger, guess, reward in (
        (1.0, 0.0, 0.5, 1, 1.0),
        (-2.0, 0.3, 0.9, 0, -1.0),
        (0.5, -1.0, 0.0, 1, 0.4),
    ):
        given = torch.tensor([weight, bias], dtype=torch.float64, requires_grad=True)
        loss = reward * _cross_entropy(given[0] * hunger + given[1], guess)
        (gradient,) = torch.autograd.grad(loss, given)
        right = {"r dC/dw": gradient[0].item(), "r dC/db": gradient[1].item()}
        said = f"weight {weight}, bias {bias}, hunger {hunger}, guess {guess}, reward {reward}"
        cases.append(Case(said, (weight, bias, hunger, guess, reward), right))
    return cases


def _without_the_sigmoid(bias: float, guess: int) -> tuple[float, ...]:
    probability = _sigmoid(bias)
    outer = -1 / probability if guess else 1 / (1 - probability)
    loss = -np.log(probability if guess else 1 - probability)
    return float(loss), outer, probability * (1 - probability), 1.0, outer


EXERCISES = (
    Exercise(
        "chain_rule",
        "The derivative of a guess, factor by factor.",
        _chain_rule,
        {"dP/dX is left out of the product": _without_the_sigmoid},
    ),
    Exercise(
        "corrected_bias",
        "One step of guess and correct.",
        _corrected_bias,
        {
            "the step goes up the slope": lambda bias, guess, reward, rate: (
                bias + rate * reward * _derivative(bias, guess)[1]
            ),
            "the reward is left out": lambda bias, guess, reward, rate: bias - rate * _derivative(bias, guess)[1],
            "only the sign of the reward is used": lambda bias, guess, reward, rate: (
                bias - rate * np.sign(reward) * _derivative(bias, guess)[1]
            ),
        },
    ),
    Exercise(
        "expected_bias_gradient",
        "dJ/db, the average over both guesses.",
        _expected_bias_gradient,
        {
            "both guesses count alike": lambda bias, one, zero: (
                -0.5 * (one * _derivative(bias, 1)[1] + zero * _derivative(bias, 0)[1])
            ),
            "it is the derivative of the loss r C, whose sign is the opposite": lambda bias, one, zero: (
                _sigmoid(bias) * (1 - _sigmoid(bias)) * (zero - one)
            ),
        },
    ),
    Exercise(
        "many_places",
        "Guess and correct for a softmax.",
        _many_places,
        {
            "it is the gradient of log pi, whose sign is the opposite": lambda scores, guess, reward: (
                reward * (np.eye(len(scores))[guess] - np.exp(scores) / np.exp(scores).sum())
            ),
            "only the guessed action's X is moved": lambda scores, guess, reward: (
                reward * np.eye(len(scores))[guess] * (np.exp(scores) / np.exp(scores).sum() - 1)
            ),
        },
    ),
    Exercise(
        "hungry_neuron",
        "A neuron with an input.",
        _hungry_neuron,
        {
            "the weight's derivative lacks its factor, the input": lambda weight, bias, hunger, guess, reward: (
                (reward * _derivative(weight * hunger + bias, guess)[1],) * 2
            ),
            "the input is left out of X": lambda weight, bias, hunger, guess, reward: (
                reward * hunger * _derivative(bias, guess)[1],
                reward * _derivative(bias, guess)[1],
            ),
        },
    ),
)
