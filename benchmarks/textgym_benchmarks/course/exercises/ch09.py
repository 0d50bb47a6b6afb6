"""Chapter 9: the KL-regularised objective."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod

import numpy as np
import torch

from textgym import make_task
from textgym.best_of_n import best_of_n_edges
from textgym.checks import Floats
from textgym.solver import evaluate_edges, solve
from textgym.solver.values import PolicyValues
from textgym_benchmarks.course.exercises import Case, Exercise

_GIVEN = (("BetaSweep", 0.3), ("TwoModes", 0.2), ("BetaSweep", 0.001))


def _best(name: str, beta: float) -> PolicyValues:
    return solve(make_task(name), beta=beta).optimal


def _reference(values: PolicyValues) -> Floats:
    """Return the reference's probability of every text, (N,)."""
    return evaluate_edges(values.tree, values.log_reference, values.log_reference, 0.0, 1.0).trajectories.probability


def _kl_objective() -> list[Case]:
    cases = []
    for name, beta in _GIVEN[:2]:
        best = _best(name, beta)
        every, reference = best.trajectories, _reference(best)
        arguments = (every.probability, reference, every.returns, beta)
        cases.append(Case(f"the optimum of {name}, beta {beta}", arguments, {"J": best.objective}))
    # By hand: a certain text out of two has a KL of log 2 nats.
    certain = (np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([1.0, 0.0]), 0.5)
    return [*cases, Case("a policy that writes one text of two", certain, {"J": 1 - 0.5 * np.log(2)})]


def _gibbs_policy() -> list[Case]:
    cases = []
    for name, beta in _GIVEN:
        best = _best(name, beta)
        every, reference = best.trajectories, _reference(best)
        right = {"pi*": every.probability, "J*": best.objective}
        cases.append(Case(f"the texts of {name}, beta {beta}", (reference, every.returns, beta), right))
    return cases


def _soft_induction() -> list[Case]:
    cases = []
    for beta in (0.2, 1.0):
        found = solve(make_task("TwoModes", difficulty=2), beta=beta)
        first, second = np.exp(found.log_reference[0]), np.exp(found.log_reference[1]).reshape(3, 3)
        returns = found.tree.levels[2].reward.reshape(3, 3)
        right = {"V*": found.objective, "pi*": np.exp(found.log_policy[0])}
        said = f"the texts of two words of TwoModes, beta {beta}"
        cases.append(Case(said, (first, second, returns, beta), right))
    # Of TwoModes words 1 and 2 change places freely. Here they do not: the tilted probabilities of whole texts.
    first, second = np.array([0.5, 0.3, 0.2]), np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    returns = np.array([[0.0, 1.0, 0.5], [0.2, 0.0, 0.0], [1.0, 0.0, 0.3]])
    texts = first[:, None] * second * np.exp(returns / 0.5)
    right = {"V*": 0.5 * np.log(texts.sum()), "pi*": texts.sum(axis=1) / texts.sum()}
    cases.append(Case("nine texts of two words, beta 0.5", (first, second, returns, 0.5), right))
    return cases


def _kl_estimates() -> list[Case]:
    cases = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        log_policy, log_reference = rng.normal(-3, 1, 4).round(1), rng.normal(-4, 1, 4).round(1)
        ratio = torch.tensor(log_reference).exp() / torch.tensor(log_policy).exp()
        right = {
            "k1": -ratio.log().mean().item(),
            "k2": (ratio.log().square() / 2).mean().item(),
            "k3": (ratio - 1 - ratio.log()).mean().item(),
        }
        said = f"log policy {log_policy.tolist()}, log reference {log_reference.tolist()}"
        cases.append(Case(said, (log_policy, log_reference), right))
    return cases


def _best_of_n_policy() -> list[Case]:
    cases = []
    for n in (2, 8):
        best = _best("TwoModes", 0.2)
        edges = best_of_n_edges(best.tree, best.log_reference, n, 1.0)
        right = evaluate_edges(best.tree, edges, best.log_reference, 0.0, 1.0).trajectories.probability
        arguments = (_reference(best), best.trajectories.returns, n)
        cases.append(Case(f"the texts of TwoModes, n {n}", arguments, {"best-of-n": right}))
    reference, returns = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 1.0, 0.5, 0.0])
    said = f"returns {returns.tolist()}, reference {reference.tolist()}, n 3"
    return [*cases, Case(said, (reference, returns, 3), {"best-of-n": _all_draws(reference, returns, 3)})]


