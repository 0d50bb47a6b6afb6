"""A causal LM as a policy over next tokens, with a value head."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.checks import Bools
from textgym.lm.backbone import recompute_layers
from textgym.lm.causal import FORBIDDEN, logit_bias, rows_at_once
from textgym.lm.checked import choose_backbone
from textgym.lm.decoder import Decoder
from textgym_agents.lm.processors import Cut
from textgym_agents.protocol import Observation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LMPolicy(nn.Module):
    """pi(a given s) by a causal LM and V(s) by a linear head on its last hidden state.

    Args:
        model: a Hugging Face causal LM; its parameters are the policy's.
        allowed: (V,) bool; other tokens have probability 0, for sampling and scoring alike.
        temperature: >= 1e-6; divides the logits, for sampling and scoring alike.
        device: where the parameters live. bf16: run the model under bfloat16 autocast.
        recompute: keep the inputs of layers alone and run them again in the backward pass.
        sharded: the weights will be: they stay where they are, and the own Llama, which takes them itself, is not used.
        tokens: the longest row that the model will read, see `choose_backbone`.
    Raises: ValueError if `temperature` is lower, or `recompute` is asked for and the model has no layers that can.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        allowed: Bools,
        temperature: float = 1.0,
        device: torch.device | None = None,
        bf16: bool = False,
        recompute: bool = False,
        sharded: bool = False,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        # Evaluation mode for good: dropout would make acting and scoring two different policies.
        self.model = model.eval() if sharded else model.to(self.device).eval()  # type: ignore[arg-type]
        self.held: torch.dtype | None = None  # of sharded weights, see `shard`
        self.temperature = temperature
        self.bf16 = bf16
        if recompute:
            recompute_layers(self.model)
        with self.precision():
            self.backbone = choose_backbone(self.model, lean=not (sharded or bf16), tokens=tokens)
        # Without nn.Linear's own initialisation, which draws from the global generator.
        self.value_head = nn.utils.skip_init(nn.Linear, self.backbone.hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._bias: Tensor
        self.register_buffer("_bias", logit_bias(allowed, self.backbone.vocab_size, self.device, temperature), False)
        self._decoder = Decoder(self.backbone, self.device)
        self.cut: Cut | None = None  # what it leaves out when it acts

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return what `heads` needs of the states at (rows, columns) of right-padded ids, (N, F); differentiable."""
        with self.precision():
            return self.backbone.features(input_ids, rows, columns)

    def heads(self, features: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return masked, tempered logits (N, V) and values (N,) from features (N, F); differentiable.

        Args: masks: (N, V) bool, the tokens that the task's grammar allows; None: all.
        """
        with self.precision():
            logits, hidden = self.backbone.read_out(features)
        biased = (logits.float() if self.temperature == 1.0 else logits.float() / self.temperature) + self._bias
        shaped = biased if masks is None else biased.masked_fill(~masks, FORBIDDEN)
        weight, bias = (each.float() for each in self.value_head.parameters())  # sharded, they may be gathered in bf16
        return shaped, nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)

    @torch.no_grad()
    def distribution(self, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """Return log-probabilities (N, V) from features (N, F), without a gradient."""
        return torch.log_softmax(self.heads(features, masks)[0], -1)

    def states(
        self, input_ids: Tensor, rows: Tensor, columns: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (N, V) and values (N,), as `heads` does, at (rows, columns) of right-padded ids."""
        return self.heads(self.features(input_ids, rows, columns), masks)

    @torch.no_grad()
    def advance(
        self, observation: Observation, active: Bools | None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (n, V) and values (n,) of active rows of an observation, by cache; see `heads`."""
        logits, values = self.heads(self.read(observation, active), masks)
        if self.cut is not None:
            logits = self.cut(logits, observation, active, active is not None or masks is not None)
        return torch.log_softmax(logits, -1), values

    @torch.no_grad()
    def read(self, observation: Observation, active: Bools | None = None) -> Tensor:
        """Return the features (n, F) of the active rows of an observation, by the key-value cache."""
        with self.precision():
            features = self._decoder.advance(dict(observation), active)
        if active is None or active.all():
            return features
        return features[torch.tensor(np.flatnonzero(active), device=self.device)]

    def log_probs(self, observation: Observation) -> NDArray[np.float32]:
        """See `textgym.lm.reference.Reference.log_probs`."""
        return np.asarray(self.advance(observation)[0].cpu().numpy())

    def rows_at_once(self, tokens: int) -> int:
        """See `textgym.lm.causal.rows_at_once`."""
        return rows_at_once(self.model, self.device, tokens)

    def forget(self) -> None:
        """Empty the key-value cache: the parameters have changed."""
        self._decoder.reset()
        if self.cut is not None:
            self.cut.forget()

    def precision(self) -> AbstractContextManager[None]:
        """Run the model in the precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
