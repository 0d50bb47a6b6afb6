"""Features of token sequences for Stable-Baselines3's policies: embedding, then pooling, GRU or transformer."""

from __future__ import annotations

from typing import get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from textgym.checks import not_one_of
from textgym_agents.sb3.config import Kind


class TokenFeatures(BaseFeaturesExtractor):
    """A vector for every token sequence. Lengths come from the mask; what stands in the padding changes nothing.

    Args:
        observation_space: `Dict(input_ids, attention_mask)`, as TextGym's environments have it.
        kind: "mean" pools embeddings of token and position over the sequence; "last" takes those of the last token
            only; "gru" the last state of a recurrent network; "transformer" the last token of a causal transformer.
        width: of embedding and features. layers: of GRU or transformer. heads: of the transformer.
    Raises: ValueError for an unknown kind, a space without tokens, or heads that do not divide the width.
    """

    def __init__(
        self,
        observation_space: object,
        kind: Kind = "gru",
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(not_one_of("kind", kind, get_args(Kind)))
        if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != {
            "input_ids",
            "attention_mask",
        }:
            raise ValueError(f"observation_space={observation_space!r:.80}: allowed is Dict(input_ids, attention_mask)")
        if kind == "transformer" and width % heads:
            raise ValueError(f"heads={heads!r}: allowed is a divisor of width={width}")
        super().__init__(observation_space, features_dim=width)
        ids = observation_space["input_ids"]
        assert isinstance(ids, spaces.Box)
        self.kind = kind
        self.tokens = nn.Embedding(int(ids.high.max()) + 1, width)
        self.positions = nn.Embedding(int(ids.shape[0]), width)
        if kind == "gru":
            self.gru = nn.GRU(width, width, layers, batch_first=True)
        elif kind == "transformer":
            layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Return features (B, width) of ids (B, L) and masks (B, L), of any number type."""
        # The padding of recurrent rollouts is states without any token.
        lengths = observation["attention_mask"].long().sum(1).clamp(min=1)  # (B,)
        longest = int(lengths.max())
        ids = observation["input_ids"][:, :longest].long()
        seen = torch.arange(longest, device=ids.device) < lengths[:, None]  # (B, T)
        # Padding reads token 0: the ids there may be anything.
        embedded = self.tokens(ids * seen) + self.positions.weight[:longest]  # (B, T, width)
        last = (lengths - 1)[:, None, None].expand(-1, 1, embedded.shape[2])
        if self.kind == "mean":
            mean: Tensor = (embedded * seen[..., None]).sum(1) / lengths[:, None]
            return mean
        if self.kind == "gru":
            embedded = self.gru(embedded)[0]
        elif self.kind == "transformer":
            causal = nn.Transformer.generate_square_subsequent_mask(longest, device=ids.device)
            embedded = self.encoder(embedded, mask=causal, is_causal=True)
        state: Tensor = embedded.gather(1, last)[:, 0]
        return state
