"""A causal LM with a value head, its frozen reference, and the distribution over next tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from textgym.lm.backbone import Decoder
from textgym.lm.causal import FORBIDDEN, logit_bias
from textgym.lm.checked import choose_backbone
from textgym.lm.llama import recompute_layers
from textgym_agents.protocol import Observation


class _Statistics(torch.autograd.Function):
    """(logits, actions, reference log-probs) -> (log pi(a), KL(pi || ref), H(pi)), each (N,)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, actions: Tensor, reference: Tensor | None) -> tuple[Tensor, ...]:
        log_probs = torch.log_softmax(logits, -1)
        probs = log_probs.exp()
        taken = log_probs.gather(-1, actions[:, None]).squeeze(-1)
        entropy = -torch.linalg.vecdot(probs, log_probs)
        cross = -entropy if reference is None else torch.linalg.vecdot(probs, reference)
        divergence = -entropy - cross
        ctx.save_for_backward(log_probs, probs, actions, reference, entropy, divergence)
        return taken, divergence, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_probs, probs, actions, reference, entropy, divergence = ctx.saved_tensors
        for_taken, for_divergence, for_entropy = (gradient[:, None] for gradient in gradients)
        # d log pi(a) = [j = a] - p_j;  d H = -p_j (log p_j + H);  d KL = p_j (log p_j - log q_j - KL)
        weight = log_probs * (for_divergence - for_entropy)
        if reference is None:
            # KL is identically 0 then.
            weight = log_probs * -for_entropy
            for_divergence = torch.zeros_like(for_divergence)
        else:
            weight.addcmul_(reference, for_divergence, value=-1)
        weight.sub_(for_taken + for_divergence * divergence[:, None] + for_entropy * entropy[:, None])
        result = weight.mul_(probs)
        result.scatter_add_(1, actions[:, None], for_taken)
        return result, None, None


_statistics: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]] = _Statistics.apply


def statistics(
    logits: Tensor, actions: Tensor, reference: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What every policy-gradient loss on tokens needs, differentiable in `logits`.

    Args:
        logits: (N, V) float; tokens that are not allowed hold a large negative finite number.
        actions: (N,) int64.
        reference: (N, V) log-probabilities of the reference, or None (the KL is then 0).
    Returns: log pi(a) (N,), KL(pi || reference) (N,), entropy (N,), all in nats.
    """
    return _statistics(logits, actions, reference)


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draws one token a row by inverting the cumulative distribution.

    Args:
        log_probs: (N, V) float32.
        uniforms: (N,) float32 in [0, 1).
    Returns: (N,) int64; never a token of probability 0.
    """
    cumulative = log_probs.exp().cumsum(-1)
    # Just under the total, so that rounding cannot point behind the last token.
    targets = uniforms[:, None] * cumulative[:, -1:] * (1 - 1e-6)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)


class LMPolicy(nn.Module):
    """pi(a given s) by a causal LM and V(s) by a linear head on its last hidden state.

    Args:
        model: a Hugging Face causal LM; its parameters are the policy's.
        allowed: (V,) bool; other tokens have probability 0, for sampling and scoring alike.
        temperature: > 0; divides the logits, for sampling and scoring alike.
        device: where the parameters live.
        bf16: run the model under bfloat16 autocast.
        recompute: keep the inputs of layers alone and run them again in the backward pass.
        tokens: the longest row that the model will read, see `choose_backbone`.
    Raises: ValueError if `recompute` is asked for and the model has no layers that can.
    """

    def __init__(
        self,
        model: Any,
        allowed: NDArray[np.bool_],
        temperature: float = 1.0,
        device: torch.device | None = None,
        bf16: bool = False,
        recompute: bool = False,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        # Evaluation mode for good: dropout would make acting and scoring two different policies.
        self.model = model.to(self.device).eval()
        self.temperature = temperature
        self._bf16 = bf16
        if recompute:
            recompute_layers(self.model)
        with self._precision():
            self._backbone = choose_backbone(self.model, lean=not bf16, tokens=tokens)
        # Without nn.Linear's own initialisation, which draws from the global generator.
        self.value_head = nn.utils.skip_init(nn.Linear, self._backbone.hidden_size, 1, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.register_buffer(
            "_bias", logit_bias(allowed, self._backbone.vocab_size, self.device), persistent=False
        )
        self._decoder = Decoder(self._backbone, self.device)

    def states(
        self, input_ids: Tensor, rows: Tensor, columns: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masked, tempered logits (N, V) and values (N,) at (rows, columns) of right-padded ids; differentiable.

        Args:
            masks: (N, V) bool, the tokens that the task's grammar allows; None: all.
        """
        with self._precision():
            logits, hidden = self._backbone.states(input_ids, rows, columns)
        return self._shape(logits, masks), self._value(hidden)

    @torch.no_grad()
    def advance(
        self,
        observation: Observation,
        active: NDArray[np.bool_] | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities (n, V) and values (n,) of the active rows of an observation, by the key-value cache.

        Args:
            masks: (n, V) bool, the tokens that the task's grammar allows; None: all.
        """
        with self._precision():
            logits, hidden = self._decoder.advance(dict(observation), active)
        if active is not None and not active.all():
            rows = torch.tensor(np.flatnonzero(active), device=self.device)
            logits, hidden = logits[rows], hidden[rows]
        return torch.log_softmax(self._shape(logits, masks), -1), self._value(hidden)

    @torch.inference_mode()
    def branch(
        self, observation: Observation, rows: Tensor, tokens: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masked, tempered logits (M, V) and values (M,) in the states that M single tokens lead to.

        Each state is read once, whatever number of tokens is tried in it; the cache by which the policy acts is left
        alone.

        Args:
            observation: of B states. rows: (M,) int64, which state. tokens: (M,) int64, what is appended to it.
            masks: (M, V) bool, the tokens that the task's grammar allows afterwards; None: all.
        """
        lengths = np.count_nonzero(observation["attention_mask"], axis=1)
        ids = torch.tensor(observation["input_ids"][:, : lengths.max()], device=self.device)
        with self._precision():
            cache = self._backbone.open(ids, torch.tensor(lengths, device=self.device), 1)[0]
            logits, hidden = self._backbone.extend(self._backbone.select(cache, rows), tokens)
        return self._shape(logits, masks), self._value(hidden)

    def forget(self) -> None:
        """Empties the key-value cache: the parameters have changed."""
        self._decoder.reset()

    def _shape(self, logits: Tensor, masks: Tensor | None) -> Tensor:
        scaled = logits.float() if self.temperature == 1.0 else logits.float() / self.temperature
        bias: Tensor = self._bias  # type: ignore[assignment]
        return scaled + bias if masks is None else (scaled + bias).masked_fill(~masks, FORBIDDEN)

    def _value(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.value_head.weight, self.value_head.bias).squeeze(-1)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            yield


def draw(
    policy: LMPolicy, log_probs: Tensor, generator: np.random.Generator, deterministic: bool
) -> NDArray[np.int64]:
    """Token ids (B,) from log-probabilities (B, V): drawn, or the likeliest ones."""
    if deterministic:
        tokens = log_probs.argmax(-1)
    else:
        uniforms = torch.tensor(generator.random(len(log_probs), dtype=np.float32), device=policy.device)
        tokens = sample(log_probs, uniforms)
    result: NDArray[np.int64] = tokens.cpu().numpy()
    return result
