"""Metrics of an iteration, of its rollout and of its optimiser steps, and beta, which follows the measured KL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from textgym.checks import Bools, Floats
from textgym.task import Task
from textgym_agents.lm.devices import ALONE, Devices
from textgym_agents.lm.maths import Targets, scores
from textgym_agents.lm.rollout import Rollout
from textgym_agents.protocol import Metrics

_SMALLEST = 1e-8  # An adaptive beta that reached 0 could never rise again.


def rollout_metrics(rollout: Rollout, kl: Floats, beta: float, gamma: float) -> Metrics:
    """Return batch means of a rollout. KL and entropy are per-sequence sums (nats), lengths in tokens.

    Scores are returns, sums of gamma^t r_t: the mean of J is "objective/rlhf_reward".

    Args:
        kl: (N,) of each state, nats.
    """
    count = len(rollout.lengths)
    mean_kl = float(kl.sum()) / count
    returns = scores(rollout, gamma)
    score = float(returns.mean())
    return {
        "objective/kl": mean_kl,
        "objective/entropy": float(-rollout.log_probs.cpu().double().sum()) / count,
        "objective/scores": score,
        "objective/scores_std": float(returns.std()),
        "objective/non_score_reward": -beta * mean_kl,
        "objective/rlhf_reward": score - beta * mean_kl,
        "objective/beta": beta,
        "val/num_eos_tokens": float(rollout.stopped.sum()),
        "completion_length": float(np.mean(rollout.lengths)),
        "tokens": float(len(rollout.rows)),
        **_mismatch(rollout),
    }


def warning_signs(rollout: Rollout, targets: Targets, task: Task, group: int) -> Metrics:
    """Return shares in [0, 1] and an explained variance that `textgym_agents.training.doctor` looks at.

    "val/cut_rate": completions that used up the budget, in a task with a stop token; rows that an outer limit stopped
    are none of them. "val/equal_groups": groups whose rewards are all equal. "val/repeated": trigrams
    that have stood in the completion before, where the vocabulary has more words than an answer has places; in a
    smaller one the best answer may well be a loop. "val/explained_variance": of the returns, by the critic.

    Args:
        group: consecutive rows that answer the same prompt; with 1 nothing is said of groups.
    """
    signs: Metrics = {}
    if task.end_ids:
        signs["val/cut_rate"] = float((~rollout.stopped & ~rollout.truncated).mean())
    if group > 1:
        signs["val/equal_groups"] = float((~varied(scores(rollout, task.gamma), group)).mean())
    if task.vocabulary.allowed.sum() > task.max_new_tokens:
        signs["val/repeated"] = _repeated(rollout)
    if targets.returns is not None and targets.old_values is not None:
        returns, values = (each.cpu().double().numpy() for each in (targets.returns, targets.old_values))
        if returns.var() > _SMALLEST:
            signs["val/explained_variance"] = float(1 - (returns - values).var() / returns.var())
    return signs


def varied(returns: Floats, group: int) -> Bools:
    """Return in which groups (B / group,) of consecutive returns (B,) not all are equal, but for rounding."""
    slack = _SMALLEST * max(1.0, float(np.abs(returns).max()))
    return np.asarray(np.ptp(returns.reshape(-1, group), axis=1) > slack)


def _repeated(rollout: Rollout) -> float:
    """Return the share of trigrams that have stood in their completion before; 0 without any."""
    rows, actions = rollout.rows, rollout.actions.cpu().numpy()
    whole = rows[2:] == rows[:-2]
    trigrams = np.stack([rows[2:], actions[:-2], actions[1:-1], actions[2:]], axis=1)[whole]  # (M, 4)
    return 1 - len(np.unique(trigrams, axis=0)) / len(trigrams) if len(trigrams) else 0.0


def _mismatch(rollout: Rollout) -> Metrics:
    """Return how far the sampler's log-probabilities of its actions are from the policy's own, nats a token.

    The last but one is k3 of KL(sampler || policy); nothing where the policy has sampled.
    """
    if rollout.sampler_log_probs is None or rollout.importance is None:
        return {}
    log_ratio = (rollout.log_probs - rollout.sampler_log_probs).cpu().double()
    return {
        "sampler/mismatch_mean": float(log_ratio.abs().mean()),
        "sampler/mismatch_max": float(log_ratio.abs().max()),
        "sampler/mismatch_k3": float((log_ratio.expm1() - log_ratio).mean()),
        "sampler/importance": float(rollout.importance.cpu().double().mean()),
    }


class UpdateMeter:
    """Token-weighted means over the optimiser steps of one update.

    Args:
        devices: see `Devices`. max_grad_norm: a longer gradient is scaled down to it.
    """

    def __init__(self, devices: Devices = ALONE, max_grad_norm: float = math.inf) -> None:
        self._devices, self._max_grad_norm = devices, max_grad_norm
        self._rows: list[Metrics] = []
        self._sums: Tensor | None = None
        self._count = 0
        self.last_kl = 0.0
        """Half the mean squared log-ratio of the last step's tokens, nats: how far the policy is from the sampler."""

    def start(self, tokens: int) -> None:
        """Begin an optimiser step over so many tokens, on all devices."""
        self._sums, self._count = None, tokens

    def add(
        self, log_ratio: Tensor, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, clip: tuple[float, float]
    ) -> None:
        """Add one micro-batch; every tensor is (n,). Args: clip: the range outside which a ratio counts as clipped."""
        with torch.no_grad():
            ratio = log_ratio.exp()
            clipped = ((ratio < clip[0]) | (ratio > clip[1])).float()
            parts = (
                0.5 * log_ratio.square(),
                clipped,
                ratio,
                ratio.square(),
                policy_loss,
                value_loss,
                entropy,
            )
            sums = torch.stack([part.sum() for part in parts])
        self._sums = sums if self._sums is None else self._sums + sums

    def add_clipped(self, count: Tensor) -> None:
        """Count so many tokens as clipped, where not their own ratio decides. Args: count: a number."""
        assert self._sums is not None
        self._sums[1] += count

    def finish(self, grad_norm: float) -> None:
        """End an optimiser step."""
        # A device that had no part of this step has nothing to add.
        sums = self._devices.add_up(torch.zeros(7) if self._sums is None else self._sums.cpu())
        kl, clipped, ratio, square, policy, value, entropy = (sums / self._count).tolist()
        self.last_kl = kl
        self._rows.append(
            {
                "policy/approxkl_avg": kl,
                "policy/clipfrac_avg": clipped,
                "val/ratio": ratio,
                "val/ratio_var": max(square - ratio * ratio, 0.0),
                "loss/policy_avg": policy,
                "loss/value_avg": value,
                "policy/entropy_avg": entropy,
                "policy/grad_norm": grad_norm,
                "policy/grad_scale": min(1.0, self._max_grad_norm / max(grad_norm, _SMALLEST)),
            }
        )

    def means(self) -> Metrics:
        """Return means over the steps, and the first step's ratio, clip fraction and KL, which must be 1, 0 and 0.

        Without any step there is nothing but their number, 0.
        """
        if not self._rows:
            return {"updates": 0.0}
        result = {key: math.fsum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        result["val/first_ratio"] = self._rows[0]["val/ratio"]
        result["val/first_clipfrac"] = self._rows[0]["policy/clipfrac_avg"]
        result["val/first_kl"] = self._rows[0]["policy/approxkl_avg"]
        result["updates"] = float(len(self._rows))
        return result


@dataclass
class KLController:
    """beta, and how it follows the observed KL.

    Args:
        beta: > 0 with a target, >= 0 without; reward units per nat.
        target: wanted KL in nats per sequence; None keeps beta fixed.
        horizon: episodes over which a full error of 0.2 moves beta by 20%.
    Raises: ValueError if a number is out of range.
    Source: Ziegler et al. (2019), arXiv:1909.08593, section 2.2.
    """

    beta: float
    target: float | None = None
    horizon: int = 10_000
    _saved: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.target is not None and not (self.target > 0 and self.beta > 0):
            raise ValueError(f"kl_target={self.target!r}, beta={self.beta!r}: both must be > 0 to be adaptive")
        if self.beta < 0 or self.horizon <= 0:
            raise ValueError(f"beta={self.beta!r}, horizon={self.horizon!r}: beta must be >= 0, horizon > 0")

    @property
    def valued(self) -> float:
        """The beta that values were learned with: of a loaded agent the saved one until it learns on."""
        return self.beta if self._saved is None else self._saved

    def load(self, beta: float) -> None:
        """Take a saved beta: to go on from if it adapts, else as that of the values alone."""
        self._saved = beta
        if self.target is not None:
            self.beta = beta

    def update(self, kl: float, episodes: int) -> None:
        """Raise beta when `kl` (nats per sequence, batch mean) is above the target, lower it when below."""
        self._saved = None
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.beta = max(self.beta * max(1.0 + error * episodes / self.horizon, 0.1), _SMALLEST)


@dataclass
class EntropyController:
    """The weight of an entropy bonus, and how it follows the policy's entropy.

    Args:
        coefficient: of the bonus, >= 0; with a target, the one to begin with.
        target: nats a token; None keeps the coefficient.
        step: what a batch moves the coefficient by.
    Source: He et al. (2025), arXiv:2505.22312 (Skywork-OR1), adaptive entropy control; there nothing keeps the
        coefficient from falling below 0.
    """

    coefficient: float
    target: float | None = None
    step: float = 0.005

    def __post_init__(self) -> None:
        self.weight = self.coefficient
        """Of the bonus in the present update."""

    def follow(self, metrics: Metrics) -> Metrics:
        """Set the weight for a batch, and move the coefficient for those after it.

        Args: metrics: those of the rollout. Returns: the two, where there is a target.
        """
        if self.target is None:
            return {}
        entropy = metrics["objective/entropy"] / metrics["completion_length"]  # nats a token, of what was sampled
        low = entropy <= self.target
        self.weight = self.coefficient if low else 0.0
        found = {"objective/entropy_weight": self.weight, "objective/entropy_coefficient": self.coefficient}
        self.coefficient = max(self.coefficient + (self.step if low else -self.step), 0.0)
        return found
