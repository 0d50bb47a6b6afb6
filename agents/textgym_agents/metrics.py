"""What an iteration of an LM agent reports, under TRL's names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgym_agents.protocol import Metrics
from textgym_agents.targets import scores


def rollout_metrics(rollout: Any, targets: Any, beta: float, gamma: float) -> Metrics:
    """Batch means of a rollout. KL and entropy are per-sequence sums (nats), lengths in tokens.

    Scores are returns, sums of gamma^t r_t: the mean of J is "objective/rlhf_reward".
    """
    count = len(rollout.lengths)
    kl = float(targets.kl.sum()) / count
    returns = scores(rollout, gamma)
    score = float(returns.mean())
    surprise = float(-rollout.log_probs.cpu().double().sum()) / count
    return {
        "objective/kl": kl,
        "objective/entropy": surprise,
        "objective/scores": score,
        "objective/scores_std": float(returns.std()),
        "objective/non_score_reward": -beta * kl,
        "objective/rlhf_reward": score - beta * kl,
        "objective/beta": beta,
        "val/num_eos_tokens": float(rollout.stopped.sum()),
        "completion_length": float(np.mean(rollout.lengths)),
        "tokens": float(len(rollout.rows)),
    }


class UpdateMeter:
    """Token-weighted means over the optimiser steps of one update."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._sums: Tensor | None = None
        self._count = 0
        self.last_kl = 0.0

    def start(self, tokens: int) -> None:
        """Begins an optimiser step over so many tokens."""
        self._sums, self._count = None, tokens

    def add(
        self, log_ratio: Tensor, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, clip: float
    ) -> None:
        """Adds one micro-batch; every tensor is (n,)."""
        with torch.no_grad():
            ratio = log_ratio.exp()
            sums = torch.stack(
                [
                    0.5 * log_ratio.square().sum(),
                    ((ratio - 1).abs() > clip).float().sum(),
                    ratio.sum(),
                    ratio.square().sum(),
                    policy_loss.sum(),
                    value_loss.sum(),
                    entropy.sum(),
                ]
            )
        self._sums = sums if self._sums is None else self._sums + sums

    def finish(self, grad_norm: float) -> None:
        """Ends an optimiser step."""
        assert self._sums is not None
        kl, clipped, ratio, square, policy, value, entropy = (self._sums / self._count).tolist()
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
            }
        )

    def means(self) -> Metrics:
        """Means over the steps, and the first step's ratio and clip fraction, which must be 1 and 0.

        Without any step there is nothing but their number, 0.
        """
        if not self._rows:
            return {"updates": 0.0}
        result = {key: math.fsum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        result["val/first_ratio"] = self._rows[0]["val/ratio"]
        result["val/first_clipfrac"] = self._rows[0]["policy/clipfrac_avg"]
        result["updates"] = float(len(self._rows))
        return result
