"""Chapter 10: PPO with a KL penalty."""

from __future__ import annotations

import numpy as np
import torch
from textgym_agents.lm.maths import clipped_policy_loss, gae

from textgym.checks import Floats, Ints
from textgym_benchmarks.course.exercises import Case, Exercise


def _probabilities(logits: Floats, actions: Ints) -> Floats:
    """Return softmax(logits) of each action, (T,)."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray((weights / weights.sum(1, keepdims=True))[np.arange(len(actions)), actions])


def _probability_ratios() -> list[Case]:
    rng = np.random.default_rng(0)
    old, actions = rng.normal(size=(3, 3)).round(1), np.array([0, 2, 1])
    given = (rng.normal(size=(3, 3)).round(1), old + 5, old)
    return [
        Case(
            f"new logits {new.round(1).tolist()}, old logits {old.tolist()}, actions {actions.tolist()}",
            (new, old, actions),
            {"rho": _probabilities(new, actions) / _probabilities(old, actions)},
        )
        for new in given
    ]


def _clipped_surrogate_loss() -> list[Case]:
    rng = np.random.default_rng(1)
    given = [
        (np.array([1.0, 1.5, 0.5, 1.1]), np.array([1.0, 1.0, 1.0, 1.0]), 0.2),
        (np.array([1.5, 0.5]), np.array([-1.0, -1.0]), 0.2),
        (rng.lognormal(0, 0.4, 8).round(2), rng.normal(size=8).round(1), 0.3),
    ]
    cases = []
    for ratios, advantages, clip in given:
        loss = clipped_policy_loss(torch.tensor(ratios).log(), torch.tensor(advantages), clip).mean()
        right = {"loss": float(loss), "clip fraction": np.mean((ratios < 1 - clip) | (ratios > 1 + clip))}
        said = f"ratios {ratios.tolist()}, advantages {advantages.tolist()}, clip {clip}"
        cases.append(Case(said, (ratios, advantages, clip), right))
    return cases


def _gae_advantages() -> list[Case]:
    rng = np.random.default_rng(2)
    cases = []
    for gamma, lam in ((0.9, 0.5), (0.5, 0.8), (0.9, 0.0), (0.9, 1.0), (1.0, 0.95)):
        rewards, values = rng.normal(size=(2, 4)).round(1)
        time = gamma ** np.arange(4)  # the package counts from time 0
        own = gae((time * rewards)[None], (time * values)[None], np.array([4]), lam)[0] / time
        said = f"rewards {rewards.tolist()}, values {values.tolist()}, gamma {gamma}, lambda {lam}"
        cases.append(Case(said, (rewards, values, gamma, lam), {"A": own}))
    return cases


def _rlhf_token_rewards() -> list[Case]:
    # By hand.
    one = {"r": np.array([-0.1 * (np.log(0.5) - np.log(0.25)), -0.1 * (np.log(0.2) - np.log(0.4)) + 2.0])}
    two = {"r": np.array([-0.3])}
    three = {"r": np.array([0.0, 0.0, 0.7])}
    logs = np.log([0.5, 0.25, 0.1])
    return [
        Case("two tokens, score 2, beta 0.1", (2.0, np.log([0.5, 0.2]), np.log([0.25, 0.4]), 0.1), one),
        Case("one token, score 0.7, 2 nats, beta 0.5", (0.7, np.array([-1.0]), np.array([-3.0]), 0.5), two),
        Case("a policy that is the reference, score 0.7", (0.7, logs, logs.copy(), 0.5), three),
    ]


def _explained_variance() -> list[Case]:
    returns = np.array([0.0, 1.0, 2.0, 5.0])
    rng = np.random.default_rng(3)
    noisy = (returns + rng.normal(size=4)).round(1)
    scatter = np.mean((returns - noisy) ** 2) - np.mean(returns - noisy) ** 2
    power = np.mean(returns**2) - np.mean(returns) ** 2
    given = {
        "a critic with errors": (noisy, 1 - scatter / power),
        "a perfect critic": (returns.copy(), 1.0),
        "a critic that says 7": (np.full(4, 7.0), 0.0),
        "a critic that is off by 3": (returns + 3, 1.0),
        "a critic with the other sign": (-returns, -3.0),  # by hand: 1 - 2^2
    }
    return [
        Case(
            f"{said}, returns {returns.tolist()}, values {values.tolist()}",
            (returns, values),
            {"explained variance": right},
        )
        for said, (values, right) in given.items()
    ]


def _gae_as(rewards: Floats, values: Floats, gamma: float, lam: float, repeat: bool = False) -> Floats:
    """Return GAE; `repeat`: with the last value once more after the end."""
    following = np.append(values[1:], values[-1] if repeat else 0.0)
    deltas = rewards + gamma * following - values
    wait = np.arange(len(deltas)) - np.arange(len(deltas))[:, None]
    return np.asarray(np.where(wait >= 0, float(gamma * lam) ** np.maximum(wait, 0), 0.0) @ deltas)


EXERCISES = (
    Exercise(
        "probability_ratios",
        "The ratio of every token.",
        _probability_ratios,
        {
            "logits are not normalised": lambda new, old, actions: np.exp(
                (new - old)[np.arange(len(actions)), actions]
            ),
            "old and new are exchanged": lambda new, old, actions: (
                _probabilities(old, actions) / _probabilities(new, actions)
            ),
            "the exponential is forgotten": lambda new, old, actions: np.log(
                _probabilities(new, actions) / _probabilities(old, actions)
            ),
        },
    ),
    Exercise(
        "clipped_surrogate_loss",
        "PPO's policy loss and the clip fraction.",
        _clipped_surrogate_loss,
        {
            "the maximum of both is taken": lambda rho, a, clip: (
                -np.maximum(rho * a, np.clip(rho, 1 - clip, 1 + clip) * a).mean(),
                np.mean(abs(rho - 1) > clip),
            ),
            "the clipped product is taken alone, without the minimum": lambda rho, a, clip: (
                -(np.clip(rho, 1 - clip, 1 + clip) * a).mean(),
                np.mean(abs(rho - 1) > clip),
            ),
            "the objective is returned, not the loss": lambda rho, a, clip: (
                np.minimum(rho * a, np.clip(rho, 1 - clip, 1 + clip) * a).mean(),
                np.mean(abs(rho - 1) > clip),
            ),
        },
    ),
    Exercise(
        "gae_advantages",
        "Generalised advantage estimates.",
        _gae_advantages,
        {
            "V of the last state is used once more after the end": lambda r, v, gamma, lam: _gae_as(
                r, v, gamma, lam, True
            ),
            "later TD errors are not discounted by gamma": lambda r, v, gamma, lam: _gae_as(
                r + (gamma - 1) * np.append(v[1:], 0.0), v, 1.0, lam
            ),
            "returns are handed back, A + V": lambda r, v, gamma, lam: _gae_as(r, v, gamma, lam) + v,
        },
    ),
    Exercise(
        "rlhf_token_rewards",
        "The score and the KL as token rewards.",
        _rlhf_token_rewards,
        {
            "the KL is added instead of charged": lambda score, own, base, beta: (
                beta * (own - base) + score * (np.arange(len(own)) == len(own) - 1)
            ),
            "every token gets the score": lambda score, own, base, beta: score - beta * (own - base),
            "the first token gets the score": lambda score, own, base, beta: (
                score * (np.arange(len(own)) == 0) - beta * (own - base)
            ),
        },
    ),
    Exercise(
        "explained_variance",
        "The explained variance of a critic.",
        _explained_variance,
        {
            "the squared error stands where its variance belongs": lambda returns, values: (
                1 - np.mean((returns - values) ** 2) / np.var(returns)
            ),
            "1 is not subtracted from": lambda returns, values: np.var(returns - values) / np.var(returns),
        },
    ),
)
