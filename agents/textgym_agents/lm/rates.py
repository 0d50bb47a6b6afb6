"""Learning rates: how they fall, and the one that an agent finds by how far its first update moves, and toward what."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np

from textgym.checks import Floats
from textgym_agents.config import LMConfig, OnPolicyConfig
from textgym_agents.lm.devices import Devices
from textgym_agents.lm.maths import scores
from textgym_agents.lm.metrics import KLController
from textgym_agents.lm.rollout import Rollout

_SMALLEST: Final = 1e-8
_MOST: Final = 30.0  # times the first rate
_ENOUGH: Final = 128  # Episodes whose correlation is taken as it is.
_LEAST_CORRELATION: Final = 0.1  # The standard error of a correlation of 100 episodes.
_USUAL_CORRELATION: Final = 0.35  # What is taken for episodes that are missing; tasks have 0.1 to 0.9.
_WHOLE: Final = 256  # Episodes that move the policy by all of `update_kl`.
_PER_NAT: Final = 1024  # Episodes of a budget for each nat to the optimum; with fewer, updates are longer.
_FARTHEST: Final = 4.0  # Nats; from 64 episodes no more than log 64 = 4.2 can be told.


def rate_at(config: LMConfig, episodes: float, budget: int) -> float:
    """Return the learning rate behind so many episodes of a budget, in shares of its peak."""
    budget = max(budget, 1)  # of an iteration outside of `learn`
    progress = min(episodes / budget, 1.0)
    if progress < config.warmup:
        return min((progress + 1.0 / budget) / config.warmup, 1.0)
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
    return {"constant": 1.0, "linear": 1.0 - 0.9 * progress, "cosine": cosine}[config.schedule]


class Learner(Protocol):
    """What `settle` reads of an agent, and changes.

    Attributes:
        learning_rate: its peak. first_rate: that of the first update.
        toward: the correlation that the rate goes by, 0 before it is settled. correlation: its running mean.
        rounding: how far a policy in bfloat16 seems to have moved before its first update, nats a sequence.
        reach: of updates that rounding may have hidden, the sum of their rates, in shares of the peak.
        chosen: see `Agent`. episodes, iteration, budget: so far, and in all. devices: see `Devices`.
        controller: holds beta.
    """

    learning_rate: float
    first_rate: float
    toward: float
    correlation: float
    rounding: float
    reach: float
    chosen: str
    episodes: int
    iteration: int
    budget: int
    devices: Devices
    controller: KLController


def settle(
    agent: Learner,
    config: OnPolicyConfig,
    gamma: float | None,
    rollout: Rollout,
    log_ratios: Callable[[], Floats],
) -> None:
    """Settle an agent's learning rate by what its first update did, and raise it as learning finds its way.

    With fewer than 128 episodes a batch the correlation that the rate goes by is known badly at first. So its running
    mean over about as many is kept, and the rate follows where it rises.

    Args:
        gamma, rollout: see `settled`. log_ratios: gives those of `settled`.
    """
    first = agent.toward == 0 and agent.learning_rate == agent.first_rate
    batch = len(rollout.lengths) // rollout.rounds * agent.devices.world
    if not first and (agent.toward == 0 or gamma is None or batch >= _ENOUGH):
        return
    if first:
        if agent.iteration:  # the first update is behind
            _settle_first(agent, config, gamma, rollout, log_ratios())
        elif "bfloat16" in (config.precision, config.reference_precision):
            agent.rounding = _move(rollout, log_ratios(), gamma, agent.devices).size
        if agent.rounding and not agent.toward and (gamma is None or _differ(_aims(rollout, gamma, agent.devices))):
            agent.reach += rate_at(config, agent.episodes, agent.budget)
        return
    move = _move(rollout, log_ratios(), gamma, agent.devices)
    if move.correlation is not None:
        agent.correlation += min(move.episodes / _ENOUGH, 1.0) * (move.correlation - agent.correlation)
    if agent.correlation > agent.toward:
        risen = agent.learning_rate * math.sqrt(agent.correlation / agent.toward)
        agent.learning_rate = max(min(risen, _MOST * agent.first_rate), agent.learning_rate)
        agent.toward = agent.correlation


def _settle_first(
    agent: Learner, config: OnPolicyConfig, gamma: float | None, rollout: Rollout, log_ratios: Floats
) -> None:
    # Of the updates that rounding hid, or of the one before.
    factor = agent.reach or rate_at(config, agent.episodes * (1 - 1 / agent.iteration), agent.budget)
    agent.learning_rate, agent.toward, agent.chosen = settled(agent, config, gamma, rollout, log_ratios, factor)
    agent.correlation = agent.toward
    if agent.toward:
        agent.reach = agent.rounding = 0.0


def settled(
    agent: Learner,
    config: OnPolicyConfig,
    gamma: float | None,
    rollout: Rollout,
    log_ratios: Floats,
    factor: float = 1.0,
) -> tuple[float, float, str]:
    """Return the learning rate at which an update moves the policy as `update_kl` says, what it follows, and why.

    Adam's step is in proportion to the rate, and the KL of a small move to its square. How far to go depends on how the
    move's log-ratios correlate with scores that it did not learn from, see `_toward`; on the batch, see `_share`; and
    on the steps of a batch: each is worth an eighth, up to 8. Returns a tenth to thirty times the agent's rate; this,
    0 and "" where nothing has moved yet, or by less than four times the agent's `rounding`.

    Args:
        gamma: of the rewards; None where nothing is learned from them: then all of `update_kl` is wanted.
        log_ratios: (N,) of each action, to the policy before, see `textgym_agents.lm.nlpo.log_ratios_within_cut`.
        factor: the share of the agent's rate at which the policy that wrote the rollout has learned.
    """
    rate, move = agent.learning_rate, _move(rollout, log_ratios, gamma, agent.devices)
    if move.size < max(_SMALLEST, 4 * agent.rounding):
        return rate, 0.0, ""
    size = move.size - agent.rounding
    correlation = move.correlation or 0.0
    toward = 1.0 if gamma is None else _toward(correlation, move.episodes)
    far = 0.0 if gamma is None else nats_to_go(_aims(rollout, gamma, agent.devices), agent.controller.beta)
    batch = move.episodes // rollout.rounds
    share, steps = _share(batch, far, agent.budget), min(config.epochs * config.minibatches, 8)
    wanted = config.update_kl * toward * share * steps / 8
    chosen = rate * min(max(factor * math.sqrt(wanted / size), 0.1), _MOST)
    missing = max(_ENOUGH - move.episodes, 0)
    few = f" in {move.episodes} episodes, and {_USUAL_CORRELATION} is taken for {missing} more" if missing else ""
    why = "no reward is learned from" if gamma is None else f"log-ratios and scores correlate by {correlation:.3g}{few}"
    longer = f"; {far:.3g} nats are to go in {agent.budget} episodes" if share > batch / _WHOLE else ""
    return (
        chosen,
        toward,
        f"learning rate {chosen:.3g}: at {rate * factor:.3g} learning has moved the policy by {size:.3g} nats a "
        f"sequence, wanted are {wanted:.3g} (update_kl={config.update_kl:g}, times {toward:.3g}: {why}; times "
        f"{share:.3g}: {batch} episodes a batch for {_WHOLE}{longer}"
        f"{f'; and times {steps}/8, the optimiser steps' if steps < 8 else ''})",
    )


def _share(batch: int, far: float, budget: int) -> float:
    """Return the share of `update_kl` that a batch moves by: of 256 episodes all of it.

    Fewer move it in proportion, or by more, but not by all, in a budget of less than 1024 episodes a nat.
    """
    hurry = min(far, _FARTHEST) * _PER_NAT / max(budget, 1)
    return batch / _WHOLE * max(min(hurry, _WHOLE / batch), 1.0)


def nats_to_go(found: Floats, beta: float) -> float:
    """Return about how far the optimum is from the policy that got these scores (B,), nats a sequence.

    It is the KL of the batch, weighted by exp(score / beta), from the batch as it is: log B at most, and with beta 0 of
    the best alone. Prompts are not told apart: what scores differ by from one to the next counts as well.

    Source: Korbak et al. (2022), arXiv:2206.00761: the optimum of the KL-penalised objective is such a posterior.
    """
    short = found - found.max()
    weights = np.exp(short / beta) if beta > 0 else (short == 0).astype(np.float64)
    weights /= weights.sum()
    kept = weights[weights > 0]
    return float(math.log(len(found)) + (kept * np.log(kept)).sum())


class _Move(NamedTuple):
    """How far a policy has moved, nats a sequence, how that correlates with scores, and over how many episodes.

    No correlation is known where all scores are equal.
    """

    size: float
    correlation: float | None
    episodes: int


def _move(rollout: Rollout, log_ratios: Floats, gamma: float | None, devices: Devices) -> _Move:
    own = devices.gather_array(np.bincount(rollout.rows, log_ratios, len(rollout.lengths)))
    moves = own.astype(np.float64)  # (B,)
    found = moves if gamma is None else _aims(rollout, gamma, devices)
    varied = moves.std() > 0 and _differ(found)
    correlation = float(np.corrcoef(moves, found)[0, 1]) if varied else None
    size = float(0.5 * (moves**2).mean())  # the KL to second order, and unlike the mean never negative
    return _Move(size, correlation, len(moves))


def _aims(rollout: Rollout, gamma: float, devices: Devices) -> Floats:
    """Return the scores of the whole batch (B,)."""
    return devices.gather_array(scores(rollout, gamma)).astype(np.float64)


def _differ(values: Floats) -> bool:
    return bool(values.std() > 1e-6 * np.abs(values).max())


def _toward(correlation: float, episodes: int) -> float:
    """Return what to make of a correlation of so many episodes: of fewer than 128, a part is what is usual."""
    missing = max(_ENOUGH - episodes, 0)
    return max((episodes * correlation + missing * _USUAL_CORRELATION) / (episodes + missing), _LEAST_CORRELATION)
