"""NLPO's mask: the policy takes tokens of the nucleus of an older copy of itself alone; and log-ratios within a cut."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from textgym.checks import Bools, Floats
from textgym.lm.categorical import chunks
from textgym.lm.causal import FORBIDDEN
from textgym.task import Task
from textgym_agents.config import OnPolicyConfig
from textgym_agents.lm.policy import LMPolicy
from textgym_agents.lm.processors import Cut, Processors, make_cut
from textgym_agents.lm.rollout import Rollout, score_reference, token_kl
from textgym_agents.lm.start import like
from textgym_agents.protocol import Observation


class LearnedMask(Cut):
    """The cut of a policy by the nucleus of its mask policy, an older copy of it, which `follow` brings up to date.

    The task's mask comes first for both. What the policy's own processors cut of the tokens that are left comes after.

    Args:
        task, processors: see `Cut`. policy: the one that is cut, of which a copy is taken.
        config: supplies `mask_top_p`, and what the copy is run with.
    Source: Ramamurthy et al. (2023), arXiv:2210.01241, algorithm 1 (NLPO).
    """

    def __init__(self, task: Task, processors: Processors, policy: LMPolicy, config: OnPolicyConfig) -> None:
        super().__init__(task, processors)
        self._nucleus = Processors(top_p=config.mask_top_p)
        shared = {id(each): each for each in policy.model.parameters() if not each.requires_grad}
        self.mask_policy = like(policy, task, config, copy.deepcopy(policy.model, shared).requires_grad_(False))
        self.mask_policy.value_head.requires_grad_(False)

    @torch.no_grad()
    def kept(self, logits: Tensor, observation: Observation | None = None, active: Bools | None = None) -> Tensor:
        """See `Cut.kept`."""
        assert observation is not None
        own, _ = self.mask_policy.heads(self.mask_policy.read(observation, active))  # (n, V)
        kept = self._nucleus.kept(own.masked_fill(logits <= FORBIDDEN / 2, FORBIDDEN))
        return self.processors.kept(logits.masked_fill(~kept, FORBIDDEN))

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Give the mask policy the weights of a model that are trained."""
        self.restore({name: each for name, each in model.named_parameters() if each.requires_grad})

    def forget(self) -> None:
        """Empty the mask policy's key-value cache."""
        self.mask_policy.forget()

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the mask policy's weights, those alone that are trained of the model."""
        trained = [name for name, each in model.named_parameters() if each.requires_grad]
        return {name: self.mask_policy.model.get_parameter(name).detach() for name in trained}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned. Raises: KeyError for a weight that the model has not."""
        own = dict(self.mask_policy.model.named_parameters())
        for name, each in tensors.items():
            own[name].copy_(each)
        self.forget()


def cut_of(task: Task, processors: Processors, policy: LMPolicy, config: OnPolicyConfig) -> Cut | None:
    """Return the cut of a policy by its processors and, with `mask_top_p`, a mask policy; None where all is kept."""
    return make_cut(task, processors) if config.mask_top_p == 1 else LearnedMask(task, processors, policy, config)


def follow(policy: LMPolicy, iterations: int, every: int) -> None:
    """Bring the mask policy of a policy up to date, where it has one, after `every`, 2 `every`, ... iterations.

    That is at the end of an iteration: what is evaluated and saved then is what samples the next batch.
    """
    if isinstance(policy.cut, LearnedMask) and iterations % every == 0:
        policy.cut.copy_from(policy.model)


@torch.no_grad()
def log_ratios_within_cut(
    rollout: Rollout, policy: LMPolicy, reference: LMPolicy, scored: Tensor, kl: Floats, config: OnPolicyConfig
) -> Floats:
    """Return the log-ratio of each action (N,), nats, to the reference renormalised over the tokens that the cut kept.

    What a cut leaves out is as far from the reference before any update: log of the reference's mass on what it keeps.

    Args:
        policy: the one that has sampled.
        scored, kl: of the whole reference, as `score_reference` and `token_kl` give them for `config.kl`.
    """
    if rollout.kept is None and config.kl != "exact":
        return kl
    within = rollout if rollout.kept is None else replace(rollout, masks=rollout.kept)
    if config.kl == "exact":  # its features are there, and the texts need not be read again
        parts = []
        for at in chunks(scored, policy.backbone.vocab_size):
            log_probs = reference.distribution(scored[at], within.masks_of(at))
            parts.append(log_probs.gather(1, within.actions[at][:, None]).squeeze(1))
        scored = torch.cat(parts)
    else:
        scored = score_reference(reference, within, config.micro_batch, everything=False)
    return token_kl(within, policy, reference, scored, "k1")
