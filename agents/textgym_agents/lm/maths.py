"""The formulas of PPO as pure functions: the KL of each state, its charge, GAE, whitening, and the losses.

J = E[sum gamma^t r_t] - beta E[sum KL_t]: rewards are discounted from time 0, the KL is not. So everything is in units
of reward at time 0, as in `textgym.solver`: the token reward is gamma^t r_t - beta kl, V(s_t) is the sum of those to
come, and nothing is discounted a second time. B is episodes, N the states in which the policy acted, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Floats, Ints
from textgym_agents.config import KL
from textgym_agents.lm.rollout import Rollout

IN_LOSS_ALONE: Final = ("k3", "k3-ratio")  # kinds of KL that no return is charged with
Aggregation = Literal["token", "sequence", "constant"]
"""Every token alike; every sequence alike, by the mean over its tokens; the sum over a sequence, over a constant."""


def penalties(kl: Floats, rollout: Rollout, kind: KL) -> Floats:
    """Return the KL that is charged to the return of each action (N,), nats.

    k1 charges every action its own log-ratio. With "exact" and "k2" a state's own KL is differentiated in the loss, so
    an action is charged the KL of the state that follows it; that of a state in which a row was truncated is in the
    bootstrap. k3 and k3-ratio charge nothing.
    """
    if kind == "k1":
        return kl
    charged = np.zeros_like(kl)
    if kind not in IN_LOSS_ALONE:
        charged[:-1] = np.where(rollout.rows[1:] == rollout.rows[:-1], kl[1:], 0.0)
    return charged


def discounted(rollout: Rollout, gamma: float) -> Floats:
    """Return gamma^t r_t (N,), reward units at time 0."""
    return np.asarray(rollout.rewards * gamma**rollout.steps)


def scores(rollout: Rollout, gamma: float) -> Floats:
    """Return the return of every row, sum of gamma^t r_t (B,), reward units."""
    return np.bincount(rollout.rows, discounted(rollout, gamma), len(rollout.lengths)).astype(np.float64)


def charged_rewards(rollout: Rollout, kl: Floats, kind: KL, beta: float, gamma: float) -> Floats:
    """Return gamma^t r_t - beta times the KL charged (B, T), reward units at time 0; 0 behind a row's end."""
    return by_row(discounted(rollout, gamma) - beta * penalties(kl, rollout, kind), rollout)


def by_row(flat: Floats, rollout: Rollout) -> Floats:
    """Return entries (N,) of a rollout's states as (B, T), T the longest row; 0 behind a row's end."""
    result = np.zeros((len(rollout.lengths), int(rollout.lengths.max())))
    result[rollout.rows, rollout.steps] = flat
    return result


def gae(rewards: Floats, values: Floats, lengths: Ints, lam: float, bootstrap: Floats | None = None) -> Floats:
    """Return GAE(lambda) of a batch of episodes: sums of lam^k delta, delta = r_t + V(s_{t+1}) - V(s_t).

    Args:
        rewards, values: (B, T), reward units at time 0; values[i, t] is V(s_t) when it was sampled. Columns at or after
            lengths[i] are padding and are not read.
        lengths: (B,) actions per row.
        lam: per token, in [0, 1].
        bootstrap: (B,) V(s_T) of rows that were truncated, 0 for rows that ended; None means all ended.
    Returns: (B, T), reward units at time 0; 0 in the padding.
    Raises: ValueError if the shapes differ.
    Source: Schulman et al. (2016), arXiv:1506.02438, eq. 16, times gamma^t.
    """
    if rewards.shape != values.shape or lengths.shape != rewards.shape[:1]:
        raise ValueError(f"shapes differ: rewards {rewards.shape}, values {values.shape}, lengths {lengths.shape}")
    batch, width = rewards.shape
    valid = np.arange(width) < lengths[:, None]  # (B, T)
    values = np.where(valid, values, 0.0)
    following = np.append(values[:, 1:], np.zeros((batch, 1)), axis=1)  # V(s_{t+1}), (B, T)
    if bootstrap is not None and batch:
        following[np.arange(batch), lengths - 1] = bootstrap
    deltas = rewards + following - values  # (B, T)
    advantages, running = np.zeros((batch, width)), np.zeros(batch)
    for step in range(width - 1, -1, -1):
        running = np.where(valid[:, step], deltas[:, step] + lam * running, 0.0)
        advantages[:, step] = running
    return advantages


def standardise(values: Floats, centre: bool = True) -> tuple[Floats, float]:
    """Divide valid entries (N,) by their standard deviation and, if `centre`, subtract their mean first.

    Returns: the result (N,) and the standard deviation; 1.0 where it is (nearly) 0, so that nothing explodes.
    """
    scale = spread if (spread := float(np.std(values))) > 1e-8 else 1.0
    return (values - (float(np.mean(values)) if centre else 0.0)) / scale, scale


