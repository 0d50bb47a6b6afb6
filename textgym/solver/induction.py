"""Backward induction: the optimal values and policy of a KL-regularised token MDP, one level at a time.

The objective is J = E[sum_t gamma^t r_t] - beta E[sum_t log(pi / ref)]: rewards are discounted by their absolute time
step, the KL is not discounted. Values are therefore kept in units of reward at time 0,

    Q(s_t, a) = gamma^t r_t + V(s_{t+1}),        V(s_t) = max_pi sum_a pi(a) [Q(s_t, a) - beta log(pi(a) / ref(a))],

with V = 0 once an episode has ended. The maximum is taken at pi*(a) = ref(a) exp(Q(s_t, a) / beta) / Z and is
V(s_t) = beta log sum_a ref(a) exp(Q(s_t, a) / beta); so the optimum is Gibbs, ref(y) exp(R(y) / beta) / Z with R the
discounted return, at every gamma. In units of reward at time t the same recursion has V_t = V / gamma^t and the
temperature beta / gamma^t, which grows with t and has no value at gamma = 0.

Source: Korbak et al. (2022), arXiv:2205.11275, section 3; Levine (2018), arXiv:1805.00909, section 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textgym.solver.distributions import log_sum
from textgym.solver.tree import Floats, Level, per_edge, per_state

_TIE = 1e-12  # Q-values that differ by less, relative to their size, are one value: sums round differently.


def soft_backup(
    action_values: Floats, log_reference: Floats, level: Level, beta: float
) -> tuple[Floats, Floats]:
    """One step of induction at beta > 0.

    Args:
        action_values: Q per edge (m,), reward units; log_reference: nats, -inf where the reference never goes.
        level: the states that the edges leave.
    Returns: V per running state, -inf where every edge has a reference of 0 or leads to such a state; log pi* per edge.
    """
    open_ = (log_reference > -np.inf) & (action_values > -np.inf)
    top = per_state(np.where(open_, action_values, -np.inf), level, np.maximum)
    dead = np.isneginf(top)
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.where(open_, (action_values - per_edge(np.where(dead, 0.0, top), level)) / beta, -np.inf)
    tilted = np.where(open_, log_reference + gaps, -np.inf)
    total = log_sum(tilted, level)
    # At large beta the log of a number next to 1 loses what the factor beta brings back: log(1 + x) does not.
    excess = per_state(np.exp(log_reference) * np.expm1(gaps), level, np.add)
    log_mean = np.where(excess > -0.5, np.log1p(np.maximum(excess, -0.5)), np.where(dead, 0.0, total))
    values = np.where(dead, -np.inf, top + beta * log_mean)
    return values, _policy(tilted, total, np.ones(len(gaps), dtype=np.bool_), level)


def hard_backup(
    action_values: Floats, log_reference: Floats, log_mass: Floats, level: Level
) -> tuple[Floats, Floats, Floats]:
    """One step of induction at beta = 0: V = max Q, where the reference has no say.

    Among equal maxima the policy is the limit of beta -> 0: the reference given that it makes no mistake.

    Args:
        log_mass: per edge, log of the probability that the reference makes none from there on.
    Returns: V and the log mass per running state; log pi* per edge, all equal where the reference makes a mistake for
        certain.
    """
    values = per_state(action_values, level, np.maximum)
    slack = _TIE * np.maximum(1.0, np.abs(values))
    best = action_values >= per_edge(values - slack, level)
    kept = np.where(best, log_reference + log_mass, -np.inf)
    total = log_sum(kept, level)
    return values, total, _policy(kept, total, best, level)


def _policy(logs: Floats, total: Floats, candidates: NDArray[np.bool_], level: Level) -> Floats:
    """Normalised logs; where all of them are -inf, the same probability for every candidate."""
    dead = np.isneginf(total)
    result = logs - per_edge(np.where(dead, 0.0, total), level)
    if dead.any():
        count = per_state(candidates.astype(np.float64), level, np.add)
        with np.errstate(divide="ignore"):
            even = np.log(candidates / per_edge(count, level))
        result = np.where(per_edge(dead, level), even, result)
    return np.asarray(result)
