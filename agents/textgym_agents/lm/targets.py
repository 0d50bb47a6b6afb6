"""What a batch is credited with: charged rewards, returns and advantages.

J = E[sum gamma^t r_t] - beta E[sum KL_t]: rewards are discounted from time 0, the KL is not. So everything here is in
units of reward at time 0, as in `textgym.solver`: the token reward is gamma^t r_t - beta kl, V(s_t) is the sum of those
to come, and nothing is discounted a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textgym_agents.config import KL
from textgym_agents.lm.rollout import Rollout

Array = NDArray[np.floating[Any]]

_EPSILON = 1e-4


def gae(
    rewards: Array,
    values: Array,
    lengths: NDArray[np.integer[Any]],
    lam: float,
    bootstrap: Array | None = None,
) -> NDArray[np.float64]:
    """GAE(lambda) advantages of a batch of episodes: sums of lam^k delta, delta = r_t + V(s_{t+1}) - V(s_t).

    A discount is in the units: of time 0 are the rewards gamma^t r_t and the values V(s_t), the sum of those to come.

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
        raise ValueError(
            f"shapes differ: rewards {rewards.shape}, values {values.shape}, lengths {lengths.shape}"
        )
    batch, width = rewards.shape
    valid = np.arange(width) < lengths[:, None]
    rewards, values = np.where(valid, rewards, 0.0), np.where(valid, values, 0.0)
    following = np.zeros((batch, width))
    following[:, :-1] = values[:, 1:]
    if bootstrap is not None and batch:
        following[np.arange(batch), lengths - 1] = bootstrap
    deltas = rewards + following - values
    advantages = np.zeros((batch, width))
    running = np.zeros(batch)
    for step in range(width - 1, -1, -1):
        running = np.where(valid[:, step], deltas[:, step] + lam * running, 0.0)
        advantages[:, step] = running
    return advantages


def standardise(values: Array, centre: bool = True) -> tuple[NDArray[np.float64], float]:
    """Divides valid entries (N,) by their standard deviation and, if `centre`, subtracts their mean first.

    Returns: the result (N,) and the standard deviation; 1.0 where it is (nearly) 0, so that nothing explodes.
    """
    spread = float(np.std(values))
    scale = spread if spread > 1e-8 else 1.0
    shifted = np.asarray(values, dtype=np.float64) - (float(np.mean(values)) if centre else 0.0)
    return shifted / scale, scale


def leave_one_out(returns: Array) -> NDArray[np.float64]:
    """RLOO: each return less the mean of the others, (M, n). Source: Ahmadian et al. (2024), arXiv:2402.14740."""
    count = returns.shape[1]
    return np.asarray(centred(returns) * (count / (count - 1)))


def centred(returns: Array) -> NDArray[np.float64]:
    """Each return less the mean of its group, itself included, (M, n). Source: Liu et al. (2025), arXiv:2503.20783."""
    return np.asarray(returns - returns.mean(1, keepdims=True), dtype=np.float64)


def standardised(returns: Array) -> NDArray[np.float64]:
    """GRPO: centred, over the standard deviation + 1e-4, (M, n). Source: Shao et al. (2024), arXiv:2402.03300."""
    return np.asarray(centred(returns) / (returns.std(1, ddof=1, keepdims=True) + _EPSILON))


def scatter(
    flat: Array, rows: NDArray[np.integer[Any]], steps: NDArray[np.integer[Any]], shape: tuple[int, int]
) -> Array:
    """Puts entries (N,) at (rows, steps) of zeros (B, T)."""
    result = np.zeros(shape, dtype=np.float64)
    result[rows, steps] = flat
    return result


@dataclass(frozen=True)
class Targets:
    """Per-state training targets of a rollout, float32 (N,).

    Attributes:
        advantages: standardised if asked for.
        returns: advantages + values in units of `value_scale`; None without a critic.
        old_values: values in units of `value_scale`; None without a critic.
        kl_weight: factor of the KL in the loss, in units of the advantages; 0 where the KL is in the reward alone.
        kl: penalised KL of each state, nats.
        weights: factors (N,) of the states' losses; None: all 1.
        rows: (b,) the episodes that are trained on; None: all.
    """

    advantages: Tensor
    returns: Tensor | None
    old_values: Tensor | None
    kl_weight: float
    kl: NDArray[np.float64]
    weights: Tensor | None = None
    rows: NDArray[np.int64] | None = None


def token_kl(rollout: Rollout, reference: Tensor, kind: KL) -> NDArray[np.float64]:
    """The penalised KL of each state under the sampling policy (N,), nats.

    Args:
        reference: (N, V) log-probabilities for "exact", else (N,) those of the actions.
    """
    if kind == "exact":
        assert rollout.all_log_probs is not None
        old = rollout.all_log_probs
        kl = torch.linalg.vecdot(old.exp(), old - reference)
    else:
        kl = rollout.log_probs - reference
    result: NDArray[np.float64] = kl.cpu().double().numpy()
    return result