@dataclass(frozen=True)
class Targets:
    """Per-state training targets of a rollout."""

    advantages: Tensor  # (N,) float32, standardised if asked for
    returns: Tensor | None  # (N,) float32, advantages + values, in units of `value_scale`; None without a critic
    old_values: Tensor | None  # (N,) float32, in the same units
    kl_weight: float  # factor of the KL in the loss, in units of the advantages; 0 where it is in the reward alone
    kl: Floats  # (N,) float64, penalised KL of each state, nats
    weights: Tensor | None = None  # (N,) float32, factors of the states' losses; None: all 1
    rows: Ints | None = None  # (b,) the episodes that are trained on; None: all


def make_targets(
    rollout: Rollout,
    kl: Floats,
    kind: KL,
    beta: float,
    gamma: float,
    lam: float,
    whiten: bool,
    value_scale: float,
    value_offset: float = 0.0,
    centre: bool = True,
) -> Targets:
    """Return advantages and returns of a rollout, reward units at time 0.

    Behind a truncation stands V(s_T). With "exact" and "k2" the value head leaves out the KL of its own state, so it is
    V(s_T) - beta KL(s_T): the exact KL for both, being the mean of the log-ratio that "k2" would have charged there.

    Args:
        kl: (N,) from `textgym_agents.lm.rollout.token_kl`.
        beta: reward units per nat. gamma: discount of the rewards, per token.
        value_scale, value_offset: reward units; V = value_offset + value_scale * head.
        centre: whitening subtracts the mean as well.
    """
    rewards = charged_rewards(rollout, kl, kind, beta, gamma)  # (B, T)
    old = rollout.values.cpu().double().numpy()  # (N,)
    values = by_row(value_offset + old * value_scale, rollout)  # (B, T)
    behind = value_offset + rollout.bootstrap * value_scale  # (B,)
    if kind in ("exact", "k2") and rollout.truncated.any():
        assert rollout.bootstrap_kl is not None, "collect was given no reference"
        behind = behind - beta * rollout.bootstrap_kl
    bootstrap = np.where(rollout.truncated, behind, 0.0)
    advantages = gae(rewards, values, rollout.lengths, lam, bootstrap)[rollout.rows, rollout.steps]  # (N,)
    returns = advantages / value_scale + old
    advantages, scale = standardise(advantages, centre) if whiten else (advantages, 1.0)
    kl_weight = 0.0 if kind == "k1" else beta / scale
    return Targets(on_device(advantages, rollout), on_device(returns, rollout), rollout.values, kl_weight, kl)


def on_device(array: Floats, rollout: Rollout) -> Tensor:
    """Return an array as a float32 tensor beside those of a rollout."""
    return torch.tensor(array, dtype=torch.float32, device=rollout.values.device)


def clipped_policy_loss(log_ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """Return -min(rho A, clip(rho, 1 - clip, 1 + clip) A) with rho = exp(log_ratio), (n,).

    Args: clip: how far the ratio may fall, and rise where there is no `clip_high`. clip_high: how far it may rise.
    Source: Schulman et al. (2017), arXiv:1707.06347, eq. 7; two ranges: Yu et al. (2025), arXiv:2503.14476, 3.1.
    """
    ratio = log_ratio.exp()
    kept = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return -torch.minimum(ratio * advantages, kept * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the squared error, or that of the value kept within `clip` of its old value if it is larger, (n,).

    Source: Schulman et al. (2016), arXiv:1506.02438, section 5, as PPO implementations use it.
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (kept - returns).square())


def kl_estimate(log_ratio: Tensor, kind: KL, log_rho: Tensor | None = None) -> Tensor:
    """Return single-sample estimates of KL(pi || ref) from log pi(a) - log ref(a) (n,), a drawn from pi.

    k1 and k3 are unbiased, and k3 is >= 0. As losses: the expected on-policy gradient of k1 is 0, that of k2 is the
    gradient of KL(pi || ref), that of k3 the gradient of KL(ref || pi). k3-ratio is k3 times exp(log_rho), which is
    differentiated too: of a drawn from any mu, an unbiased KL(pi || ref), and so is its gradient.

    Args: log_rho: (n,) log pi(a) - log mu(a), for k3-ratio. Raises: ValueError for "exact", which is no estimate.
    Source: Schulman (2020), Approximating KL Divergence; k3-ratio: DeepSeek-V3.2 (2025), arXiv:2512.02556, eq. 7.
    """
    if kind in ("k1", "k2"):
        return log_ratio if kind == "k1" else 0.5 * log_ratio.square()
    k3 = torch.expm1(-log_ratio) + log_ratio
    if kind == "k3":
        return k3
    if kind == "k3-ratio" and log_rho is not None:
        return log_rho.exp() * k3
    raise ValueError(f"kind={kind!r}: no single-sample estimate; allowed: 'k1', 'k2', 'k3', 'k3-ratio' with log_rho")


def loss_total(aggregation: Aggregation, lengths: Ints, longest: int) -> float:
    """Return what summed token losses are divided by. Args: lengths: (b,) tokens; longest: the most there may be."""
    return float({"token": lengths.sum(), "sequence": len(lengths), "constant": len(lengths) * longest}[aggregation])
