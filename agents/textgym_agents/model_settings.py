"""Settings of how a model is trained, stored and truncated: LoRA, the reference's device, top-p. Imports no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from typing import Literal

from textgym.checks import MOST_ROWS, check_count, check_number, shown

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Train a LoRA adapter instead of the whole model."""

    lora_rank: int | None = None
    """Rank of a LoRA adapter to train instead of the model; None: train the model itself. Needs the package peft."""
    lora_alpha: float = 16.0
    """Scale of the adapter: its output is multiplied by lora_alpha / lora_rank."""
    lora_targets: str = "all-linear"
    """Layers that get an adapter, by the ends of their names, as in "q_proj,v_proj"; all-linear: all but the output
    layer."""

    def check_lora(self) -> None:
        """Raise ValueError for a setting out of range, or without use; ModuleNotFoundError without peft."""
        check_number("lora_alpha", self.lora_alpha, 0)
        if not isinstance(self.lora_targets, str) or not all(self.target_names()):
            allowed = "'all-linear' or names with commas between, as 'q_proj,v_proj'"
            raise ValueError(f"lora_targets={shown(self.lora_targets)}: allowed is {allowed}")
        if self.lora_rank is not None:
            check_count("lora_rank", self.lora_rank, most=MOST_ROWS)
            if importlib.util.find_spec("peft") is None:
                raise ModuleNotFoundError(
                    f'lora_rank={self.lora_rank!r} needs peft, which is not installed: pip install "textgym[lora]"',
                    name="peft",
                )
            return
        for field in fields(LoRASettings):
            value = getattr(self, field.name)
            if value != field.default:
                raise ValueError(f"{field.name}={shown(value)}: allowed is {field.default!r} without lora_rank")

    def target_names(self) -> list[str]:
        """Return the names in `lora_targets`."""
        return [name.strip() for name in self.lora_targets.split(",")]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(LoRASettings):
    """LoRA settings, and the device and precision of the frozen reference."""

    reference_precision: Precision = "float32"
    """Precision of the reference's weights. bfloat16 halves their memory; the KL at the start is then not 0, because of
    rounding."""
    reference_device: str | None = None
    """Device of the reference: cpu, cuda:1, ...; None: the policy's device."""

    def check_model(self) -> None:
        """Raise ValueError for a setting out of range, or without use."""
        self.check_lora()
        if self.reference_precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"reference_precision={shown(self.reference_precision)}: allowed is 'float32' or 'bfloat16'"
            )
        for name, default in (("reference_precision", "float32"), ("reference_device", None)):
            value = getattr(self, name)
            if self.lora_rank is not None and value != default:
                raise ValueError(
                    f"{name}={shown(value)}: allowed is {default!r} with lora_rank, where the reference is the policy "
                    "without its adapter"
                )


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """Tokens that the policy excludes, both for sampling and for scoring; the reference excludes none."""

    top_p: float = 1.0
    """Restrict the policy to the smallest set of tokens with this total probability; 1: all. Like top_k and min_p, this
    applies to the policy, not the reference, both for sampling and for scoring."""
    top_k: int | None = None
    """Restrict the policy to this many of its most likely tokens; None: all."""
    min_p: float = 0.0
    """Restrict the policy to tokens at least this fraction as likely as the most likely one; 0: all."""
    mask_top_p: float = 1.0
    """NLPO (arXiv:2210.01241): restrict the policy to the smallest set of tokens with this total probability under a
    mask policy, an older copy of itself; 1: all. top_p, top_k and min_p apply to the tokens that remain."""
    mask_every: int = 10
    """Iterations between copies of the policy to the mask policy, with mask_top_p."""
