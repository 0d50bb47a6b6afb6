"""Settings of how a model is trained, held and cut: LoRA, the reference's place, top-p. Imports no torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from typing import Literal

from textgym.checks import MOST_ROWS, check_count, check_number, shown

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """Whether an adapter is trained in place of the whole model."""

    lora_rank: int | None = None
    """Rank of a LoRA adapter, which is trained in place of the model; None trains the model. Needs the package peft."""
    lora_alpha: float = 16.0
    """What the adapter adds is scaled by lora_alpha / lora_rank."""
    lora_targets: str = "all-linear"
    """Layers that get an adapter, by the ends of their names: "q_proj,v_proj"; all-linear: all but the output layer."""

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
    """The same, and where and in which precision the frozen reference is."""

    reference_precision: Precision = "float32"
    """Of the reference's weights. bfloat16 halves them; the KL at the start is then that of their rounding, not 0."""
    reference_device: str | None = None
    """Where the reference is: cpu, cuda:1, ...; None: where the policy is."""

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
    """Which tokens the policy leaves out, for sampling and scoring alike; the reference leaves out none."""

    top_p: float = 1.0
    """The policy takes one of the fewest tokens that have this probability together; 1: of all. As top_k and min_p, it
    cuts the policy and not the reference, for sampling and scoring alike."""
    top_k: int | None = None
    """The policy takes one of the so many likeliest tokens; None: of all."""
    min_p: float = 0.0
    """The policy takes a token at least this share as likely as the likeliest; 0: any."""
    mask_top_p: float = 1.0
    """NLPO (arXiv:2210.01241): the policy takes one of the fewest tokens that have this probability together under a
    mask policy, an older copy of itself; 1: of all. What top_p, top_k and min_p cut comes after it."""
    mask_every: int = 10
    """With mask_top_p: iterations from one copy to the next."""
