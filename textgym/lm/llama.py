"""Run a lean Llama for generation and training.

It reads the parameters of a Hugging Face `LlamaForCausalLM` and gives the same logits and gradients with fewer
passes over memory and fewer calls: norm weights are folded into the next projection, rotary embeddings are one complex
product, and RMSNorm and SwiGLU keep no intermediate that their backward does not need. Outside of gradients (acting)
the same functions run without autograd's bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from textgym.lm.backbone import recomputes, row_parts

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer


class _Context(FunctionCtx):
    """The context that autograd hands from a forward to its backward."""

    saved_tensors: tuple[Tensor, ...]
    sizes: tuple[int, int, int]


def _pairs(x: Tensor) -> Tensor:
    """See pairs of numbers (..., D) as complex ones (..., D / 2)."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def _length(x: Tensor, floor: Tensor) -> Tensor:
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


class _UnitNorm(torch.autograd.Function):
    """See `unit_norm`."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, floor: Tensor) -> Tensor:
        length = _length(x, floor)
        y = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None]:
        y, length = ctx.saved_tensors
        (gradient,) = gradients
        along = torch.linalg.vecdot(gradient, y).unsqueeze(-1)
        return torch.addcmul(gradient, y, along, value=-1).div_(length), None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: _Context, gate: Tensor, up: Tensor) -> Tensor:
        activated = F.silu(gate)
        ctx.save_for_backward(gate, up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, activated = ctx.saved_tensors
        (gradient,) = gradients
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * activated


class _Heads(torch.autograd.Function):
    """Split (B, T, (A + 2 K) D) into rotated queries (B, T, A, D), rotated keys and values (B, T, K, D).

    `phases` (T, 1, D / 2) are unit complex numbers: a rotary embedding of interleaved pairs is their product.
    """

    @staticmethod
    def forward(ctx: _Context, mixed: Tensor, phases: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(phases)
        ctx.sizes = sizes
        query, key, value = mixed.view(*mixed.shape[:2], sum(sizes), -1).split(sizes, 2)
        return rotate(query, phases), rotate(key, phases), value.contiguous()

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (phases,) = ctx.saved_tensors
        batch, width, _, size = gradients[0].shape
        result = gradients[0].new_empty((batch, width, sum(ctx.sizes), size))
        back = phases.conj()
        for part, gradient in zip(result.split(ctx.sizes, 2)[:2], gradients[:2], strict=True):
            torch.mul(_pairs(gradient.contiguous()), back, out=_pairs(part))
        result[:, :, -ctx.sizes[2] :] = gradients[2]
        return result.flatten(2), None, None


_unit_norm_with_gradient: Callable[[Tensor, Tensor], Tensor] = _UnitNorm.apply
_swiglu_with_gradient: Callable[[Tensor, Tensor], Tensor] = _SwiGLU.apply
split_heads: Callable[[Tensor, Tensor, tuple[int, int, int]], tuple[Tensor, ...]] = _Heads.apply


def unit_norm(x: Tensor, floor: Tensor) -> Tensor:
    """Return x / sqrt(|x|^2 + floor^2) over the last axis of H entries.

    With floor = sqrt(H eps), sqrt(H) times that is RMSNorm; the factor stands in the weights that come next.
    Source: Zhang and Sennrich (2019), eq. 4.
    """
    return _unit_norm_with_gradient(x, floor) if torch.is_grad_enabled() else x / _length(x, floor)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up; outside of gradients `gate` is overwritten. Source: Shazeer (2020), eq. 6."""
    return _swiglu_with_gradient(gate, up) if torch.is_grad_enabled() else F.silu(gate, inplace=True).mul_(up)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Rotate interleaved pairs (..., D) by unit complex `phases` (..., D / 2)."""
    return torch.view_as_real(_pairs(x) * phases).flatten(-2)


_MAX_PARAMETERS = 50_000_000
_BLOCK, _LEAST = 16, 32


def _round_up(slots: int) -> int:
    """Round up to whole vectors, 32 at least: products of fewer take a path many times slower than the larger ones'."""
    return max(-(-slots // _BLOCK) * _BLOCK, _LEAST)


class Layer(NamedTuple):
    """One decoder layer's weights, with those of norms and the root of their length folded in: query, key (rows ordered
    as rotary pairs) and value stacked in `attention`. `output` and `down` are transposed.
    """

    attention: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass
class LlamaCache:
    """Keys and values of a batch of rows that get longer.

    Attributes:
        keys, values: per layer (B, K, D, S) float; S slots of which `used` are written.
        bias: (B, 1, S) float, 0 where a slot may be read and -inf elsewhere.
        lengths: (B,) int64, tokens per row, which is the next position.
        slots: (B,) int64, the next slot of each row. ragged: whether these may differ.
        views: per layer, keys and values (B K, D, s) of the slots that may be read; [] if not made yet.
    """

    layers: list[Layer]
    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor
    lengths: Tensor
    slots: Tensor
    used: int
    rope: Tensor = field(repr=False)
    ragged: bool = False
    views: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)


def _joined(caches: Sequence[LlamaCache]) -> LlamaCache:
    """Return one cache of the rows of several, which are emptied."""
    keys, values = (
        [torch.cat([column.pop(0) for column in columns]) for _ in caches[0].layers]
        for columns in ([each.keys for each in caches], [each.values for each in caches])
    )
    bias, lengths, slots = (
        torch.cat([getattr(each, name) for each in caches]) for name in ("bias", "lengths", "slots")
    )
    return replace(caches[0], keys=keys, values=values, bias=bias, lengths=lengths, slots=slots)


def supports(model: PreTrainedModel) -> bool:
    """Return whether a model is a small float32 Llama of plain shape, without adapters and gradient checkpointing.

    Plain: default rotary embedding, no biases, no dropout.
    """
    config = cast("LlamaConfig", model.config)
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in ("LlamaForCausalLM", "LlamaForSequenceClassification")
        and rope.get("rope_type", "default") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.mlp_bias
        and config.attention_dropout == 0.0
        and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and sum(parameter.numel() for parameter in model.parameters()) <= _MAX_PARAMETERS
        and not recomputes(model)
        and not any("base_layer" in module._modules for module in model.modules())  # PEFT's
        and not any(hasattr(parameter, "placements") for parameter in model.parameters())  # one of several shards
    )