def penalties(kl: NDArray[np.float64], rollout: Rollout, kind: KL) -> NDArray[np.float64]:
    """The KL that is charged to the return of each action (N,), nats.

    k1 charges every action its own log-ratio. With "exact" and "k2" a state's own KL is differentiated in the loss, so
    an action is charged the KL of the state that follows it; that of a state in which a row was truncated is in the
    bootstrap. k3 charges nothing.
    """
    if kind == "k1":
        return kl
    charged = np.zeros_like(kl)
    if kind != "k3":
        same_row = rollout.rows[1:] == rollout.rows[:-1]
        charged[:-1] = np.where(same_row, kl[1:], 0.0)
    return charged


def make_targets(
    rollout: Rollout,
    kl: NDArray[np.float64],
    kind: KL,
    beta: float,
    gamma: float,
    lam: float,
    whiten: bool,
    value_scale: float,
    value_offset: float = 0.0,
    centre: bool = True,
) -> Targets:
    """Advantages and returns of a rollout, reward units at time 0.

    Behind a truncation stands V(s_T). With "exact" and "k2" the value head leaves out the KL of its own state, so it is
    V(s_T) - beta KL(s_T): the exact KL for both, being the mean of the log-ratio that "k2" would have charged there.

    Args:
        kl: (N,) from `token_kl`.
        beta: reward units per nat. gamma: discount of the rewards, per token.
        value_scale: reward units per unit of the value head.
        value_offset: reward units; V = value_offset + value_scale * head.
        centre: whitening subtracts the mean as well.
    """
    shape = (len(rollout.lengths), int(rollout.lengths.max()))
    index = (rollout.rows, rollout.steps)
    rewards = scatter(discounted(rollout, gamma) - beta * penalties(kl, rollout, kind), *index, shape)
    old = rollout.values.cpu().double().numpy()
    values = scatter(value_offset + old * value_scale, *index, shape)
    behind = value_offset + rollout.bootstrap * value_scale
    if kind in ("exact", "k2") and rollout.truncated.any():
        assert rollout.bootstrap_kl is not None, "collect was given no reference"
        behind = behind - beta * rollout.bootstrap_kl
    bootstrap = np.where(rollout.truncated, behind, 0.0)
    advantages = gae(rewards, values, rollout.lengths, lam, bootstrap)[index]
    returns = advantages / value_scale + old
    scale = 1.0
    if whiten:
        advantages, scale = standardise(advantages, centre)
    return Targets(
        advantages=_tensor(advantages, rollout),
        returns=_tensor(returns, rollout),
        old_values=rollout.values,
        kl_weight=0.0 if kind == "k1" else beta / scale,
        kl=kl,
    )


def action_returns(
    rollout: Rollout, kl: NDArray[np.float64], kind: KL, beta: float, gamma: float
) -> NDArray[np.float64]:
    """The return of every action (N,), reward units at time 0: its own and all later rewards, less beta times the KL
    charged.

    A row's first entry is the return of the whole sequence. Behind a truncation, where only a critic could tell, it
    counts nothing.

    Args: see `make_targets`.
    """
    shape = (len(rollout.lengths), int(rollout.lengths.max()))
    index = (rollout.rows, rollout.steps)
    rewards = scatter(discounted(rollout, gamma) - beta * penalties(kl, rollout, kind), *index, shape)
    return np.asarray(gae(rewards, np.zeros(shape), rollout.lengths, 1.0)[index])


def critic_free_targets(
    rollout: Rollout,
    kl: NDArray[np.float64],
    kind: KL,
    beta: float,
    advantages: NDArray[np.float64],
    whiten: bool,
) -> Targets:
    """Targets without a critic.

    Args:
        advantages: (N,) reward units.
        whiten: divide them, and beta in the loss, by their standard deviation over the batch. Nothing is subtracted: a
            baseline is the algorithm's own business.
    """
    scale = 1.0
    if whiten:
        advantages, scale = standardise(advantages, centre=False)
    return Targets(
        advantages=_tensor(advantages, rollout),
        returns=None,
        old_values=None,
        kl_weight=0.0 if kind == "k1" else beta / scale,
        kl=kl,
    )


def first_states(rollout: Rollout) -> NDArray[np.int64]:
    """(B,) the place of every row's first state among the rollout's N."""
    return np.asarray(np.cumsum(rollout.lengths) - rollout.lengths)


def discounted(rollout: Rollout, gamma: float) -> NDArray[np.float64]:
    """(N,) gamma^t r_t, reward units at time 0."""
    return np.asarray(rollout.rewards * gamma**rollout.steps)


def scores(rollout: Rollout, gamma: float) -> NDArray[np.float64]:
    """(B,) the return of every row, sum of gamma^t r_t, reward units."""
    count = len(rollout.lengths)
    return np.bincount(rollout.rows, discounted(rollout, gamma), count).astype(np.float64)


def _tensor(array: NDArray[np.floating[Any]], rollout: Rollout) -> Tensor:
    return torch.tensor(array, dtype=torch.float32, device=rollout.values.device)
