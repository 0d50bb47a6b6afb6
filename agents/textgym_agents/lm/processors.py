"""What a policy may sample from beside the task's rules: cuts by its own probabilities, and masks as packed bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgym.checks import Bools
from textgym.lm.causal import FORBIDDEN
from textgym.task import Task
from textgym_agents.protocol import Observation
from textgym_agents.tabular.policies import Grammar


@dataclass(frozen=True)
class Processors:
    """Which tokens of a state are kept, by the policy's own probabilities there.

    They come after temperature and the task's masks, in vLLM's order: `min_p` and `top_k`, then `top_p` of what these
    leave. The likeliest token is always kept.

    Args:
        top_p: in (0, 1]; the fewest tokens that have this probability together. 1: all.
        top_k: the likeliest tokens, and what is as likely as the last of them; None: all.
        min_p: in [0, 1]; tokens at least this share as likely as the likeliest. 0: all.
    Source: Holtzman et al. (2020), arXiv:1904.09751 (top-p); Fan et al. (2018), arXiv:1805.04833 (top-k); Nguyen et al.
        (2024), arXiv:2407.01082 (min-p).
    """

    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    def kept(self, logits: Tensor) -> Tensor:
        """Return which tokens are kept, bool (n, V), by logits (n, V); forbidden ones never are."""
        kept = logits > FORBIDDEN / 2
        if self.min_p > 0:
            kept &= logits >= logits.max(-1, keepdim=True).values + math.log(self.min_p)
        if self.top_k is not None:
            kept &= logits >= logits.topk(min(self.top_k, logits.shape[1])).values[:, -1:]
        if self.top_p < 1:
            ordered, order = logits.masked_fill(~kept, FORBIDDEN).sort(-1, descending=True)
            probabilities = ordered.softmax(-1)
            likelier = probabilities.cumsum(-1) - probabilities  # the probability of all tokens before this one
            kept &= torch.zeros_like(kept).scatter(1, order, likelier < self.top_p)
        return kept


class Cut:
    """The cut of a policy's distribution.

    Args:
        task: its mask comes before the cut, also where the policy is asked for what it would do in a single state.
        processors: what is kept.
    """

    def __init__(self, task: Task, processors: Processors) -> None:
        self.processors = processors
        self._grammar = None if task.mask is None else Grammar(task)

    def kept(self, logits: Tensor, observation: Observation | None = None, active: Bools | None = None) -> Tensor:
        """Return which tokens are kept, bool (n, V).

        Args:
            logits: (n, V), `FORBIDDEN` at what the task forbids.
            observation: of B states, of which these are the active ones (B,); a cut by other logits needs it.
        """
        return self.processors.kept(logits)

    def forget(self) -> None:
        """Empty the caches that the cut has."""

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return what is saved of the cut of a model's distribution, by name."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` returned. Raises: KeyError for what the cut has no place for."""
        if tensors:
            raise KeyError(next(iter(tensors)))

    @torch.no_grad()
    def _legal(self, logits: Tensor, observation: Observation) -> Tensor:
        if self._grammar is None:
            return logits
        legal = torch.as_tensor(self._grammar.legal(observation), device=logits.device)
        return logits.masked_fill(~legal, FORBIDDEN)

    def __call__(
        self, logits: Tensor, observation: Observation, active: Bools | None = None, masked: bool = False
    ) -> Tensor:
        """Return logits (n, V) with `FORBIDDEN` at what is cut; differentiable, with the kept tokens held fixed.

        Args:
            observation, active: see `kept`.
            masked: whether the task's mask has been applied; else it is applied first, for which the observation has
                `segment_ids`, and all its states are active.
        """
        legal = logits.detach() if masked else self._legal(logits.detach(), observation)
        return logits.masked_fill(~self.kept(legal, observation, active), FORBIDDEN)


def make_cut(task: Task, processors: Processors) -> Cut | None:
    """Return the cut of a policy on a task; None where every token is kept."""
    return None if processors == Processors() else Cut(task, processors)


@dataclass(frozen=True)
class PackedMasks:
    """Tokens of N states, one bit each.

    Attributes:
        bits: (N, ceil(V / 8)) uint8. size: V.
    """

    bits: Tensor
    size: int

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """Return masks (N, V) bool as bits, eight tokens a byte, the first in its lowest bit."""
        count, size = masks.shape
        padded = F.pad(masks.to(torch.uint8), (0, -size % 8)).view(count, -1, 8)
        return cls((padded << _places(masks.device)).sum(-1, dtype=torch.uint8), size)

    @classmethod
    def join(cls, parts: Sequence[PackedMasks], order: Tensor | slice = slice(None)) -> PackedMasks:
        """Return the masks of several batches of states together, in an order (N,)."""
        return cls(torch.cat([part.bits for part in parts])[order], parts[0].size)

    def __getitem__(self, states: Tensor | slice) -> Tensor:
        """Return the masks of some states, (n, V) bool."""
        bits = self.bits[states]
        return ((bits[:, :, None] >> _places(bits.device)) & 1).bool().flatten(1)[:, : self.size]


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