class LlamaBackbone:
    """`Backbone` over a Hugging Face Llama; shares its parameters, holds no state of its own.

    Features are the last hidden states, of length 1, before the weights of their norm. A classifier's label scores take
    the place of the logits.
    """

    by_pieces = True
    prompt_end: int | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = cast("LlamaForCausalLM", model)
        self._read_out_layer = cast(nn.Linear, model.lm_head if hasattr(model, "lm_head") else model.score)
        config = cast("LlamaConfig", model.config)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = self._read_out_layer.weight.shape[0]
        self._heads: int = config.num_attention_heads
        self._groups: int = config.num_key_value_heads or self._heads
        self._width: int = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._root = self.hidden_size**0.5
        # Of one number, it goes with any device and any precision.
        self._floor = torch.tensor(self._root * config.rms_norm_eps**0.5, dtype=torch.float64, device="cpu")
        self._theta = cast("dict[str, float]", config.rope_parameters)["rope_theta"]

    def features(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """See `Backbone.features`."""
        layers = self._layers()
        batch, width = input_ids.shape
        phases = self._phases(width).unsqueeze(1)  # (T, 1, D / 2)
        x = self.model.model.embed_tokens(input_ids.reshape(-1))  # (B T, H)
        for layer in layers[:-1]:
            mixed = self._attend(layer, x, phases, batch)
            x = self._feed_forward(layer, torch.addmm(x, mixed, layer.output))
        # Nothing after the last attention mixes positions, so only the asked ones go on.
        mixed = self._attend(layers[-1], x, phases, batch)
        flat = rows * width + columns
        mixed, x = mixed.index_select(0, flat), x.index_select(0, flat)
        x = self._feed_forward(layers[-1], torch.addmm(x, mixed, layers[-1].output))
        return unit_norm(x, self._floor)

    def read_out(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.read_out`."""
        hidden = features * (self.model.model.norm.weight * self._root)
        return F.linear(hidden, self._read_out_layer.weight), hidden

    def open(self, input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[object, Tensor]:
        """See `Backbone.open`."""
        layers, parts = self._layers(), row_parts(self.model, *input_ids.shape)
        read = [self._open(layers, input_ids[at], lengths[at], slots) for at in parts]
        if len(read) == 1:
            return read[0]
        return _joined([cache for cache, _ in read]), torch.cat([features for _, features in read])

    def _open(self, layers: list[Layer], input_ids: Tensor, lengths: Tensor, slots: int) -> tuple[LlamaCache, Tensor]:
        batch, width = input_ids.shape
        size = _round_up(width + slots)
        rope = self._phases(size)
        keys, values = [], []
        x = self.model.model.embed_tokens(input_ids.reshape(-1))
        for layer in layers:
            query, key, value = self._project(layer, x, rope[:width].unsqueeze(1), batch)
            keys.append(F.pad(key.transpose(2, 3), (0, size - width)))
            values.append(F.pad(value.transpose(2, 3), (0, size - width)))
            mixed = self._mix(query, key, value)
            x = self._feed_forward(layer, torch.addmm(x, mixed, layer.output))
        last = x.index_select(0, torch.arange(batch, device=x.device) * width + lengths - 1)
        bias = x.new_full((batch, 1, size), float("-inf"))
        bias[:, 0, :width].masked_fill_(torch.arange(width, device=x.device) < lengths[:, None], 0.0)
        used = torch.full_like(lengths, width)
        return LlamaCache(layers, keys, values, bias, lengths.clone(), used, width, rope), unit_norm(last, self._floor)

    def takes(self, cache: object, most: int) -> bool:
        """See `Backbone.takes`."""
        assert isinstance(cache, LlamaCache)
        return self.by_pieces and len(row_parts(self.model, len(cache.lengths), most)) == 1

    def extend(self, cache: object, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """See `Backbone.extend`. Tokens of all rows stand one behind the other, but for attention to the cache."""
        assert isinstance(cache, LlamaCache)
        positions, slots = cache.lengths, cache.slots
        if counts is not None:
            new = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
            (rows, places), tokens = new.nonzero(as_tuple=True), tokens[new]  # (T,) each
            positions, slots = positions[rows] + places, slots[rows] + places
        elif cache.ragged:
            rows = torch.arange(len(tokens), device=tokens.device)
        ragged = cache.ragged or counts is not None
        row, slot = (rows, slots) if ragged else (slice(None), cache.used)  # a slice is written faster
        cache.bias[row, 0, slot] = 0.0
        phases, bias = cache.rope[positions].unsqueeze(1), self._grow(cache, counts)
        x, sizes = self.model.model.embed_tokens(tokens), (self._heads, self._groups, self._groups)
        for layer, keys, values, seen in zip(cache.layers, cache.keys, cache.values, cache.views, strict=True):
            mixed = F.linear(unit_norm(x, self._floor), layer.attention).view(len(x), -1, self._width)
            _pairs(mixed)[:, : -self._groups].mul_(phases)  # rotates queries and keys
            query, keys[row, :, :, slot], values[row, :, :, slot] = mixed.split_with_sizes(sizes, 1)
            if counts is None:
                mixed = self._read(query, seen, bias).view(len(x), -1)
            else:
                pieces = query.new_zeros((*new.shape, *query.shape[1:]))  # (B, G, A, D)
                pieces[rows, places] = query
                mixed = self._read(pieces.transpose(1, 2), seen, bias)
                mixed = mixed.view(len(new), self._heads, -1, self._width)[rows, :, places].flatten(1)
            x = self._feed_forward(layer, torch.addmm(x, mixed, layer.output))
        return unit_norm(x if counts is None else x[counts.cumsum(0).clamp(min=1) - 1], self._floor)

    def _grow(self, cache: LlamaCache, counts: Tensor | None) -> Tensor:
        """Count new tokens (B,), or one a row; return what attention from them adds: (B K, 1 or h G, S)."""
        before = cache.slots
        added = torch.ones_like(before) if counts is None else counts
        cache.slots, cache.lengths = before + added, cache.lengths + added
        cache.ragged = cache.ragged or counts is not None
        cache.used = cache.used + 1 if counts is None else int(cache.slots.max())
        width = _round_up(cache.used)
        bias = cache.bias[:, :, :width]
        if not cache.views or cache.views[0][0].shape[-1] != width:
            keys, values = ([each[..., :width].flatten(0, 1) for each in held] for held in (cache.keys, cache.values))
            cache.views = list(zip(keys, values, strict=True))
        if counts is None:
            return bias.repeat_interleave(self._groups, 0)
        last = before[:, None] + torch.arange(int(counts.max()), device=before.device)  # (B, G)
        later = torch.arange(bias.shape[-1], device=before.device) > last[:, :, None]
        shape = (-1, self._heads, *later.shape[1:])
        pieces = bias.masked_fill(later, float("-inf"))[:, None].expand(shape)  # (B, A, G, S)
        return pieces.reshape(len(before) * self._groups, -1, bias.shape[-1])

    def select(self, cache: object, rows: Tensor) -> object:
        """See `Backbone.select`."""
        assert isinstance(cache, LlamaCache)
        return replace(
            cache,
            keys=[keys.index_select(0, rows) for keys in cache.keys],
            values=[values.index_select(0, rows) for values in cache.values],
            bias=cache.bias.index_select(0, rows),
            lengths=cache.lengths.index_select(0, rows),
            slots=cache.slots.index_select(0, rows),
            views=[],
        )

    def _read(self, query: Tensor, seen: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Let queries (B, A, D) or (B, A, G, D) read the cache with a bias (B K, 1 or h G, s); (B K, h or h G, D)."""
        query = query.reshape(len(query) * self._groups, -1, self._width)
        scores = torch.baddbmm(bias, query, seen[0], alpha=self._width**-0.5)
        return torch.bmm(scores.softmax(-1), seen[1].transpose(1, 2))

    def _project(self, layer: Layer, x: Tensor, phases: Tensor, batch: int) -> tuple[Tensor, ...]:
        sizes = (self._heads, self._groups, self._groups)
        mixed = F.linear(unit_norm(x, self._floor), layer.attention)
        parts = split_heads(mixed.view(batch, len(x) // batch, -1), phases, sizes)
        return tuple(part.transpose(1, 2) for part in parts)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return causal attention (B, A, T, D) as (B T, A D)."""
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self._groups != self._heads
        )
        return mixed.transpose(1, 2).reshape(-1, self._heads * self._width)

    def _attend(self, layer: Layer, x: Tensor, phases: Tensor, batch: int) -> Tensor:
        return self._mix(*self._project(layer, x, phases, batch))

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        h = unit_norm(x, self._floor)
        return torch.addmm(x, swiglu(F.linear(h, layer.gate), F.linear(h, layer.up)), layer.down)

    def _phases(self, width: int) -> Tensor:
        device = self._read_out_layer.weight.device
        steps = torch.arange(0, self._width, 2, device=device, dtype=torch.float32) / self._width
        angles = torch.arange(width, device=device, dtype=torch.float32)[:, None] / self._theta**steps
        return torch.polar(torch.ones_like(angles), angles)

    def _layers(self) -> list[Layer]:
        return [self._fold(layer) for layer in self.model.model.layers]

    def _fold(self, layer: LlamaDecoderLayer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        before, after = (each.weight * self._root for each in (layer.input_layernorm, layer.post_attention_layernorm))
        both = torch.cat([attention.q_proj.weight, attention.k_proj.weight]) * before
        # Hugging Face rotates entry j with entry j + D / 2; a complex product rotates neighbours.
        paired = both.view(-1, 2, self._width // 2, both.shape[1]).transpose(1, 2).reshape(both.shape)
        return Layer(
            torch.cat([paired, attention.v_proj.weight * before]),
            attention.o_proj.weight.t(),
            mlp.gate_proj.weight * after,
            mlp.up_proj.weight * after,
            mlp.down_proj.weight.t(),
        )