def _all_draws(reference: Floats, returns: Floats, n: int) -> Floats:
    """Return best-of-n by listing all that can be drawn; among equal returns any of the n is kept."""
    found = np.zeros(len(reference))
    for draw in product(range(len(reference)), repeat=n):
        top = Counter(i for i in draw if returns[i] == max(returns[j] for j in draw))
        for text, times in top.items():
            found[text] += prod(float(reference[i]) for i in draw) * times / top.total()
    return found


def _reverse_kl(policy: Floats, reference: Floats, returns: Floats, beta: float) -> float:
    with np.errstate(divide="ignore"):
        return float(policy @ returns - beta * (reference @ np.log(reference / policy)))


def _tilted(reference: Floats, returns: Floats, beta: float) -> tuple[Floats, float]:
    """Return Gibbs and log Z."""
    gaps = (returns - returns.max()) / beta
    weights = reference * np.exp(gaps)
    return weights / weights.sum(), float(np.log(weights.sum()) + returns.max() / beta)


def _mean_induction(first: Floats, second: Floats, returns: Floats, beta: float) -> tuple[float, Floats]:
    """Go on with the reference after the first word."""
    policy, log_mean = _tilted(first, (second * returns).sum(axis=1), beta)
    return beta * log_mean, policy


EXERCISES = (
    Exercise(
        "kl_objective",
        "J of a policy over texts.",
        _kl_objective,
        {
            "the KL is that of the reference to the policy": _reverse_kl,
            "the KL is added, not subtracted": lambda policy, reference, returns, beta: (
                policy @ returns
                + beta * np.sum(policy[policy > 0] * np.log(policy[policy > 0] / reference[policy > 0]))
            ),
            "beta is left out": lambda policy, reference, returns, beta: (
                policy @ returns - np.sum(policy[policy > 0] * np.log(policy[policy > 0] / reference[policy > 0]))
            ),
        },
    ),
    Exercise(
        "gibbs_policy",
        "The optimum in closed form.",
        _gibbs_policy,
        {
            "J* is log Z, without the factor beta": _tilted,
            "J* is the expected return of pi*, without its KL": lambda reference, returns, beta: (
                _tilted(reference, returns, beta)[0],
                _tilted(reference, returns, beta)[0] @ returns,
            ),
            "the reference is left out": lambda reference, returns, beta: (
                _tilted(np.ones(len(reference)) / len(reference), returns, beta)[0],
                beta * _tilted(np.ones(len(reference)) / len(reference), returns, beta)[1],
            ),
        },
    ),
    Exercise(
        "soft_induction",
        "The optimum by backward induction.",
        _soft_induction,
        {
            "the reference goes on after the first word": _mean_induction,
            "the largest return after a word is taken, not the soft maximum": lambda first, second, returns, beta: (
                beta * _tilted(first, returns.max(axis=1), beta)[1],
                _tilted(first, returns.max(axis=1), beta)[0],
            ),
        },
    ),
    Exercise(
        "kl_estimates",
        "k1, k2 and k3 from samples.",
        _kl_estimates,
        {
            "the ratio is pi / ref in all three": lambda log_policy, log_reference: (
                (log_reference - log_policy).mean(),
                ((log_reference - log_policy) ** 2 / 2).mean(),
                (np.exp(log_policy - log_reference) - 1 - (log_policy - log_reference)).mean(),
            ),
            "the ratio in k3 is pi / ref": lambda log_policy, log_reference: (
                (log_policy - log_reference).mean(),
                ((log_reference - log_policy) ** 2 / 2).mean(),
                (np.exp(log_policy - log_reference) - 1 - (log_policy - log_reference)).mean(),
            ),
        },
    ),
    Exercise(
        "best_of_n_policy",
        "Best-of-n as a distribution.",
        _best_of_n_policy,
        {
            "it is the probability that a text is among the n": lambda reference, returns, n: 1 - (1 - reference) ** n,
            "a level's probability is spread evenly over its texts": lambda reference, returns, n: np.array(
                [
                    (reference[returns <= own].sum() ** n - reference[returns < own].sum() ** n)
                    / np.sum(returns == own)
                    for own in returns
                ]
            ),
        },
    ),
)
