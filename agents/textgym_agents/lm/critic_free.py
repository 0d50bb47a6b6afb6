"""Policy gradients without a critic: returns of actions, groups and their baselines, and the loss of REINFORCE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from textgym.checks import Floats, Ints
from textgym.vector import TokenVectorEnv
from textgym_agents.config import KL
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.gathered import joined
from textgym_agents.lm.maths import Targets, charged_rewards, gae, on_device, scores, standardise
from textgym_agents.lm.metrics import varied
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.rollout import Rollout

_EPSILON = 1e-4


def action_returns(rollout: Rollout, kl: Floats, kind: KL, beta: float, gamma: float) -> Floats:
    """Return the return of every action (N,), reward units at time 0.

    It is the sum of the action's own and all later rewards, less beta times the KL charged. A row's first entry is the
    return of the whole sequence. Behind a truncation, where only a critic could tell, it counts nothing.

    Args: see `textgym_agents.lm.maths.make_targets`.
    """
    rewards = charged_rewards(rollout, kl, kind, beta, gamma)
    return gae(rewards, np.zeros_like(rewards), rollout.lengths, 1.0)[rollout.rows, rollout.steps]


def critic_free_targets(
    rollout: Rollout, kl: Floats, kind: KL, beta: float, advantages: Floats, whiten: bool
) -> Targets:
    """Return targets without a critic.

    Args:
        advantages: (N,) reward units.
        whiten: divide them, and beta in the loss, by their standard deviation over the batch. Nothing is subtracted: a
            baseline is the algorithm's own business.
    """
    advantages, scale = standardise(advantages, centre=False) if whiten else (advantages, 1.0)
    return Targets(on_device(advantages, rollout), None, None, 0.0 if kind == "k1" else beta / scale, kl)


def leave_one_out(returns: Floats) -> Floats:
    """Return each return less the mean of the others, (M, n).

    Source: Ahmadian et al. (2024), arXiv:2402.14740 (RLOO).
    """
    count = returns.shape[1]
    return np.asarray(centred(returns) * (count / (count - 1)))


def centred(returns: Floats) -> Floats:
    """Return each return less the mean of its group, itself included, (M, n).

    Source: Liu et al. (2025), arXiv:2503.20783.
    """
    return np.asarray(returns - returns.mean(1, keepdims=True), dtype=np.float64)


def standardised(returns: Floats) -> Floats:
    """Return `centred` over the group's standard deviation + 1e-4, (M, n).

    Source: Shao et al. (2024), arXiv:2402.03300 (GRPO).
    """
    return np.asarray(centred(returns) / (returns.std(1, ddof=1, keepdims=True) + _EPSILON))


def over_mean(returns: Floats) -> Floats:
    """Return `centred` over the group's mean, 0 where that is not above 0, (M, n).

    Source: Tajwar et al. (2026), arXiv:2602.02710 (MaxRL), for rewards of 0 and 1.
    """
    mean = returns.mean(1, keepdims=True)
    return np.asarray(np.divide(centred(returns), mean, out=np.zeros_like(returns), where=mean > 0))


def sequence_weights(lengths: Ints) -> Floats:
    """Return for every token (N,), row by row, one over the length of its sequence."""
    return np.asarray(np.repeat(1.0 / lengths, lengths))


def score_function_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Return -log pi(a) A (n,), whose gradient is minus REINFORCE's under the policy that sampled.

    Source: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
    """
    return -log_probs * advantages


@dataclass(frozen=True)
class Resampled:
    """Plays further batches, in the place of `textgym_agents.lm.rollout.collect`, until groups enough have variance.

    Args:
        play: what plays one batch. gamma: of the rewards. most: batches that are played at most.
    Source: Yu et al. (2025), arXiv:2503.14476 (DAPO), section 3.2, dynamic sampling.
    """

    play: Callable[..., Rollout]
    gamma: float
    most: int

    def __call__(
        self,
        env: TokenVectorEnv,
        policy: LMPolicy,
        seed: int,
        stop_ids: tuple[int, ...],
        keep_features: bool = False,
        group: int = 1,
        reference: LMPolicy | None = None,
        devices: Devices = ALONE,
    ) -> Rollout:
        """Return all episodes of all batches: as many groups of unequal returns as a batch has groups, if it can be.

        Args: see `collect`.
        """
        parts: list[Rollout] = []
        missing = float(devices.world * env.num_envs // group)
        while missing > 0 and len(parts) < self.most:
            own = int(np.random.SeedSequence([seed, len(parts)]).generate_state(1)[0]) if parts else seed
            part = self.play(env, policy, own, stop_ids, keep_features, group, reference, devices)
            missing -= devices.sums([varied(scores(part, self.gamma), group).sum()])[0]
            parts.append(part)
        return joined(parts)
