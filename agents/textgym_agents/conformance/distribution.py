"""Checks of the policy as a distribution: `log_probs` in every state of the probe task, and `act` against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from textgym_agents.conformance.findings import Outcome, at_most, judge
from textgym_agents.conformance.subject import Subject
from textgym_agents.protocol import Observation

_ROUNDING = 1e-5  # nats, of float32 sums that another width orders differently
_DRAWS = 4096
_SIGMAS = 5.0


def normalised(subject: Subject) -> Outcome:
    """Every row of probabilities sums to 1."""
    logs = subject.log_probs(subject.training.agent)
    want = (len(subject.states["input_ids"]), subject.task.vocabulary.size)
    if logs.shape != want:
        return judge(False, f"shape {logs.shape}", f"shape {want}")
    return at_most("|sum of probabilities - 1|", float(np.abs(np.exp(logs).sum(1) - 1).max()), _ROUNDING)


def masked(subject: Subject) -> Outcome:
    """Tokens that are not allowed have probability 0, and are never drawn."""
    agent = subject.training.agent
    forbidden = ~subject.task.vocabulary.allowed
    drawn = np.concatenate([agent.act(subject.states) for _ in range(16)])
    taken = int(forbidden[drawn].sum())
    if taken:
        return judge(False, f"{taken} of {len(drawn)} drawn tokens not allowed", "none")
    share = float(np.exp(subject.log_probs(agent))[:, forbidden].max())
    return at_most("greatest probability of a token that is not allowed:", share, 0.0)


def pad_columns(subject: Subject) -> Outcome:
    """More columns of padding change nothing."""
    pad = subject.task.vocabulary.pad_id
    wider = {
        name: np.pad(array, ((0, 0), (0, 5)), constant_values=pad if name == "input_ids" else 0)
        for name, array in subject.states.items()
    }
    return _unchanged(subject, wider)


def pad_ids(subject: Subject) -> Outcome:
    """What stands in the padding changes nothing: lengths come from the mask."""
    pad = subject.task.vocabulary.pad_id
    other = next(i for i in range(subject.task.vocabulary.size) if i != pad)
    ids = np.where(subject.states["attention_mask"] == 1, subject.states["input_ids"], other)
    return _unchanged(subject, {**subject.states, "input_ids": ids})


def later_tokens(subject: Subject) -> Outcome:
    """The token that comes after a state changes nothing in it."""
    worst = max(_difference(subject, edited) for edited in next_tokens(subject.states, 3))
    return at_most("greatest change of a log-probability", worst, _ROUNDING)


def next_tokens(observation: Observation, count: int) -> list[Observation]:
    """The observation with token 0, 1, ... written behind every state, outside the mask."""
    lengths = np.count_nonzero(observation["attention_mask"], axis=1)
    rows = np.flatnonzero(lengths < observation["input_ids"].shape[1])
    result: list[Observation] = []
    for token in range(count):
        ids = observation["input_ids"].copy()
        ids[rows, lengths[rows]] = token
        result.append({**observation, "input_ids": ids})
    return result


def likeliest(subject: Subject) -> Outcome:
    """`act(deterministic=True)` takes a token of the greatest log-probability."""
    agent = subject.training.agent
    logs = subject.log_probs(agent)
    taken = np.asarray(agent.act(subject.states, deterministic=True))
    gap = logs.max(1) - logs[np.arange(len(taken)), taken]
    return at_most("nats below the likeliest token:", float(gap.max()), _ROUNDING)


def sampled(subject: Subject) -> Outcome:
    """`act` draws every token as often as `log_probs` says, within 5 standard errors."""
    agent = subject.training.agent
    probs = np.exp(subject.log_probs(agent))
    # The first and the last state are far apart; in between, the one that is decided least.
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(1)
    worst = 0.0
    for state in {0, int(entropy.argmax()), len(probs) - 1}:
        repeated = {
            name: np.repeat(a[state : state + 1], _DRAWS, axis=0) for name, a in subject.states.items()
        }
        counts = np.bincount(np.asarray(agent.act(repeated)), minlength=probs.shape[1])
        p = probs[state]
        # Half a draw is added: at tiny p the count is Poisson and its variance no guide.
        errors = np.abs(counts - _DRAWS * p) / np.sqrt(_DRAWS * p * (1 - p) + 0.5)
        worst = max(worst, float(errors.max()))
    return at_most(f"greatest deviation in {_DRAWS} draws, standard errors:", worst, _SIGMAS)


def _unchanged(subject: Subject, observation: Observation) -> Outcome:
    return at_most("greatest change of a log-probability", _difference(subject, observation), _ROUNDING)


def _difference(subject: Subject, observation: Observation) -> float:
    agent = subject.training.agent
    return largest_difference(subject.log_probs(agent), subject.log_probs(agent, observation))


def largest_difference(one: Any, other: Any) -> float:
    """The greatest |a - b| of two arrays of logs; minus infinity equals itself."""
    with np.errstate(invalid="ignore"):
        gaps = np.where(one == other, 0.0, np.abs(one - other))
    return float(gaps.max())
