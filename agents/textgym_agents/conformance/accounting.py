"""Checks of the logged numbers against the exact values of the policy that sampled."""

from __future__ import annotations

import math

import numpy as np

from textgym.solve import PolicyValues, policy_values
from textgym_agents.conformance.findings import NotAsked, Outcome, at_most
from textgym_agents.conformance.subject import Subject

_SIGMAS = 5.0
_FLOAT32 = 1e-4  # relative and absolute, of numbers that were summed in float32


def first_ratio(subject: Subject) -> Outcome:
    """In the first step of every update the policy is the one that sampled: its ratio is 1, and nothing is clipped."""
    try:
        ratios = subject.metric("val/first_ratio")
    except NotAsked:
        steps, ratios = subject.metric("updates"), subject.metric("val/ratio")
        if max(steps) > 1:
            raise NotAsked("'val/ratio' is a mean over several steps; no 'val/first_ratio'") from None
    clipped = [row.get("val/first_clipfrac", 0.0) for row in subject.training.rows]
    worst = max(abs(ratio - 1) for ratio in ratios) + max(clipped)
    return at_most("greatest |ratio - 1| (plus clipped share)", worst, 1e-5)


def starts_at_the_reference(subject: Subject) -> Outcome:
    """Before any update the policy is the reference."""
    agent = subject.make(subject.env())
    if getattr(agent, "plans", False):
        raise NotAsked("the agent plans before it has learned")
    if getattr(agent, "greedy", False):
        raise NotAsked("the agent is greedy: it never is the reference")
    subject.log_probs(agent)
    kl = policy_values(subject.tree, agent).kl
    return at_most("exact KL of the untrained policy, nats:", kl, 1e-4)


def logged_kl(subject: Subject) -> Outcome:
    """'objective/kl' is the mean over episodes of the sum over tokens: it scatters around the exact KL."""
    exact = _sampled(subject)
    logged = subject.metric("objective/kl")
    if max(values.kl for values in exact) < 1e-3:
        raise NotAsked("the policy does not leave the reference in the probe training")
    variance = sum(_log_ratio_variance(values) for values in exact) / _batch(subject)
    gap = abs(sum(logged) - sum(values.kl for values in exact))
    error = math.sqrt(variance) + _FLOAT32 * len(exact)
    return at_most(f"|mean logged - exact {_mean(exact):.4g} nats|, standard errors:", gap / error, _SIGMAS)


def logged_scores(subject: Subject) -> Outcome:
    """'objective/scores' is the mean of the environment's returns: it scatters around the exact return."""
    exact = _sampled(subject)
    logged = subject.metric("objective/scores")
    variance = sum(_return_variance(values) for values in exact) / _batch(subject)
    gap = abs(sum(logged) - sum(values.expected_return for values in exact))
    error = math.sqrt(variance) + _FLOAT32 * len(exact)
    return at_most("|mean logged - exact|, standard errors:", gap / error, _SIGMAS)


def rlhf_reward(subject: Subject) -> Outcome:
    """'objective/rlhf_reward' is the score less beta times the KL."""
    reward, score, kl = (
        np.array(subject.metric(f"objective/{name}")) for name in ("rlhf_reward", "scores", "kl")
    )
    beta = np.array([row.get("objective/beta", subject.task.beta) for row in subject.training.rows])
    gap = float(np.abs(reward - (score - beta * kl)).max())
    return at_most("|rlhf_reward - (scores - beta kl)|", gap, _FLOAT32)


def _sampled(subject: Subject) -> list[PolicyValues]:
    training = subject.training
    if not training.rows:
        raise NotAsked("learn never calls its callback")
    if training.sampled is None:
        raise NotAsked("log_probs gives None")
    return training.sampled


def _batch(subject: Subject) -> float:
    return subject.episodes / len(subject.training.rows)


def _mean(exact: list[PolicyValues]) -> float:
    return float(np.mean([values.kl for values in exact]))


def _log_ratio_variance(values: PolicyValues) -> float:
    """Of the log-ratio of one episode, in nats squared; summing exact KLs instead scatters less."""
    every = values.trajectories
    weights = every.probability
    ratios = np.where(weights > 0, every.log_ratio, 0.0)
    return float((weights * ratios**2).sum() - (weights * ratios).sum() ** 2)


def _return_variance(values: PolicyValues) -> float:
    every = values.trajectories
    return float((every.probability * (every.returns - values.expected_return) ** 2).sum())
