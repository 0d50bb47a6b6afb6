"""On-policy distillation of a causal LM: it learns to match a teacher in the states that it visits itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from textgym.checks import Floats
from textgym.lm.categorical import Divergence, divergence, statistics
from textgym.task import Task
from textgym.vector import TokenVectorEnv
from textgym_agents.algorithms.ppo import OnPolicyAgent
from textgym_agents.config import Importance, OnPolicyConfig, only_with, require
from textgym_agents.lm.gathered import OwnStates
from textgym_agents.lm.maths import Targets, on_device
from textgym_agents.lm.metrics import UpdateMeter
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.rollout import Rollout, micro_batches
from textgym_agents.lm.start import load_teacher
from textgym_agents.registry import find_guide


@dataclass(frozen=True)
class DistillConfig(OnPolicyConfig):
    """Settings of on-policy distillation. `beta` and `kl` affect the metrics only.

    Raises: as `LMConfig` does.
    """

    teacher: str | None = None
    """The teacher: folder or hub id of a causal LM, or folder of a run that trained one; it must use the task's
    tokens."""
    divergence: Divergence = "reverse"
    """Divergence to minimise in each state, over all tokens. reverse: KL(student || teacher). forward: KL(teacher ||
    student). jsd: the generalised Jensen-Shannon divergence, to a mixture of both."""
    mix: float = 0.5
    """Weight of the teacher in the mixture of jsd, in (0, 1): near 0 it is like forward, near 1 like reverse."""
    whiten: bool = False
    """Must be False: there are no advantages."""
    importance: Importance = "none"
    """Must be none: the divergence covers all tokens, whichever was written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (
            ("whiten", False),
            ("entropy_coefficient", 0.0),
            ("entropy_target", None),
            ("kl_target", None),
            ("importance", "none"),
            ("importance_level", "token"),
            ("importance_cap", 2.0),
        ):
            require(name, getattr(self, name), getattr(self, name) == only, f"{only!r}: the divergence is all there is")
        require("mix", self.mix, 0 < self.mix < 1, "a number in (0, 1)")
        only_with(self, "mix", self.divergence == "jsd", "divergence='jsd'")
        cut = (self.top_p, self.top_k, self.min_p, self.mask_top_p) != (1, None, 0, 1)
        finite = self.divergence != "forward" or not cut
        require("divergence", self.divergence, finite, "'reverse' or 'jsd' with top_p, top_k, min_p or mask_top_p")


class Distill(OnPolicyAgent):
    """An LM policy trained to match a teacher on its own completions. Args: see `LMAgent`.

    The gradient is that of the divergence in the visited states, which are held fixed. It is 0 at the teacher's policy,
    whatever the reward. The teacher is loaded when it is first needed, also in a resumed run, and none of its tokens
    are excluded.

    Raises: as `A2C` does; ValueError without a teacher.
    Source: Agarwal et al. (2024), arXiv:2306.13649, algorithm 1 (GKD), with texts of the student alone; Gu et al.
        (2024), arXiv:2306.08543 (MiniLLM: why reverse); Lu and Thinking Machines Lab (2025), On-Policy Distillation.
    """

    name = "distill"
    config_type = DistillConfig
    config: DistillConfig
    aggregation = "constant"
    objective_tokens = 0

    def __init__(self, task: Task, config: DistillConfig | None = None, model: nn.Module | None = None) -> None:
        super().__init__(task, config or DistillConfig(), model)
        require("teacher", self.config.teacher, self.config.teacher is not None, "folder of a model or run, or hub id")

    @cached_property
    def teacher(self) -> LMPolicy:
        """The policy that teaches."""
        name = str(self.config.teacher)
        return load_teacher(name, self.task, self.config, find_guide(name, self.task))

    def check_learning(self, env: TokenVectorEnv) -> None:
        """See `Agent.check_learning`."""
        assert self.teacher

    @torch.no_grad()
    def _targets(self, rollout: Rollout, kl: Floats) -> Targets:
        own = self.devices.own(np.arange(len(rollout.lengths)), len(rollout.lengths))
        parts = micro_batches(rollout, own, self.config.micro_batch, by_length=False)
        taught = torch.cat([self.teacher.features(part.input_ids, part.rows, part.columns) for part in parts])
        self._taught = OwnStates(taught, int(rollout.first_states[own[0]]))
        return Targets(on_device(np.zeros(len(rollout.rows)), rollout), None, None, 0.0, kl)

    def _loss(
        self, features: Tensor, chosen: Tensor, rollout: Rollout, targets: Targets, scored: Tensor, meter: UpdateMeter
    ) -> Tensor:
        logits, _ = self.policy.heads(features, rollout.kept_of(chosen))  # (n, V)
        aim = self.teacher.distribution(self._taught[chosen], rollout.masks_of(chosen))  # (n, V)
        loss = divergence(torch.log_softmax(logits, -1), aim, self.config.divergence, self.config.mix)  # (n,)
        taken, _, entropy = statistics(logits.detach(), rollout.actions[chosen])  # (n,) each
        meter.add(taken - rollout.log_probs[chosen], loss, torch.zeros_like(taken), entropy, (0.0, math.inf))
        return loss

    def _policy_loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> Tensor:
        return torch.zeros_like(log_probs)
